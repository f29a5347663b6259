"""Checkpoints of a run, saved atomically; one that belongs to another model or dataset is refused."""

import errno
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfppo.cluster import chief_writes
from tfppo.errors import UserError
from tfppo.files import sweep, sync, temporary, told, write_text
from tfppo.models.finite import require_finite
from tfppo.training.metrics import read_metrics
from tfppo.training.plain_path import plain_path

_STATE_FILE = "checkpoint"
# What the checkpoint reader of TensorFlow raises for damaged files, and for others: see `_pass_over`.
_DAMAGE = (tf.errors.OpError, IndexError, ValueError, AssertionError, MemoryError)
# What says nothing about a checkpoint that could not be read for it, and what to do about that.
_HINDRANCES = {
    errno.EACCES: "let this user read it",
    errno.EPERM: "let this user read it",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close some files",
    errno.ENOMEM: "free some memory",
    errno.EIO: "look at that disk, or move this checkpoint away",
}
# Those whose text need not say which.
_HINDERED = {MemoryError: errno.ENOMEM, tf.errors.ResourceExhaustedError: errno.ENOMEM}
# What killed saves leave, of TensorFlow's and of ours.
_LEFTOVERS = ("*_temp*", *temporary("ckpt-*.json"), *temporary(_STATE_FILE), "checkpoint.tmp*")


class CheckpointKeeper:
    """Saves and restores a model, its optimizer and a few numbers.

    Args:
        folder: where the checkpoints are.
        model: names and shapes of its variables are in a manifest beside each checkpoint, and compared on restoring.
        scalars: names and initial values of the numbers; see the property `scalars`. A number that an older checkpoint
            lacks has its initial value after it.
        keep: how many checkpoints are kept.
        extras: further models to save, by name.
        identity: digests and settings, by name, of what the checkpoint belongs to, such as a tokenizer or a reference
            model; also in the manifest and compared.
        log: the run's JSONL file; where it has steps that must have been saved, a folder without checkpoints is an
            error.
        save_every: how many steps may go by before the first checkpoint.

    `on_save` is called with the number of steps after each save.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        model: keras.Layer,
        optimizer: keras.optimizers.Optimizer,
        scalars: Mapping[str, float],
        keep: int,
        extras: Mapping[str, keras.Layer] | None = None,
        identity: Mapping[str, object] | None = None,
        log: Path | None = None,
        save_every: int = 1,
    ):
        self._folder, self._keep, self._log, self._save_every = Path(folder), keep, log, save_every
        self._model, self.identity = model, identity or {}
        self._models = {"model": model, **(extras or {})}
        self.on_save: Callable[[int], None] = lambda step: None
        self._scalars = {name: tf.Variable(value, dtype=tf.float64) for name, value in scalars.items()}
        self._step = tf.Variable(0, dtype=tf.int64)
        # Variables one by one: TensorFlow does not find, nor save, what a Keras layer keeps in a list.
        models = {name: [v.value for v in part.variables] for name, part in self._models.items()}
        self._parts = {"optimizer": optimizer, "step": self._step, **models, **self._scalars}
        self._checkpoint = tf.train.Checkpoint(**self._parts)
        _ = self._checkpoint.save_counter  # made when it is asked for; a checkpoint without it could not be restored

    @property
    def scalars(self) -> dict[str, float]:
        """The numbers of the last save or restore."""
        return {name: float(variable.numpy()) for name, variable in self._scalars.items()}

    def override(self, name: str, value: float) -> None:
        """Replaces one of the numbers."""
        self._scalars[name].assign(value)

    def save(self, step: int, **scalars: float) -> None:
        """Saves the state after `step` steps: on the disk before an older one is removed. The chief writes it.

        Raises: UserError where a weight is not finite, or it cannot be written; older checkpoints are what they were.
        """
        for name, part in self._models.items():
            require_finite(part, f"the checkpoint of step {step}" + (f" ({name})" if name != "model" else ""))
        self._step.assign(step)
        for name, value in scalars.items():
            self._scalars[name].assign(value)
        self._save(step)

    @chief_writes
    def _save(self, step):
        older = next((other for other in saved_steps(self._folder) if other < step), None)
        kept = f"the one of step {older} is intact" if older is not None else "there was none before"
        what = f"the checkpoint of step {step} in {str(self._folder)!r}"
        try:
            with told(what, f"{kept}, and the same command again goes on from there", (tf.errors.OpError,)):
                self._write(step)
        except UserError:
            # They may be what filled the disk; the manifest stays, and says that a first save was begun.
            sweep(self._folder, ("*_temp*", f"ckpt-{step}.data*", f"ckpt-{step}.index"), ())
            raise
        self._prune(step)
        self.on_save(step)

    def _write(self, step):
        self._folder.mkdir(parents=True, exist_ok=True)
        # The manifest comes first, and is renamed into place, so that no checkpoint lacks one. An empty one says that a
        # first save was begun, should the disk be full already: see `_refuse_to_forget`.
        self._manifest(step).touch()
        write_text(self._manifest(step), json.dumps(self._describe(), indent=1))
        # Without TensorFlow's CheckpointManager, which takes a folder's name for a pattern when it looks for files to
        # delete: of a[1] it deletes nothing, and of b*c what lies in other folders.
        self._checkpoint.write(str(self._folder / f"ckpt-{step}"))
        for path in (*self._folder.glob(f"ckpt-{step}.*"), self._folder):
            sync(path)
        kept = self._kept(step)
        lines = [
            f'model_checkpoint_path: "ckpt-{step}"',
            *(f'all_model_checkpoint_paths: "ckpt-{n}"' for n in kept[::-1]),
        ]
        # It tells TensorFlow's own tools which ones there are.
        write_text(self._folder / _STATE_FILE, "".join(f"{line}\n" for line in lines))

    def restore(self) -> int:
        """Restores the newest checkpoint that can be read; returns the number of steps done, 0 where there is none.

        Raises: UserError where the checkpoints are of another architecture, none of them can be read, one cannot for a
            reason that is not its own, as too little memory, or there are none though there must have been.
        """
        began = any(self._folder.glob("ckpt-*"))
        sweep(self._folder, _LEFTOVERS, ())
        steps = saved_steps(self._folder)
        for step in steps:
            path = self._folder / f"ckpt-{step}"
            try:
                saved = _read_manifest(self._manifest(step))
            except (OSError, ValueError) as error:
                _pass_over(path, error)
                continue
            self._compare(saved)
            with plain_path(self._folder) as plain:
                try:
                    self._saved_in(plain / path.name).restore(str(plain / path.name)).assert_consumed()
                except _DAMAGE as error:
                    self._compare_names(plain / path.name)
                    _pass_over(path, error)
                    continue
            if step != steps[0]:
                logging.warning("going on from %s", path)
            return int(self._step.numpy())
        if steps or (self._folder / _STATE_FILE).exists():
            raise UserError(
                f"no checkpoint in {str(self._folder)!r} can be read; put a copy of one back, or choose another "
                f"--workdir"
            )
        self._refuse_to_forget(began)
        return 0

    def _refuse_to_forget(self, began):
        """Raises UserError where the log has steps that were saved once: starting anew would clear it.

        Args: began: whether a first save was begun, and killed: then there is a part of it.
        """
        if self._log is None:
            return
        steps = max((row["step"] for row in read_metrics(self._log)), default=0)
        emptied = self._folder.exists() and not began
        if steps and (steps > self._save_every or emptied or (steps == self._save_every and not began)):
            raise UserError(
                f"{str(self._folder)!r} holds no checkpoint, but {str(self._log)!r} has {steps} steps of an earlier "
                f"run; put the checkpoints back, choose another --workdir, or move {self._log.name} and "
                f"{self._log.stem}/ away to start anew here"
            )
        if steps:
            logging.warning("%s: none of its %d steps was saved; they are run again", self._log, steps)

    def _kept(self, step):
        """The steps whose checkpoints stay, the newest first: later ones than this step could not be read."""
        return [one for one in saved_steps(self._folder) if one <= step][: self._keep]

    def _prune(self, step):
        """Removes all but the last checkpoints, and what is left of others."""
        kept = self._kept(step)
        for path in self._folder.glob("ckpt-*"):
            number = _step_of(path)
            if number is not None and number not in kept:
                path.unlink(missing_ok=True)

    def _saved_in(self, path):
        """A tf.train.Checkpoint of all parts but for the numbers that a checkpoint lacks."""
        saved = tf.train.load_checkpoint(str(path))
        lacking = {name for name in self._scalars if not saved.has_tensor(f"{name}/.ATTRIBUTES/VARIABLE_VALUE")}
        return tf.train.Checkpoint(**{name: part for name, part in self._parts.items() if name not in lacking})

    def _manifest(self, step):
        return self._folder / f"ckpt-{step}.json"

    def _describe(self):
        # Paths are not unique, as every block has a qkv/kernel: the second one is PATH#2. The name of the model is left
        # out, as Keras numbers the models of a process.
        shapes: dict[str, list[int]] = {}
        seen: Counter[str] = Counter()
        for variable in self._model.variables:
            path = variable.path.removeprefix(f"{self._model.name}/")
            seen[path] += 1
            shapes[path if seen[path] == 1 else f"{path}#{seen[path]}"] = list(variable.shape)
        return {"variables": shapes, "identity": self.identity}

    def _compare_names(self, path):
        """Raises UserError where a checkpoint can be read but has other parts than this run's: it is not damaged."""
        try:
            names = tf.train.load_checkpoint(str(path)).get_variable_to_shape_map()
        except _DAMAGE:
            return
        there = {name.partition("/")[0] for name in names} - {"_CHECKPOINTABLE_OBJECT_GRAPH"}
        differences = (there ^ {*self._parts, "save_counter"}) - self._scalars.keys()
        if differences:
            name = min(differences)
            theirs, ours = ("a", "not") if name in there else ("no", "one")
            raise UserError(
                f"the checkpoint in {str(self._folder)!r} has {theirs} part {name!r}, this run has {ours}; go on with "
                f"the same settings as before, or use another --workdir"
            )

    def _compare(self, saved):
        present = self._describe()
        shapes, saved_shapes = present["variables"], saved["variables"]
        for name in [*saved_shapes, *shapes]:
            if saved_shapes.get(name) != shapes.get(name):
                raise UserError(
                    f"the checkpoint in {str(self._folder)!r} is of another architecture: variable {name} has shape "
                    f"{saved_shapes.get(name, 'none')} there and {shapes.get(name, 'none')} here; use its config or "
                    f"another --workdir"
                )
        for name, digest in saved["identity"].items():
            if digest != self.identity.get(name):
                raise UserError(
                    f"the checkpoint in {str(self._folder)!r} goes with another {name}, {digest}, not "
                    f"{self.identity.get(name)}; go on with the same data, models and settings as before, or use "
                    f"another --workdir"
                )


def saved_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, the newest first."""
    steps = (_step_of(path) for path in folder.glob("ckpt-*.index"))
    return sorted((step for step in steps if step is not None), reverse=True)


def _step_of(path):
    """The step in a checkpoint file's name; None where the name is another one."""
    match = re.match(r"ckpt-(\d+)\.", path.name)
    return int(match[1]) if match else None


def _read_manifest(path):
    """Raises: OSError or ValueError where it cannot be read."""
    manifest = json.loads(path.read_text())
    parts = [manifest.get(name) for name in ("variables", "identity")] if isinstance(manifest, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"{path.name} is no manifest")
    return manifest


def digest(*parts: bytes | memoryview) -> str:
    """A short fingerprint of bytes."""
    content = hashlib.sha256()
    for number, part in enumerate(parts):
        content.update(b"\0" if number else b"")
        content.update(part)
    return content.hexdigest()[:16]


def weights_digest(model: keras.Layer) -> str:
    """A short fingerprint of a model's weights."""
    return digest(*(np.ascontiguousarray(weight).tobytes() for weight in model.get_weights()))


def _pass_over(path, error):
    """Says that a checkpoint is damaged. Raises: UserError where it may well be good: later saves would remove it."""
    number = next((number for number in _HINDRANCES if os.strerror(number) in str(error)), _HINDERED.get(type(error)))
    if number:
        raise UserError(f"{str(path)!r} cannot be read: {os.strerror(number)}; {_HINDRANCES[number]}; it is as it was")
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    logging.warning("%s cannot be read (%s); trying the one before", path, reason)

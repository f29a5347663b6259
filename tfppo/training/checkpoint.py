"""Checkpoints of a run, saved atomically; one that belongs to another model or dataset is refused."""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfppo.errors import UserError
from tfppo.models.finite import require_finite
from tfppo.training.plain_path import plain_path

_STATE_FILE = "checkpoint"
# What the checkpoint reader of TensorFlow raises for damaged files.
_DAMAGE = (tf.errors.OpError, IndexError, ValueError, AssertionError)


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
    ):
        self._folder, self._keep = Path(folder), keep
        self._model, self._identity = model, identity or {}
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
        """Saves the state after `step` steps. Raises: UserError where a weight is not finite; nothing is saved then."""
        for name, part in self._models.items():
            require_finite(part, f"the checkpoint of step {step}" + (f" ({name})" if name != "model" else ""))
        self._step.assign(step)
        for name, value in scalars.items():
            self._scalars[name].assign(value)
        self._folder.mkdir(parents=True, exist_ok=True)
        # The manifest comes first, and is renamed into place, so that no checkpoint lacks one.
        fresh = self._folder / "manifest.tmp"
        fresh.write_text(json.dumps(self._describe(), indent=1))
        fresh.replace(self._manifest(step))
        # Without TensorFlow's CheckpointManager, which takes a folder's name for a pattern when it looks for files to
        # delete: of a[1] it deletes nothing, and of b*c what lies in other folders.
        self._checkpoint.write(str(self._folder / f"ckpt-{step}"))
        self._prune(step)
        self.on_save(step)

    def restore(self) -> int:
        """Restores the newest checkpoint that can be read; returns the number of steps done, 0 where there is none.

        Raises: UserError where the checkpoints are of another architecture, or none of them can be read.
        """
        for leftover in self._folder.glob("*_temp*"):
            shutil.rmtree(leftover, ignore_errors=True)
        steps = saved_steps(self._folder)
        if not steps and not (self._folder / _STATE_FILE).exists():
            return 0
        for step in steps:
            path = self._folder / f"ckpt-{step}"
            try:
                saved = json.loads(self._manifest(step).read_text())
            except (OSError, ValueError) as error:
                _warn(path, error)
                continue
            self._compare(saved)
            with plain_path(self._folder) as plain:
                try:
                    self._saved_in(plain / path.name).restore(str(plain / path.name)).assert_consumed()
                    return int(self._step.numpy())
                except _DAMAGE as error:
                    self._compare_names(plain / path.name)
                    _warn(path, error)
        raise UserError(
            f"no checkpoint in {str(self._folder)!r} can be read; copy it again from where it is whole, or start anew "
            f"in another --workdir"
        )

    def _prune(self, step):
        """Removes all but the last checkpoints, and those of later steps, which could not be read.

        The state file tells TensorFlow's own tools which ones there are.
        """
        steps = saved_steps(self._folder)
        kept = [one for one in steps if one <= step][: self._keep]
        lines = [
            f'model_checkpoint_path: "ckpt-{step}"',
            *(f'all_model_checkpoint_paths: "ckpt-{n}"' for n in kept[::-1]),
        ]
        fresh = self._folder / f"{_STATE_FILE}.tmp"
        fresh.write_text("".join(f"{line}\n" for line in lines))
        fresh.replace(self._folder / _STATE_FILE)
        for path in self._folder.glob("ckpt-*.*"):
            number = path.name.split("-")[1].split(".")[0]
            if number.isdigit() and int(number) not in kept:
                path.unlink()

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
        return {"variables": shapes, "identity": self._identity}

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
            if digest != self._identity.get(name):
                raise UserError(
                    f"the checkpoint in {str(self._folder)!r} goes with another {name}, {digest}, not "
                    f"{self._identity.get(name)}; go on with the same data, models and settings as before, or use "
                    f"another --workdir"
                )


def saved_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, the newest first."""
    numbers = (path.stem.removeprefix("ckpt-") for path in folder.glob("ckpt-*.index"))
    return sorted((int(number) for number in numbers if number.isdigit()), reverse=True)


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


def _warn(path, error):
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    logging.warning("%s cannot be read (%s); trying the one before", path, reason)

"""Checkpoints of a run, saved atomically; one that belongs to another model or dataset is refused."""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfppo.errors import UserError

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
        self._folder = Path(folder)
        self._model, self._identity = model, identity or {}
        self._scalars = {name: tf.Variable(value, dtype=tf.float64) for name, value in scalars.items()}
        self._step = tf.Variable(0, dtype=tf.int64)
        # Variables one by one: TensorFlow does not find, nor save, what a Keras layer keeps in a list.
        models = {name: [v.value for v in part.variables] for name, part in {"model": model, **(extras or {})}.items()}
        self._parts = {"optimizer": optimizer, "step": self._step, **models, **self._scalars}
        self._checkpoint = tf.train.Checkpoint(**self._parts)
        self._manager = tf.train.CheckpointManager(self._checkpoint, str(folder), max_to_keep=keep)

    @property
    def scalars(self) -> dict[str, float]:
        """The numbers of the last save or restore."""
        return {name: float(variable.numpy()) for name, variable in self._scalars.items()}

    def save(self, step: int, **scalars: float) -> None:
        """Saves the state after `step` steps."""
        self._step.assign(step)
        for name, value in scalars.items():
            self._scalars[name].assign(value)
        self._folder.mkdir(parents=True, exist_ok=True)
        # The manifest comes first, and is renamed into place, so that no checkpoint lacks one.
        fresh = self._folder / "manifest.tmp"
        fresh.write_text(json.dumps(self._describe(), indent=1))
        fresh.replace(self._manifest(step))
        self._manager.save(checkpoint_number=step)
        for manifest in self._folder.glob("ckpt-*.json"):
            if not manifest.with_suffix(".index").exists():
                manifest.unlink()

    def restore(self) -> int:
        """Restores the newest checkpoint that can be read; returns the number of steps done, 0 where there is none.

        Raises: UserError where the checkpoints are of another architecture, or none of them can be read.
        """
        for leftover in self._folder.glob("*_temp*"):
            shutil.rmtree(leftover, ignore_errors=True)
        steps = sorted((int(path.stem.split("-")[1]) for path in self._folder.glob("ckpt-*.index")), reverse=True)
        if not steps and not self._manager.latest_checkpoint:
            return 0
        for step in steps:
            path = self._folder / f"ckpt-{step}"
            try:
                saved = json.loads(self._manifest(step).read_text())
            except (OSError, ValueError) as error:
                _warn(path, error)
                continue
            self._compare(saved)
            try:
                self._saved_in(path).restore(str(path)).assert_consumed()
                return int(self._step.numpy())
            except _DAMAGE as error:
                _warn(path, error)
        raise UserError(f"no checkpoint in {str(self._folder)!r} can be read; remove the folder to start anew")

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


def digest(*parts: bytes) -> str:
    """A short fingerprint of bytes."""
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def weights_digest(model: keras.Layer) -> str:
    """A short fingerprint of a model's weights."""
    return digest(*(np.ascontiguousarray(weight).tobytes() for weight in model.get_weights()))


def _warn(path, error):
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    logging.warning("%s cannot be read (%s); trying the one before", path, reason)

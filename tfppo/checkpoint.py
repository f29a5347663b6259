"""Checkpoints of a run: saved atomically, found again by running the same command, refused where they do not fit."""

import json
import shutil
from pathlib import Path

import tensorflow as tf
from absl import logging

from tfppo.errors import UserError

_MANIFEST = "manifest.json"
# What damaged files raise: see the error classes of TensorFlow's checkpoint reader.
_DAMAGE = (tf.errors.OpError, IndexError, ValueError, AssertionError)


class CheckpointKeeper:
    """Saves and restores a model, its optimizer and a few scalars.

    Args:
        folder: where the checkpoints go.
        model: its variables' names and shapes are kept beside the checkpoints, and compared before one is read.
        scalars: names and first values of the numbers that belong to the state; see `scalars`.
    """

    def __init__(self, folder, *, model, optimizer, scalars, keep):
        self._folder = Path(folder)
        self._model = model
        self._scalars = {name: tf.Variable(value, dtype=tf.float64) for name, value in scalars.items()}
        self._step = tf.Variable(0, dtype=tf.int64)
        self._checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, step=self._step, **self._scalars)
        self._manager = tf.train.CheckpointManager(self._checkpoint, str(folder), max_to_keep=keep)

    @property
    def scalars(self) -> dict[str, float]:
        """The numbers of the last save or restore."""
        return {name: float(variable.numpy()) for name, variable in self._scalars.items()}

    def save(self, step: int, **scalars: float):
        """Saves the state after `step` steps."""
        self._step.assign(step)
        for name, value in scalars.items():
            self._scalars[name].assign(value)
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / _MANIFEST).write_text(json.dumps(self._describe(), indent=1))
        self._manager.save(checkpoint_number=step)

    def restore(self) -> int:
        """Restores the newest checkpoint that can be read; returns the number of steps done, 0 where there is none.

        Raises: UserError where the checkpoints are of another architecture, or none of them can be read.
        """
        for leftover in self._folder.glob("*_temp*"):
            shutil.rmtree(leftover, ignore_errors=True)
        paths = sorted(self._folder.glob("ckpt-*.index"), key=lambda path: int(path.stem.split("-")[1]), reverse=True)
        if not paths:
            return 0
        self._compare_architecture()
        for path in paths:
            try:
                self._checkpoint.restore(str(path.with_suffix(""))).assert_consumed()
                return int(self._step.numpy())
            except _DAMAGE as error:
                logging.warning("%s cannot be read (%s); trying the one before", path, str(error).splitlines()[0])
        raise UserError(f"no checkpoint in {str(self._folder)!r} can be read; remove the folder to start anew")

    def _describe(self):
        return {variable.path: list(variable.shape) for variable in self._model.variables}

    def _compare_architecture(self):
        path = self._folder / _MANIFEST
        try:
            saved = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise UserError(
                f"{str(path)!r} cannot be read: {error}; remove {str(self._folder)!r} to start anew"
            ) from error
        present = self._describe()
        for name in [*saved, *present]:
            if saved.get(name) != present.get(name):
                raise UserError(
                    f"the checkpoint in {str(self._folder)!r} is of another architecture: variable {name} has shape "
                    f"{saved.get(name, 'none')} there and {present.get(name, 'none')} here; use its config or another "
                    f"--workdir"
                )

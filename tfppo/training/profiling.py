"""A profile of some steps, for TensorBoard's profiler: what the devices did when, and what they waited for."""

from contextlib import ExitStack
from pathlib import Path
from typing import Self

import tensorflow as tf

from tfppo.cluster import this_cluster


class Profiler:
    """Context that records some steps of a training: from its second one on, as the first traces and compiles.

    Args: folder: the log's, which gets `plugins/profile`; num_steps: to record, by the chief alone; 0: nothing is.
    """

    def __init__(self, folder: Path, num_steps: int):
        recorded = num_steps if this_cluster().is_chief else 0
        self._folder, self._recorded = folder, range(2, 2 + recorded)
        self._number = 0  # of the step, from 1 on
        self._recording, self._step = ExitStack(), ExitStack()

    def begins(self) -> None:
        """The next step begins, and the one before has ended."""
        self._step.close()
        self._number += 1
        if self._number == self._recorded.start and self._recorded:
            self._recording.enter_context(tf.profiler.experimental.Profile(str(self._folder)))
        if self._number == self._recorded.stop:
            self._recording.close()
        if self._number in self._recorded:
            self._step.enter_context(tf.profiler.experimental.Trace("step", step_num=self._number, _r=1))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._step.close()
        self._recording.close()

"""Starts TensorFlow without the notes that its libraries print while they are loaded."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from tfppo.computation.kept_programs import keep_programs

LEVEL = "TF_CPP_MIN_LOG_LEVEL"
# These come before TensorFlow looks at its level: whether there are CUDA drivers, which instructions it uses.
_NOTE = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog|I\d{4} |To enable the following instructions"
)


def start_tensorflow(*, keeps_programs: bool = False, deterministic: bool = False) -> None:
    """Imports TensorFlow and Keras. Its notes and warnings come where TF_CPP_MIN_LOG_LEVEL is 0 or 1.

    Errors that end a step are Python's exceptions, and those that end the process are printed at any level. Products in
    float32 are exact to float32.

    Args: keeps_programs: whether programs that XLA compiles are kept for later processes, those of `deterministic` runs
        by themselves; see `keep_programs`.
    """
    if keeps_programs:
        keep_programs(deterministic=deterministic)
    wanted = os.environ.setdefault(LEVEL, "3") in ("0", "1")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    with nullcontext() if wanted else without_notes():
        import keras  # noqa: F401
        import tensorflow as tf

        found = tf.config.list_physical_devices("GPU")
        from tfppo.computation.devices import round_products

        round_products(tensorfloat32=False)
    if not found:
        tell_of_unused_card()


def tell_of_unused_card(device: str = "/dev/nvidia0") -> None:
    """Warns where a GPU is there that TensorFlow has not found, unless CUDA_VISIBLE_DEVICES hides it."""
    if Path(device).exists() and "CUDA_VISIBLE_DEVICES" not in os.environ:
        text = "there is a GPU, but TensorFlow finds none: pip install 'tfppo[gpu]' brings CUDA's libraries"
        print(f"warning: {text}; {LEVEL}=0 makes TensorFlow say what is missing", file=sys.stderr)


@contextmanager
def without_notes() -> Iterator[None]:
    """Leaves notes of TensorFlow's libraries out of what is written to the standard error; the rest passes.

    A fork does it, so that the last words of a process that is killed while it loads them are not lost.
    """
    sys.stderr.flush()
    reading, writing = os.pipe()
    real = os.dup(2)
    child = os.fork()
    if not child:
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other one
            os.close(writing)
            _pass_on(reading, real)
        finally:  # whatever happens: or it would go on as a second copy of the program
            os._exit(0)
    os.close(reading)
    os.dup2(writing, 2)
    os.close(writing)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(real, 2)
        os.close(real)
        os.waitpid(child, 0)


def _pass_on(reading, real):
    with os.fdopen(reading, "rb") as lines:
        for line in lines:
            if not _NOTE.match(line):
                os.write(real, line)

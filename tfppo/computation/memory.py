"""What tensors took of the memory of the GPUs, as TensorFlow's own allocator counts it.

That allocator takes nearly all of a card at the start and hands it out, so that tools of the driver show the whole
card. Its own count has what a run needed: tensors, workspaces of compiled programs, and what is lost by rounding up.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

from tfppo.errors import UserError

GIGA = 1e9
_REMEDY = (
    "raise ppo.accumulation_steps, set ppo.gradient_checkpointing, or lower a batch size (ppo.rollout_batch_size, "
    "lm.batch_size, reward_model.batch_size, evaluation.batch_size) or a length; `tfppo estimate` says what fits. "
    "What was saved is intact"
)


def device_peak_gb() -> float | None:
    """The most memory that was in use on a GPU since the start or `restart_device_peak`, in GB of 1e9 bytes.

    Of several GPUs the one that needed most; None where there is no GPU.
    """
    peaks = [tf.config.experimental.get_memory_info(name)["peak"] for name in _gpus()]
    return max(peaks) / GIGA if peaks else None


def restart_device_peak() -> None:
    """Begins the count of `device_peak_gb` anew, from what is in use now."""
    for name in _gpus():
        tf.config.experimental.reset_memory_stats(name)


def device_figures() -> dict[str, float]:
    """The peak as a metric {tag: GB}; nothing where there is no GPU."""
    peak = device_peak_gb()
    return {} if peak is None else {"memory/device_peak_gb": peak}


def memory_ran_out(error: tf.errors.OpError) -> bool:
    """Whether an error of TensorFlow is about memory: XLA's have another class than those of operations."""
    return isinstance(error, tf.errors.ResourceExhaustedError) or "RESOURCE_EXHAUSTED" in str(error)


@contextmanager
def no_memory_told() -> Iterator[None]:
    """Raises UserError in place of TensorFlow's errors where memory ran out."""
    try:
        yield
    except tf.errors.OpError as error:
        if not memory_ran_out(error):
            raise
        raise UserError(f"memory ran out ({str(error).strip().splitlines()[0][:200]}); {_REMEDY}") from error


def _gpus():
    return [f"GPU:{number}" for number in range(len(tf.config.list_logical_devices("GPU")))]

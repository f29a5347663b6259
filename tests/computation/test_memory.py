"""The peak of the devices' memory, with a stand-in for TensorFlow's count, which CPUs do not have."""

import pytest
import tensorflow as tf

from tfppo.computation.memory import device_figures, device_peak_gb, no_memory_told, restart_device_peak
from tfppo.errors import UserError
from tfppo.training.metrics import explain


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs: bytes in use and their peak, by name."""
    counts = {"GPU:0": dict(current=1_000_000_000, peak=3_500_000_000), "GPU:1": dict(current=0, peak=4_250_000_000)}
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: list(counts) if kind == "GPU" else [])
    monkeypatch.setattr(tf.config.experimental, "get_memory_info", lambda name: dict(counts[name]))
    monkeypatch.setattr(
        tf.config.experimental, "reset_memory_stats", lambda name: counts[name].update(peak=counts[name]["current"])
    )
    return counts


def test_the_peak_is_that_of_the_fullest_gpu(gpus):
    assert device_peak_gb() == 4.25
    assert device_figures() == {"memory/device_peak_gb": 4.25}
    assert "GB" in explain("memory/device_peak_gb")


def test_the_count_begins_anew_on_every_gpu(gpus):
    restart_device_peak()
    assert device_peak_gb() == 1.0
    gpus["GPU:0"]["peak"] = 2_000_000_000
    assert device_peak_gb() == 2.0


def test_without_a_gpu_nothing_is_counted_and_nothing_is_logged():
    assert not tf.config.list_logical_devices("GPU")
    restart_device_peak()
    assert device_peak_gb() is None
    assert device_figures() == {}


@pytest.mark.parametrize(
    "error",
    [
        tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[1]\nmore"),
        tf.errors.InternalError(None, None, "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte"),
    ],
)
def test_where_memory_runs_out_it_is_said_in_a_line_with_what_to_do(error):
    with (
        pytest.raises(UserError, match=r"^memory ran out \(.*\); raise ppo.accumulation_steps") as told,
        no_memory_told(),
    ):
        raise error
    assert "\n" not in str(told.value)


def test_other_errors_stay_what_they_are():
    with pytest.raises(tf.errors.InternalError, match="another"), no_memory_told():
        raise tf.errors.InternalError(None, None, "another")

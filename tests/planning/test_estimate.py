"""What must hold of the calculator whatever the numbers, and the user's mistakes."""

import dataclasses
import math

import pytest
from estimate_cases import DEVICE, WORKLOAD, of, seconds_of

from tfppo.errors import UserError


def test_more_devices_take_less_time_and_memory():
    results = [of(rollout_batch_size=64, num_replicas=count) for count in (1, 2, 4, 8)]
    for fewer, more in zip(results, results[1:], strict=False):
        mine, theirs = seconds_of(more), seconds_of(fewer)
        for name in ("prompts", "decoding, KV cache", "forward", "forward and backward"):
            assert mine[name] == pytest.approx(theirs[name] / 2)
        assert mine["decoding, weights"] <= theirs["decoding, weights"]
        assert more.seconds < fewer.seconds
        assert more.memory.total < fewer.memory.total
        assert more.memory.held == fewer.memory.held  # mirrored: no device holds less


@pytest.mark.parametrize("field", ["rollout_batch_size", "prompt_length", "response_length", "ppo_epochs"])
def test_more_work_takes_more_time(field):
    more = of(**{field: 2 * getattr(WORKLOAD, field)})
    assert more.seconds > of().seconds
    assert more.memory.total > of().memory.total or field == "ppo_epochs"


def test_smaller_parts_need_less_memory():
    parts = [of(rollout_batch_size=64, accumulation_steps=count).memory.phases["gradients"] for count in (2, 4, 8)]
    for larger, smaller in zip(parts, parts[1:], strict=False):
        assert smaller["activations"] == larger["activations"] / 2
        assert smaller["logits or scores"] == larger["logits or scores"] / 2


def test_bfloat16_moves_fewer_bytes():
    slow = dataclasses.replace(DEVICE, bandwidth_gb_s=1e-6)
    full, half = seconds_of(of(device=slow)), seconds_of(of(device=slow, dtype="mixed_bfloat16"))
    for name in ("decoding, weights", "decoding, KV cache"):
        assert half[name] == pytest.approx(full[name] / 2)
    long = dict(prompt_length=100, response_length=100)
    assert of(**long, dtype="mixed_bfloat16").memory.total < of(**long).memory.total


@pytest.mark.parametrize(
    ("field", "value", "names"),
    [
        ("update_efficiency", 2 * 0.5, {"prompts", "forward", "forward and backward"}),
        ("decode_efficiency", 2 * 0.25, {"decoding, weights", "decoding, KV cache"}),
        ("update_peak_tflops", 2 * 1e-6, {"forward and backward"}),
    ],
)
def test_twice_the_speed_halves_the_time_of_its_spans(field, value, names):
    better = seconds_of(of(device=dataclasses.replace(DEVICE, **{field: value})))
    for name, seconds in seconds_of(of()).items():
        assert better[name] == pytest.approx(seconds / 2 if name in names else seconds)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rollout_batch_size", 0, r"workload\.rollout_batch_size is 0; it must be above 0"),
        ("prompt_length", 0, r"workload\.prompt_length is 0; .*above 0"),
        ("response_length", -1, r"workload\.response_length is -1; .*above 0"),
        ("ppo_epochs", 0, r"workload\.ppo_epochs is 0; .*above 0"),
        ("num_minibatches", 3, r"workload\.num_minibatches is 3; it must divide rollout_batch_size, which is 8"),
        ("accumulation_steps", 3, r"\.accumulation_steps is 3; .*rollout_batch_size / num_minibatches, which is 4"),
        ("num_replicas", 4, r"\.num_replicas is 4; .* / num_minibatches / accumulation_steps, which is 2"),
        ("dtype", "float16", r"workload\.dtype is 'float16'; choose one of float32, mixed_bfloat16"),
        ("update_dtype", "auto", r"workload\.update_dtype is 'auto'; choose one of float32, mixed_bfloat16"),
        ("critic", "none", r"workload\.critic is 'none'; choose one of shared, separate"),
        ("native", True, r"workload\.native is True; it is for mixed_bfloat16 on one CPU; choose those, or False"),
        ("peak_tflops", 0, r"device\.peak_tflops is 0; .*above 0"),
        ("update_peak_tflops", 0, r"device\.update_peak_tflops is 0; .*above 0"),
        ("bandwidth_gb_s", math.inf, r"device\.bandwidth_gb_s is inf; .*finite"),
        ("memory_gb", -1, r"device\.memory_gb is -1; .*above 0"),
        ("interconnect_gb_s", math.nan, r"device\.interconnect_gb_s is nan; .*above 0"),
        ("update_efficiency", 0, r"device\.update_efficiency is 0; .*above 0 and at most 1"),
        ("decode_efficiency", 40, r"device\.decode_efficiency is 40; .*above 0 and at most 1"),
        ("base_memory_gb", -0.5, r"device\.base_memory_gb is -0\.5; .*not negative"),
        ("allocator", "arena", r"device\.allocator is 'arena'; choose one of pool, growing"),
    ],
)
def test_wrong_numbers(field, value, message):
    workload, device = (
        dataclasses.replace(part, **{field: value}) if hasattr(part, field) else part for part in (WORKLOAD, DEVICE)
    )
    with pytest.raises(UserError, match=message):
        of(workload, device)

"""Learning rates, by hand."""

import math

import pytest

from tfppo.training.schedules import scheduled_rate


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (dict(schedule="constant"), [8.0, 8.0, 8.0, 8.0]),
        (dict(schedule="constant", floor=0.5), [8.0, 8.0, 8.0, 8.0]),
        (dict(schedule="linear"), [8.0, 6.0, 4.0, 2.0]),  # the first in full, the last 1/N of it
        (dict(schedule="linear", floor=0.5), [8.0, 7.0, 6.0, 5.0]),
        (dict(schedule="cosine"), [8.0, 4 + 4 * math.sqrt(0.5), 4.0, 4 - 4 * math.sqrt(0.5)]),
        (dict(schedule="cosine", floor=0.25), [8.0, 5 + 3 * math.sqrt(0.5), 5.0, 5 - 3 * math.sqrt(0.5)]),
        (dict(schedule="linear", warmup=2), [4.0, 8.0, 8.0, 4.0]),
        (dict(schedule="constant", warmup=4), [2.0, 4.0, 6.0, 8.0]),
        (dict(schedule="linear", warmup=1, floor=0.1), [8.0, 8.0, 5.6, 3.2]),
    ],
    ids=str,
)
def test_rates_of_four_updates(settings, expected):
    assert [scheduled_rate(step, 4, peak=8.0, **settings) for step in range(4)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_floor_is_what_the_step_after_the_last_would_have(schedule):
    assert scheduled_rate(10, 10, peak=2.0, schedule=schedule, floor=0.1, warmup=3) == pytest.approx(0.2)


def test_a_run_of_warmup_alone():
    assert scheduled_rate(3, 4, peak=2.0, schedule="linear", warmup=4) == 2.0
    assert scheduled_rate(4, 4, peak=2.0, schedule="linear", warmup=4) == 2.0

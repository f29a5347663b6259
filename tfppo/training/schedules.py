"""Learning-rate schedules."""

import math


def scheduled_rate(
    step: int, num_steps: int, *, peak: float, schedule: str, warmup: int = 0, floor: float = 0.0
) -> float:
    """The learning rate of update `step` of `num_steps`, counted from 0.

    Linear warmup to the peak, then "linear" or "cosine" decay to `floor` times the peak, or "constant". The first
    update after warmup has the full rate; the floor would be reached one step after the last.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(num_steps - warmup, 1)
    shares = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
    }
    share = shares[schedule]
    return peak * (share if schedule == "constant" else floor + (1.0 - floor) * share)

"""Learning rates by step."""

import math


def scheduled_rate(
    step: int, num_steps: int, *, peak: float, schedule: str, warmup: int = 0, floor: float = 0.0
) -> float:
    """The rate of the step-th of `num_steps` updates, counted from 0.

    Linear warmup to the peak; then linear or cosine decay towards `floor` times the peak, which the step after the last
    would have (the first update after warmup has the full rate), or "constant".
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

"""A training that has diverged ends with the reason, before anything of that is saved."""

import math

from tfppo.errors import UserError

# A mean training loss above so many times that of a model that knows nothing is no training any more: where toy models
# still learn it is about 1 at most, where they diverge 20 and more. Overfitting is something else: it shows in the
# held-out loss, and the training loss is low.
_FACTOR = 3.0


class DivergenceWatch:
    """Looks at each step and at each save of a training.

    Args:
        chance: the loss of a model that knows nothing.
        setting: the learning rate's name; learning_rate: its value.
    """

    def __init__(self, chance: float, setting: str, learning_rate: float):
        self._chance, self._remedy = chance, f"lower {setting} {learning_rate:g}; what was saved before is intact"
        self._losses: list[float] = []  # since the last save

    def check_step(self, step: int, loss: float, norm: float) -> None:
        """Raises UserError where the loss of step number `step` or its gradient is not finite."""
        self._losses.append(loss)
        for name, value in (("gradient", norm), ("loss", loss)):
            if not math.isfinite(value):
                raise UserError(f"step {step} had a {name} that is not finite, and was left out; {self._remedy}")

    def check_before_saving(self, step: int, held_out_loss: float | None) -> None:
        """Raises UserError where the training loss since the last save, or a held-out loss, says that it diverged."""
        mean = sum(self._losses) / max(len(self._losses), 1)
        if held_out_loss is not None and not math.isfinite(held_out_loss):
            raise UserError(
                f"training has diverged by step {step}: the held-out loss is {held_out_loss}; {self._remedy}"
            )
        if mean > _FACTOR * self._chance:
            raise UserError(
                f"training has diverged by step {step}: the mean training loss since the last save is {mean:.3g}, and "
                f"that of a model that knows nothing {self._chance:.3g}; {self._remedy}"
            )
        self._losses.clear()

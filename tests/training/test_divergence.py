"""A training that has diverged ends with the reason."""

import math

import pytest

from tfppo.errors import UserError
from tfppo.training.divergence import DivergenceWatch


def make_watch():
    return DivergenceWatch(math.log(300), "lm.learning_rate", 3e-3)


@pytest.mark.parametrize(
    ("loss", "norm", "what"), [(math.nan, math.nan, "gradient"), (4.0, math.inf, "gradient"), (math.inf, 1.0, "loss")]
)
def test_a_step_without_numbers(loss, norm, what):
    watch = make_watch()
    watch.check_step(6, 5.7, 1.0)
    with pytest.raises(UserError, match=f"step 7 had a {what} that is not finite.*; lower lm.learning_rate 0.003;"):
        watch.check_step(7, loss, norm)


@pytest.mark.parametrize("held_out", [math.nan, math.inf])
def test_a_held_out_loss_that_is_no_number(held_out):
    with pytest.raises(UserError, match=f"diverged by step 7: the held-out loss is {held_out}; lower lm"):
        make_watch().check_before_saving(7, held_out)


def test_a_loss_far_above_chance():
    """Of 300 tokens, a model that knows nothing has a loss of 5.70; three times that is 17.1."""
    watch = make_watch()
    for step, loss in enumerate((5.0, 17.0, 29.0)):  # on average 17
        watch.check_step(step, loss, 1.0)
    watch.check_before_saving(3, 40.0)  # overfitting, perhaps
    for step, loss in enumerate((5.0, 17.0, 29.5)):  # 17.17, since the last save
        watch.check_step(step, loss, 1.0)
    with pytest.raises(UserError, match="training loss since the last save is 17.2, .* knows nothing 5.7; lower lm"):
        watch.check_before_saving(6, None)

"""What ends a call of the rewards is told, also where the save after it fails."""

from types import SimpleNamespace

import pytest

from tfppo.errors import UserError
from tfppo.ppo.trainer import PpoTrainer


def trainer(save):
    """As much of a trainer as the save needs."""
    collector = SimpleNamespace(shaper=SimpleNamespace(state={}))
    return SimpleNamespace(collector=collector, saved=4, num_iterations=8, save=save)


def no_space(done, kl_coef, finished):
    raise UserError("the checkpoint of step 6 cannot be written: No space left on device; the one of step 4 is intact")


METRICS = SimpleNamespace(flush=lambda: None)


@pytest.mark.parametrize(
    ("error", "first"),
    [
        (UserError("reward judge raised HTTPError: 500"), "reward judge raised HTTPError: 500"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
    ],
)
def test_where_the_save_after_an_error_fails_too_both_are_told(error, first):
    with pytest.raises(UserError) as raised, PpoTrainer.saved_first(trainer(no_space), 6, 0.05, METRICS):
        raise error
    assert str(raised.value) == (
        f"{first}; after that, the checkpoint of step 6 cannot be written: No space left on device; the one of step 4 "
        f"is intact"
    )
    assert raised.value.__cause__ is error


def test_where_the_save_works_the_error_alone_is_told():
    saves = []
    with (
        pytest.raises(UserError, match="^reward judge; saved after 6 of 8 iterations: run the same command"),
        PpoTrainer.saved_first(trainer(lambda *values: saves.append(values)), 6, 0.05, METRICS),
    ):
        raise UserError("reward judge")
    assert saves == [(6, 0.05, False)]

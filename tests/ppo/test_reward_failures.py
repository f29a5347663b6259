"""A run whose reward fails: it ends with its last iteration saved, and goes on as if nothing had happened."""

import os
import re
import signal
import threading

import numpy as np
import pytest
from test_trainer import BATCH, ITERATIONS, byte_mean, make_trainer, rows

from tfppo.errors import UserError
from tfppo.training.interrupt import Interrupted

# Moments, a KL coefficient and an average: all that a checkpoint holds beside weights and optimizer.
STATE = dict(reward=dict(normalize=True), adaptive_kl_target=0.01, adaptive_kl_horizon=100, ema_decay=0.75, ema=True)


def fails_at(number, error):
    """`byte_mean` that raises in one call."""
    calls = []

    def function(prompts, responses):
        calls.append(None)
        if len(calls) == number:
            raise error
        return byte_mean(prompts, responses)

    return function


def what_is_left(trainer, folder):
    weights = [*trainer.learner.policy.get_weights(), *trainer.ema.get_weights()]
    weights += [np.asarray(variable) for variable in trainer.learner.optimizer.variables]
    timeless = [{tag: value for tag, value in row.items() if not tag.startswith("time/")} for row in rows(folder)]
    return weights, timeless, trainer.keeper.scalars


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    trainer = make_trainer(folder, **STATE)
    trainer.train()
    return what_is_left(trainer, folder)


def assert_goes_on_as_if_nothing_had_happened(folder, straight):
    assert (folder / "checkpoints" / "ckpt-3.index").exists()  # checkpoint_every is 2
    assert len(rows(folder)) == 3
    resumed = make_trainer(folder, **STATE)
    assert resumed.done == 3
    resumed.train()
    weights, metrics, scalars = what_is_left(resumed, folder)
    for weight, expected in zip(weights, straight[0], strict=True):
        np.testing.assert_array_equal(weight, expected)
    assert metrics == straight[1] and scalars == straight[2]


def test_it_is_saved_first_and_goes_on_bit_for_bit(straight, tmp_path):
    trainer = make_trainer(tmp_path, fails_at(4, OSError("HTTP 500")), **STATE)
    with pytest.raises(UserError) as error:
        trainer.train()
    assert re.fullmatch(
        r"reward toy raised OSError: HTTP 500 at \S*test_reward_failures.py:\d+, called with 8 responses, the first "
        r"being prompt '.*' and response '.*'; mend the function, or let it be called again with reward.retries; "
        rf"saved after 3 of {ITERATIONS} iterations: run the same command again to go on",
        str(error.value),
    ), error.value
    assert_goes_on_as_if_nothing_had_happened(tmp_path, straight)


def test_a_second_ctrl_c_while_collecting_loses_nothing_either(straight, tmp_path):
    """It comes at the last moment, when the moments of the scores have moved already: they go back."""
    trainer = make_trainer(tmp_path, **STATE)
    collect = trainer.collect

    def interrupted(step):
        collected = collect(step)
        if step == 3:
            raise KeyboardInterrupt
        return collected

    trainer.collect = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert_goes_on_as_if_nothing_had_happened(tmp_path, straight)


def test_a_failure_before_the_first_update_has_nothing_to_save(tmp_path):
    with pytest.raises(UserError, match="reward toy raised OSError: no") as error:
        make_trainer(tmp_path, fails_at(1, OSError("no"))).train()
    assert "saved" not in str(error.value) and not (tmp_path / "checkpoints").exists()


def test_the_second_ctrl_c_is_heard_while_a_reward_hangs(tmp_path):
    """The first signal lets the iteration end, which it cannot; the second one ends it, with what there is saved."""
    release, calls = threading.Event(), []

    def hangs(prompts, responses):
        calls.append(None)
        if len(calls) == 2:
            for delay in (0.1, 1.0):
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()
            release.wait(30)
        return byte_mean(prompts, responses)

    trainer = make_trainer(tmp_path, hangs)
    with pytest.raises((KeyboardInterrupt, Interrupted)) as end:
        trainer.train()
    assert end.type is KeyboardInterrupt and not release.is_set()
    assert make_trainer(tmp_path).done == 1
    release.set()


def test_rewards_get_the_columns_of_their_rows(tmp_path):
    seen = []

    def exact(prompts, responses, number):
        seen.append((prompts, number))
        return byte_mean(prompts, responses)

    trainer = make_trainer(tmp_path, exact, estimator="rloo", group_size=4, value_coef=0.0, total_episodes=2 * BATCH)
    trainer.train()
    assert len(seen) == 2
    for prompts, numbers in seen:
        # A prompt of number n is the tokens 2 + n and 3 + n, the bytes n and n + 1.
        assert prompts == [bytes([n, n + 1]).decode() for n in numbers] and len(prompts) == BATCH
        assert numbers == [numbers[0]] * 4 + [numbers[4]] * 4
    for row in rows(tmp_path):
        assert 0 < row["time/reward"] <= row["time/rollout"]
        assert row["time/reward_share"] == pytest.approx(
            row["time/reward"] / (row["time/rollout"] + row["time/update"]), rel=1e-6
        )

"""What a PPO update must not depend on: padding, what stands there, and numbers that are not finite."""

import numpy as np
import pytest
import tensorflow as tf
from ppo_cases import (
    BATCH_SIZE,
    KL_COEF,
    SEED,
    assert_same_weights,
    largest_change,
    make_learner,
    make_rollout,
    run,
)

from tfppo.ppo.types import Rollout


def test_more_padding_on_the_right_changes_nothing():
    rollout, learner = make_rollout(), make_learner()
    wider = {}
    for name, value in rollout._asdict().items():
        if name.startswith("prompt") or value.shape.rank == 1:
            wider[name] = value
        else:
            wider[name] = tf.pad(value, [[0, 0], [0, 3]])
    expected, statistics = run(learner, rollout)
    weights, same = run(learner, Rollout(**wider))
    assert_same_weights(weights, expected)
    for name, value in statistics.items():
        np.testing.assert_allclose(same[name], value, rtol=1e-4, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("garbage", [50.0, -1e9, np.nan], ids=str)
def test_what_stands_at_the_padding_changes_nothing(garbage):
    rollout, learner = make_rollout(), make_learner()
    real = rollout.response_mask > 0
    dirty = rollout._replace(
        prompt_ids=tf.where(rollout.prompt_mask > 0, rollout.prompt_ids, 7),
        response_ids=tf.where(real, rollout.response_ids, 9),
        **{name: tf.where(real, getattr(rollout, name), garbage) for name in ("logprobs", "values", "ref_logprobs")},
    )
    expected, statistics = run(learner, rollout)
    weights, same = run(learner, dirty)
    assert same["policy/steps_taken"] == 1.0
    assert_same_weights(weights, expected)
    for name, value in statistics.items():
        np.testing.assert_allclose(same[name], value, rtol=1e-4, atol=2e-6, err_msg=name)


def test_a_rollout_that_is_not_finite_changes_nothing():
    learner, rollout = make_learner(), make_rollout()
    poisoned = rollout._replace(scores=tf.fill([BATCH_SIZE], np.nan))
    weights, statistics = run(learner, poisoned)
    assert statistics["policy/steps_taken"] == 0.0
    for weight, start in zip(weights, learner.start, strict=True):
        np.testing.assert_array_equal(weight, start)
    assert learner.optimizer.iterations.numpy() == 0
    for variable in learner.optimizer.variables:
        assert np.isfinite(variable.numpy()).all()
    # And the next rollout is learned from as if the bad one had not been.
    learner.update(rollout, SEED, KL_COEF, tf.constant(1.0))
    after = learner.policy.get_weights()
    expected, _ = run(learner, rollout)
    assert_same_weights(after, expected, atol=0.0)


def test_only_the_minibatch_that_is_not_finite_is_skipped():
    learner, rollout = make_learner(whiten_advantages=False), make_rollout()
    scores = rollout.scores.numpy()
    scores[3] = np.inf
    weights, statistics = run(learner, rollout._replace(scores=tf.constant(scores)))
    assert statistics["policy/steps_taken"] == 0.5  # one of the two minibatches of each epoch
    assert learner.optimizer.iterations.numpy() == 2
    assert all(np.isfinite(weight).all() for weight in weights)
    assert largest_change(weights, learner.start) > 1e-3

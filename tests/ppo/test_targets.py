"""Advantages, returns and statistics of a rollout, against plain loops over its tokens."""

import numpy as np
import pytest
import tensorflow as tf
from ppo_cases import BATCH_SIZE, make_config, make_rollout
from ppo_reference import naive_targets

from tfppo.config import RewardConfig
from tfppo.ppo.targets import prepare_targets


@pytest.mark.parametrize("whiten_rewards", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"whiten_advantages": False},
        {},
        {"whiten_unbiased": True},
        {"kl_estimator": "k2"},
        {"kl_estimator": "k3", "whiten_advantages": False},
        {"kl_estimator": "abs"},
    ],
    ids=str,
)
def test_targets_are_those_of_the_equations(whiten_rewards, changes):
    rollout = make_rollout()
    config = make_config(gamma=0.97, **changes)
    targets, _ = prepare_targets(rollout, config, RewardConfig(whiten=whiten_rewards), 0.3)
    advantages, returns = naive_targets(rollout, config, 0.3, whiten_rewards)
    np.testing.assert_allclose(targets.advantages, advantages, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(targets.returns, returns, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(targets.critic_mask, rollout.response_mask)
    np.testing.assert_array_equal(targets.ref_logprobs, rollout.ref_logprobs)


def test_targets_of_dense_scores():
    rollout, config = make_rollout(), make_config(whiten_advantages=False)
    scores = np.random.default_rng(8).normal(0.0, 1.0, rollout.values.shape).astype(np.float32)
    rollout = rollout._replace(scores=tf.constant(scores))
    targets, statistics = prepare_targets(rollout, config, RewardConfig(), 0.3)
    advantages, returns = naive_targets(rollout, config, 0.3)
    np.testing.assert_allclose(targets.advantages, advantages, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(targets.returns, returns, rtol=1e-4, atol=1e-5)
    total = (scores * rollout.response_mask.numpy()).sum(axis=1).mean()
    np.testing.assert_allclose(statistics["objective/shaped_score"], total, rtol=1e-5)


def test_the_penalty_is_the_estimate_that_was_chosen():
    rollout, coefficient = make_rollout(), 0.3
    mask, d = rollout.response_mask.numpy(), (rollout.logprobs - rollout.ref_logprobs).numpy()
    k3 = ((np.exp(-d) - 1 + d) * mask).sum(axis=1)
    _, statistics = prepare_targets(rollout, make_config(kl_estimator="k3"), RewardConfig(), coefficient)
    expected = (rollout.scores.numpy() - coefficient * k3).mean()
    np.testing.assert_allclose(statistics["objective/rlhf_reward"], expected, rtol=1e-4)
    # What is reported, and what the controller follows, is the summed log-ratio all the same.
    np.testing.assert_allclose(statistics["objective/kl"], (d * mask).sum(axis=1).mean(), rtol=1e-4)


def test_statistics_of_a_rollout():
    rollout = make_rollout()
    _, statistics = prepare_targets(rollout, make_config(), RewardConfig(), 0.3)
    advantages, returns = naive_targets(rollout, make_config(whiten_advantages=False), 0.3)
    mask = rollout.response_mask.numpy() == 1
    logprobs, ref_logprobs, values = (
        array.numpy().astype(np.float64) for array in (rollout.logprobs, rollout.ref_logprobs, rollout.values)
    )
    kl = [sum((logprobs[b] - ref_logprobs[b])[mask[b]]) for b in range(BATCH_SIZE)]
    error = np.mean((values[mask] - returns[mask]) ** 2)
    expected = {
        "objective/kl": np.mean(kl),
        "objective/kl_coef": 0.3,
        "objective/entropy": np.mean([-sum(logprobs[b][mask[b]]) for b in range(BATCH_SIZE)]),
        "objective/shaped_score": rollout.scores.numpy().mean(),
        "objective/rlhf_reward": np.mean(rollout.scores.numpy() - 0.3 * np.array(kl)),
        "objective/largest_advantage": np.abs(advantages).max(),
        "value/explained_variance": 1 - error / np.var(returns[mask]),
        "value/mean": values[mask].mean(),
        "response/length": mask.sum() / BATCH_SIZE,
        "response/stopped": np.mean([1 in row for row in rollout.response_ids.numpy().tolist()]),
    }
    assert statistics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(statistics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)

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


def naive_groups(rollout, config, kl_coef):
    """RLOO's and GRPO's advantages [B, R], one response at a time: equations of the papers in docs/algorithm.md."""
    mask = rollout.response_mask.numpy().astype(int)
    scores = rollout.scores.numpy().astype(np.float64)
    totals = (scores * mask).sum(axis=1) if scores.ndim == 2 else scores
    kl = (rollout.logprobs.numpy().astype(np.float64) - rollout.ref_logprobs.numpy()) * mask * kl_coef
    if config.estimator == "rloo":
        totals = totals - kl.sum(axis=1)
    advantages, size = np.zeros(mask.shape), config.group_size
    for b in range(len(mask)):
        group = totals[b // size * size : b // size * size + size]
        if config.estimator == "rloo":
            own = totals[b] - (group.sum() - totals[b]) / (size - 1)
        else:
            own = (totals[b] - group.mean()) / (group.std(ddof=1) + 1e-6)
        for t in range(mask[b].sum()):
            advantages[b, t] = own
            if config.estimator == "grpo":
                advantages[b, t] -= sum(config.gamma ** (k - t) * kl[b, k] for k in range(t, mask[b].sum()))
    if config.whiten_advantages:
        advantages /= np.sqrt((advantages[mask == 1] ** 2).mean() + 1e-8)
    return advantages


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("whiten_advantages", [False, True])
@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
def test_targets_by_group_are_those_of_the_equations(estimator, whiten_advantages, dense):
    rollout = make_rollout()
    config = make_config(estimator=estimator, group_size=4, gamma=0.97, whiten_advantages=whiten_advantages)
    if dense:
        scores = np.random.default_rng(8).normal(0.0, 1.0, rollout.values.shape).astype(np.float32)
        rollout = rollout._replace(scores=tf.constant(scores))
    targets, statistics = prepare_targets(rollout, config, RewardConfig(), 0.3)
    expected = naive_groups(rollout, config, 0.3)
    np.testing.assert_allclose(targets.advantages, expected, rtol=1e-4, atol=1e-5)
    assert statistics["objective/groups_without_spread"] == 0.0
    raw = naive_groups(rollout, make_config(estimator=estimator, group_size=4, gamma=0.97), 0.3)
    np.testing.assert_allclose(statistics["objective/largest_advantage"], np.abs(raw).max(), rtol=1e-4)


@pytest.mark.parametrize("whiten_advantages", [False, True])
@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
def test_groups_of_equal_scores_have_no_advantage_beside_others(estimator, whiten_advantages):
    """One group of two has no spread, three have: without a KL it stays at 0, whitened or not."""
    rollout = make_rollout()
    scores = rollout.scores.numpy()
    scores[2:4] = 7.7
    config = make_config(estimator=estimator, group_size=2, whiten_advantages=whiten_advantages)
    targets, statistics = prepare_targets(rollout._replace(scores=tf.constant(scores)), config, RewardConfig(), 0.0)
    np.testing.assert_array_equal(targets.advantages[2:4], np.zeros([2, 5]))
    assert np.abs(targets.advantages[:2].numpy()).max() > 0.1
    assert statistics["objective/groups_without_spread"] == 0.25


def test_where_all_scores_are_equal_grpo_has_the_size_of_its_kl():
    """Standardised with the KL inside, it was of size 1 whatever kl_coef is."""
    rollout = make_rollout()
    rollout = rollout._replace(scores=tf.fill([BATCH_SIZE], 7.7))
    advantages = {}
    for kl_coef in (1e-3, 2e-3):
        config = make_config(estimator="grpo", group_size=4, kl_coef=kl_coef)
        targets, statistics = prepare_targets(rollout, config, RewardConfig(), kl_coef)
        advantages[kl_coef] = targets.advantages.numpy()
        assert statistics["objective/groups_without_spread"] == 1.0
    assert 0 < np.abs(advantages[1e-3]).max() < 0.01
    np.testing.assert_allclose(advantages[2e-3], 2 * advantages[1e-3], rtol=1e-5)


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

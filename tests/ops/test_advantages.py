"""Rewards, returns and advantages, against numbers worked by hand and loops in float64."""

import numpy as np
import pytest
import tensorflow as tf

from tfppo.ops.advantages import discounted_returns, gae, token_rewards

LENGTHS = [0, 1, 3, 7, 5, 2]
MASK = (np.arange(7) < np.array(LENGTHS)[:, None]).astype(np.float32)


def random_batch(seed, garbage):
    """Two arrays [6, 7] that hold `garbage` at the padding of MASK."""
    numbers = np.random.default_rng(seed).normal(0.3, 1.5, [2, *MASK.shape]).astype(np.float32)
    return np.where(MASK > 0, numbers, np.float32(garbage))


def naive_gae(rewards, values, gamma, gae_lambda):
    """Equation 16 of Schulman et al. 2016, as the sum that it is, for one sequence without padding."""
    size = len(rewards)
    following = [*values[1:], 0.0]
    deltas = [float(rewards[t]) + gamma * float(following[t]) - float(values[t]) for t in range(size)]
    return [sum((gamma * gae_lambda) ** k * deltas[t + k] for k in range(size - t)) for t in range(size)]


@pytest.mark.parametrize(
    ("gae_lambda", "expected"), [(0.0, [1.0, 1.0, 2.0]), (1.0, [4.0, 3.0, 2.0]), (0.95, [3.755, 2.9, 2.0])]
)
def test_gae_by_hand(gae_lambda, expected):
    rewards, values = tf.constant([[0.0, 0.0, 5.0]]), tf.constant([[1.0, 2.0, 3.0]])
    advantages, returns = gae(rewards, values, tf.ones([1, 3]), gamma=1.0, gae_lambda=gae_lambda)
    np.testing.assert_allclose(advantages, [expected], rtol=1e-6)
    np.testing.assert_allclose(returns, [np.add(expected, [1.0, 2.0, 3.0])], rtol=1e-6)


@pytest.mark.parametrize("garbage", [0.0, 1e6, np.nan, np.inf])
def test_gae_of_ragged_rows(garbage):
    rewards, values = random_batch(0, garbage)
    advantages, returns = gae(rewards, values, MASK, gamma=0.9, gae_lambda=0.95)
    expected, targets = np.zeros(MASK.shape), np.zeros(MASK.shape)
    for b, size in enumerate(LENGTHS):
        expected[b, :size] = naive_gae(rewards[b, :size], values[b, :size], 0.9, 0.95)
        targets[b, :size] = expected[b, :size] + values[b, :size]
    np.testing.assert_allclose(advantages, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(returns, targets, rtol=1e-5, atol=1e-6)


def test_gae_under_xla_is_the_same():
    rewards, values = random_batch(1, 0.0)
    compiled = tf.function(lambda *batch: gae(*batch, gamma=1.0, gae_lambda=0.95), jit_compile=True)
    advantages, _ = compiled(rewards, values, MASK)
    row = LENGTHS.index(5)
    np.testing.assert_allclose(
        advantages[row, :5], naive_gae(rewards[row, :5], values[row, :5], 1.0, 0.95), rtol=1e-5, atol=1e-6
    )


def test_discounted_returns_by_hand():
    rewards = tf.constant([[1.0, 2.0, 3.0, 0.0], [0.0, 0.0, 0.0, 10.0]])
    mask = tf.constant([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    np.testing.assert_allclose(
        discounted_returns(rewards, mask, 0.9), [[5.23, 4.7, 3.0, 0.0], [7.29, 8.1, 9.0, 10.0]], rtol=1e-6
    )


@pytest.mark.parametrize("garbage", [0.0, 1e6, np.nan])
def test_discounted_returns_of_ragged_rows(garbage):
    rewards, _ = random_batch(2, garbage)
    expected = np.zeros(MASK.shape)
    for b, size in enumerate(LENGTHS):
        for t in range(size):
            expected[b, t] = sum(0.9**k * float(rewards[b, t + k]) for k in range(size - t))
    np.testing.assert_allclose(discounted_returns(rewards, MASK, 0.9), expected, rtol=1e-5, atol=1e-6)


def test_score_lands_on_the_last_real_token_and_kl_on_every_one():
    scores = tf.constant([0.5, -2.0, 3.0, 7.0])
    kl = tf.constant([[1.0, -2.0, 3.0], [0.5, 99.0, np.nan], [1.0, 2.0, np.inf], [4.0, 5.0, 6.0]])
    mask = tf.constant([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    expected = [[-0.2, 0.4, -0.1], [-2.1, 0.0, 0.0], [-0.2, 2.6, 0.0], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(token_rewards(scores, kl, mask, 0.2), expected, rtol=1e-6, atol=1e-7)

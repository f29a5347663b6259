"""Returns and advantages by every estimator, against numbers worked by hand and loops in float64."""

import numpy as np
import pytest
import tensorflow as tf

from tfppo.ops.advantages import discounted_returns, estimate_advantages, gae, grpo, rloo

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


@pytest.mark.parametrize(
    ("totals", "group_size", "expected"),
    [
        ([1.0, 2.0, 3.0], 3, [-1.5, 0.0, 1.5]),
        ([1.0, 3.0], 2, [-2.0, 2.0]),
        ([1.0, 2.0, 3.0, 4.0, 4.0, 4.0], 3, [-1.5, 0.0, 1.5, 0.0, 0.0, 0.0]),
        ([0.0, 8.0, 1.0, 2.0], 2, [-8.0, 8.0, -1.0, 1.0]),  # neighbours are a group
    ],
)
def test_rloo_by_hand(totals, group_size, expected):
    np.testing.assert_allclose(rloo(tf.constant(totals), group_size), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("totals", "group_size", "expected"),
    [
        ([1.0, 2.0, 3.0], 3, [-1.0, 0.0, 1.0]),
        ([1.0, 3.0], 2, [-(0.5**0.5), 0.5**0.5]),  # deviation sqrt(2): n - 1
        ([5.0, 5.0, 5.0, 0.0, 6.0, 0.0], 3, [0.0, 0.0, 0.0, -2 / 12**0.5, 4 / 12**0.5, -2 / 12**0.5]),
        ([0.0, 2e-6], 2, [-1e-6 / (2**0.5 * 1e-6 + 1e-6), 1e-6 / (2**0.5 * 1e-6 + 1e-6)]),  # what is added: 1e-6
    ],
)
def test_grpo_by_hand(totals, group_size, expected):
    np.testing.assert_allclose(grpo(tf.constant(totals), group_size), expected, rtol=1e-5, atol=1e-7)


REWARDS, VALUES = [[1.0, 2.0, 3.0, 7.0], [4.0, 0.0, 0.0, 7.0]], [[1.0, 2.0, 3.0, 7.0], [5.0, 6.0, 7.0, 7.0]]
TWO_ROWS = [[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]]


def estimate(estimator, gamma=1.0, gae_lambda=0.95, rewards=REWARDS, values=VALUES, mask=TWO_ROWS, **more):
    return estimate_advantages(
        *map(tf.constant, (rewards, values, mask)), estimator=estimator, gamma=gamma, gae_lambda=gae_lambda, **more
    )


def test_monte_carlo_is_the_return_less_the_value():
    advantages, returns = estimate("monte_carlo", gamma=0.9)
    np.testing.assert_allclose(returns, [[5.23, 4.7, 3.0, 0.0], [4.0, 0.0, 0.0, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(advantages, [[4.23, 2.7, 0.0, 0.0], [-1.0, -6.0, 0.0, 0.0]], rtol=1e-6, atol=1e-6)


def test_reinforce_pp_is_the_return():
    advantages, returns = estimate("reinforce_pp", gamma=0.9)
    np.testing.assert_allclose(advantages, [[5.23, 4.7, 3.0, 0.0], [4.0, 0.0, 0.0, 0.0]], rtol=1e-6)
    np.testing.assert_array_equal(advantages, returns)


@pytest.mark.parametrize(("estimator", "share"), [("rloo", 2.0), ("grpo", 0.5**0.5)])
def test_estimators_by_group_give_every_token_the_same(estimator, share):
    advantages, _ = estimate(estimator, group_size=2)  # totals 6 and 4: padding does not count
    np.testing.assert_allclose(advantages, share * np.array([[1, 1, 1, 0], [-1, -1, 0, 0]]), rtol=1e-5)


def test_gae_with_a_lambda_of_the_critics_own():
    row = dict(rewards=[[0.0, 0.0, 5.0]], values=[[1.0, 2.0, 3.0]], mask=[[1.0, 1.0, 1.0]])
    advantages, returns = estimate("gae", critic_gae_lambda=1.0, **row)
    np.testing.assert_allclose(advantages, [[3.755, 2.9, 2.0]], rtol=1e-6)
    np.testing.assert_allclose(returns, [[5.0, 5.0, 5.0]], rtol=1e-6)
    _, returns = estimate("gae", **row)
    np.testing.assert_allclose(returns, [[4.755, 4.9, 5.0]], rtol=1e-6)
    _, returns = estimate("gae", critic_gae_lambda=0.0, **row)
    np.testing.assert_allclose(returns, [[2.0, 3.0, 5.0]], rtol=1e-6)


@pytest.mark.parametrize("estimator", ["gae", "monte_carlo"])
def test_states_after_the_last_token_have_a_target_and_no_advantage(estimator):
    """Rewards .1, .2 and, one position later, 5: returns 5.3, 5.2, 5; advantages of the two tokens alone."""
    row = dict(rewards=[[0.1, 0.2, 5.0, 9.0]], values=[[1.0, 2.0, 3.0, 9.0]], mask=[[1.0, 1.0, 0.0, 0.0]])
    advantages, returns = estimate(estimator, gae_lambda=1.0, critic_mask=tf.constant([[1.0, 1.0, 1.0, 0.0]]), **row)
    np.testing.assert_allclose(returns, [[5.3, 5.2, 5.0, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(advantages, [[4.3, 3.2, 0.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("estimator", ["gae", "monte_carlo", "rloo", "grpo", "reinforce_pp"])
@pytest.mark.parametrize("garbage", [1e6, np.nan])
def test_padding_has_no_advantage_and_no_share_in_one(estimator, garbage):
    def of(garbage):
        rewards, values = random_batch(3, garbage)
        return estimate(estimator, 0.9, rewards=rewards, values=values, mask=MASK, group_size=2, critic_gae_lambda=0.5)

    for dirty, clean in zip(of(garbage), of(0.0), strict=True):
        np.testing.assert_array_equal(dirty, clean)
        assert not clean.numpy()[MASK == 0].any() and clean.numpy().any()

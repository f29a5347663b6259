"""Returns and advantages by every estimator, against numbers worked by hand and loops in float64."""

import numpy as np
import pytest
import tensorflow as tf

from tfppo.ops.advantages import discounted_returns, estimate_advantages, gae, grpo, rloo, without_spread

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


@pytest.mark.parametrize("estimator", [rloo, grpo])
@pytest.mark.parametrize("value", [7.7, 0.1, -3.3, 1e-3, 1e6 + 0.7, 0.0])
def test_equal_totals_give_exactly_0_whatever_they_are(estimator, value):
    """The mean of eight times 7.7 is not 7.7 in float32, and what is left was divided by nearly nothing."""
    for group_size in range(2, 65):
        totals = tf.fill([2 * group_size], np.float32(value))
        np.testing.assert_array_equal(estimator(totals, group_size), np.zeros(2 * group_size))


@pytest.mark.parametrize("estimator", [rloo, grpo])
def test_totals_that_differ_by_rounding_are_equal(estimator):
    near = np.float32(100.0) + np.arange(4, dtype=np.float32) * np.spacing(np.float32(100.0))
    assert len(set(near)) == 4
    np.testing.assert_array_equal(estimator(tf.constant(near), 4), np.zeros(4))
    # And those that do not are told apart, far from 0 too.
    advantages = estimator(tf.constant([1e6, 1e6 + 1, 1e6, 1e6 + 1]), 4).numpy()
    np.testing.assert_allclose(
        advantages, np.array([-1, 1, -1, 1]) * {rloo: 2 / 3, grpo: 0.75**0.5}[estimator], rtol=1e-5
    )


@pytest.mark.parametrize("estimator", [rloo, grpo])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_totals_that_are_not_finite_are_not_taken_for_equal_ones(estimator, value):
    assert not np.isfinite(estimator(tf.constant([1.0, value, 1.0, 2.0]), 2).numpy()[:2]).all()
    np.testing.assert_array_equal(without_spread(tf.constant([1.0, value]), 2), [False])


def test_groups_without_spread():
    totals = [7.7, 7.7, 7.7, 1.0, 1.0, 1.1, 0.0, 0.0, 1e-6, -2.0, -2.0, -2.0000002]
    np.testing.assert_array_equal(without_spread(tf.constant(totals), 3), [True, False, False, True])


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


PENALTY = [[0.1, 0.2, 0.3, 9.0], [0.0, -0.5, 9.0, 9.0]]


def test_grpo_standardises_without_the_penalty_and_subtracts_what_is_to_come_of_it():
    """Totals 6 and 4: -+ sqrt(1/2). Of the penalty, the sum of .1, .2, .3 from each token on; and of 0 and -.5."""
    advantages, _ = estimate("grpo", group_size=2, penalty=tf.constant(PENALTY))
    half = 0.5**0.5
    expected = [[half - 0.6, half - 0.5, half - 0.3, 0.0], [-half + 0.5, -half + 0.5, 0.0, 0.0]]
    np.testing.assert_allclose(advantages, expected, rtol=1e-5)
    advantages, _ = estimate("grpo", gamma=0.5, group_size=2, penalty=tf.constant(PENALTY))
    np.testing.assert_allclose(advantages[0, :3], [half - 0.275, half - 0.35, half - 0.3], rtol=1e-5)


def test_rloo_compares_totals_with_their_penalty():
    """6 - .6 = 5.4 and 4 + .5 = 4.5."""
    advantages, _ = estimate("rloo", group_size=2, penalty=tf.constant(PENALTY))
    np.testing.assert_allclose(advantages, 0.9 * np.array([[1, 1, 1, 0], [-1, -1, 0, 0]]), rtol=1e-5)


@pytest.mark.parametrize("estimator", ["gae", "monte_carlo", "rloo", "reinforce_pp"])
def test_for_other_estimators_the_penalty_is_a_part_of_the_rewards(estimator):
    whole = estimate(estimator, 0.9, group_size=2, penalty=tf.constant(PENALTY))
    parts = estimate(estimator, 0.9, group_size=2, rewards=(np.float32(REWARDS) - np.float32(PENALTY)).tolist())
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)


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

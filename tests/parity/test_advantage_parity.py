"""Returns, advantages and whitening: the rows A1 to A14 of the literature, against loops in float64."""

from contextlib import nullcontext

import numpy as np
import pytest
import tensorflow as tf
from reference_numbers import assert_close, float32, load, mask_of

from tfppo.config import Config, PpoConfig, RewardConfig
from tfppo.config.presets import openai_2019, openai_tldr_n_plus, trl
from tfppo.config.validation import validate_for_ppo
from tfppo.errors import UserError
from tfppo.ops.advantages import discounted_returns, estimate_advantages, gae, grpo, rloo
from tfppo.ops.masking import masked_mean, masked_moments, masked_sum, whiten
from tfppo.ops.shaping import place_scores


def batch(padding=0.0):
    """Rewards, values and mask of the fixture, with `padding` where there is no token."""
    fixture = load("advantages")
    mask = mask_of(fixture["lengths"])
    return (*(np.where(mask > 0, float32(fixture[name]), float32(padding)) for name in ("rewards", "values")), mask)


def estimate(estimator, **arguments):
    arguments = dict(gamma=1.0, gae_lambda=0.95) | arguments
    return estimate_advantages(*map(tf.constant, batch()), estimator=estimator, **arguments)


def test_A1_gamma_1_and_lambda_095():
    for preset in (openai_2019, openai_tldr_n_plus, trl):
        assert (preset().ppo.gamma, preset().ppo.gae_lambda) == (1.0, 0.95)


@pytest.mark.parametrize(("gae_lambda", "expected"), [(0.0, [1, 1, 2]), (1.0, [4, 3, 2]), (0.95, [3.755, 2.9, 2.0])])
def test_A2_gae(gae_lambda, expected):
    rewards, values = tf.constant([[0.0, 0.0, 5.0]]), tf.constant([[1.0, 2.0, 3.0]])
    advantages, returns = gae(rewards, values, tf.ones([1, 3]), gamma=1.0, gae_lambda=gae_lambda)
    assert_close(advantages, [expected])
    assert_close(returns, [np.add(expected, [1, 2, 3])])


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("padding", [0.0, 1e6, np.nan])
def test_A2_gae_of_ragged_rows(number, padding):
    rewards, values, mask = batch(padding)
    case = load("advantages")["gae"][number]
    advantages, returns = gae(rewards, values, mask, gamma=case["gamma"], gae_lambda=case["gae_lambda"])
    assert_close(advantages, case["advantages"])
    assert_close(returns, (np.array(case["advantages"]) + load("advantages")["values"]) * mask)


@pytest.mark.parametrize("jit", [False, True])
def test_A3_C4_gae_in_a_graph_and_under_xla(jit):
    case = load("advantages")["gae"][3]
    compiled = tf.function(
        lambda *args: gae(*args, gamma=case["gamma"], gae_lambda=case["gae_lambda"]), jit_compile=jit
    )
    advantages, _ = compiled(*map(tf.constant, batch()))
    assert_close(advantages, case["advantages"])


@pytest.mark.parametrize("number", range(4))
def test_A2_monte_carlo_returns(number):
    case = load("advantages")["returns"][number]
    rewards, values, mask = batch(np.nan)
    assert_close(discounted_returns(rewards, mask, case["gamma"]), case["returns"])
    advantages, returns = estimate("monte_carlo", gamma=case["gamma"])
    assert_close(returns, case["returns"])
    assert_close(advantages, (np.array(case["returns"]) - load("advantages")["values"]) * mask)


@pytest.mark.parametrize(("name", "estimator"), [("rloo", rloo), ("grpo", grpo)])
@pytest.mark.parametrize("number", range(3))
def test_group_estimators(name, estimator, number):
    fixture = load("advantages")
    case = fixture[name][number]
    assert_close(estimator(tf.constant(float32(fixture["totals"])), case["group_size"]), case["advantages"])
    # Every token of a response gets its response's advantage.
    advantages, _ = estimate(name, group_size=case["group_size"])
    assert_close(advantages, np.array(case["advantages"])[:, None] * mask_of(fixture["lengths"]))


def test_rloo_by_hand():
    np.testing.assert_allclose(rloo(tf.constant([1.0, 2.0, 6.0]), 3), [-3.0, -1.5, 4.5])


def test_grpo_by_hand():
    # Mean 3, deviations -2, -1, 3: variance 14 / 2 = 7.
    np.testing.assert_allclose(grpo(tf.constant([1.0, 2.0, 6.0]), 3), np.array([-2, -1, 3]) / 7**0.5, rtol=1e-6)
    np.testing.assert_array_equal(grpo(tf.constant([2.0, 2.0]), 2), [0.0, 0.0])


def test_reinforce_plus_plus():
    case = load("advantages")["reinforce_pp"]
    advantages, _ = estimate("reinforce_pp", gamma=case["gamma"])
    mask = mask_of(load("advantages")["lengths"])
    assert_close(whiten(advantages, mask, shift_mean=True), case["advantages"])


TABLE = tf.constant([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]])


def test_A4_A6_C1_reward_whitening_keeps_the_mean():
    expected = [[0.0508, 0.4381, 0.8254], [1.2127, 1.6, 1.9873], [2.3746, 2.7619, 3.1492]]
    np.testing.assert_allclose(whiten(TABLE, tf.ones([3, 3]), shift_mean=False), expected, atol=6e-5)


def test_A5_A6_C1_advantage_whitening_removes_the_mean():
    whitened = whiten(TABLE, tf.ones([3, 3]), shift_mean=True).numpy()
    np.testing.assert_allclose(whitened[0, 0], -1.5492, atol=6e-5)
    np.testing.assert_allclose(
        whiten(TABLE, tf.ones([3, 3]), shift_mean=False, unbiased=True).numpy()[0, 0], 0.1394, atol=6e-5
    )


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("padding", [0.0, 1e6, np.nan])
def test_A6_whitening(number, padding):
    fixture = load("whitening")
    case = fixture["cases"][number]
    mask = mask_of(case["lengths"])
    numbers = np.where(mask > 0, float32(fixture["numbers"]), float32(padding))
    whitened = whiten(numbers, mask, shift_mean=case["shift_mean"], unbiased=case["unbiased"])
    assert_close(whitened, case["whitened"])


def test_A9_reward_whitening_needs_8_episodes():
    config = Config(ppo=PpoConfig(rollout_batch_size=4, num_minibatches=1), reward=RewardConfig(whiten=True))
    with pytest.raises(UserError, match="at least 8"):
        validate_for_ppo(config)
    # Whitened by minibatch, it is the minibatch that needs them.
    for num_minibatches, is_refused in ((2, False), (4, True)):
        ppo = PpoConfig(rollout_batch_size=16, num_minibatches=num_minibatches, whiten_scope="minibatch")
        config = Config(ppo=ppo, reward=RewardConfig(whiten=True))
        with pytest.raises(UserError, match="in a minibatch") if is_refused else nullcontext():
            validate_for_ppo(config)


def test_A10_statistics_see_real_tokens_only():
    mask = mask_of([2, 0, 1], 3)
    numbers = np.where(mask > 0, float32([[1, 2, 0], [0, 0, 0], [6, 0, 0]]), np.nan)
    assert (masked_sum(numbers, mask), masked_mean(numbers, mask)) == (9.0, 3.0)
    assert_close(masked_moments(numbers, mask)[1], 14 / 3)
    assert_close(masked_mean(numbers, mask, axis=1), [1.5, 0.0, 6.0])
    # No real token, and a single one: numbers, not NaN.
    np.testing.assert_array_equal(whiten(numbers, 0 * mask, shift_mean=True, unbiased=True), np.zeros([3, 3]))
    np.testing.assert_array_equal(
        whiten(numbers, mask_of([0, 0, 1], 3), shift_mean=True, unbiased=True), np.zeros([3, 3])
    )


def test_A11_whitened_advantages_have_mean_0_and_variance_1():
    fixture = load("whitening")
    mask = mask_of([6, 1, 4, 3, 6, 2, 5, 3])
    whitened = whiten(float32(fixture["numbers"]), mask, shift_mean=True).numpy()[mask > 0]
    assert abs(whitened.mean()) < 1e-6 and abs(whitened.var() - 1) < 1e-6


def test_A13_a_fractional_score_survives_an_integer_mask():
    mask = tf.constant([[1, 1, 0]])
    np.testing.assert_array_equal(place_scores(tf.constant([0.5]), mask, "last_token"), [[0.0, 0.5, 0.0]])


def test_A14_the_critic_may_have_a_lambda_of_its_own():
    fixture = load("advantages")
    mask = mask_of(fixture["lengths"])
    advantages, returns = estimate("gae", gae_lambda=0.95, critic_gae_lambda=1.0)
    assert_close(advantages, fixture["gae"][0]["advantages"])
    assert_close(returns, fixture["returns"][0]["returns"] * mask)  # lambda 1: Monte-Carlo


@pytest.mark.parametrize("estimator", ["gae", "monte_carlo", "reinforce_pp"])
@pytest.mark.parametrize("jit", [False, True])
def test_A12_a_gap_in_a_response_is_passed_over(estimator, jit):
    """Tokens that an environment put between the policy's: as if the policy's stood next to each other."""
    rng = np.random.default_rng(0)
    mask = np.array([[0, 1, 1, 0, 0, 1, 0], [1, 0, 1, 1, 1, 0, 1], [1, 1, 1, 1, 0, 0, 0]], np.float32)
    rewards, values = rng.normal(size=[2, 3, 7]).astype(np.float32)
    rewards[mask == 0], values[mask == 0] = np.nan, 1e6
    gamma, gae_lambda = 0.9, 0.8 if estimator == "gae" else 1.0

    advantages, returns = tf.function(estimate_advantages, jit_compile=jit)(
        *map(tf.constant, (rewards, values, mask)), estimator=estimator, gamma=gamma, gae_lambda=gae_lambda
    )
    expected = {"advantages": np.zeros([3, 7]), "returns": np.zeros([3, 7])}
    for b in range(3):
        own = np.flatnonzero(mask[b])
        r, v = rewards[b, own].astype(float), [*values[b, own].astype(float), 0.0]
        deltas = [r[t] + gamma * v[t + 1] - v[t] for t in range(len(own))]
        sums = [sum((gamma * gae_lambda) ** k * x for k, x in enumerate(deltas[t:])) for t in range(len(own))]
        expected["returns"][b, own] = np.add(sums, v[:-1])
        expected["advantages"][b, own] = expected["returns"][b, own] if estimator == "reinforce_pp" else sums
    assert_close(advantages, expected["advantages"])
    assert_close(returns, expected["returns"])

"""Estimates of the KL, the exact one, and the controller of its coefficient, by hand and against loops in float64."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tfppo.ops.kl import adaptive_kl_coef, kl_estimate, kl_exact


@pytest.mark.parametrize(
    ("estimator", "at_half", "at_minus_half"),
    [("k1", 0.5, -0.5), ("k2", 0.125, 0.125), ("k3", 0.10653066, 0.14872127), ("abs", 0.5, 0.5)],
)
def test_estimates_give_the_published_table(estimator, at_half, at_minus_half):
    np.testing.assert_allclose(
        kl_estimate(tf.constant([0.5, -0.5, 0.0]), estimator), [at_half, at_minus_half, 0.0], rtol=1e-6
    )


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "abs"])
def test_estimates_of_extremes_and_their_gradients_are_finite(estimator):
    log_ratio = tf.constant([1e9, -1e9, 100.0, -100.0])
    with tf.GradientTape() as tape:
        tape.watch(log_ratio)
        estimate = kl_estimate(log_ratio, estimator)
    assert np.isfinite(estimate).all() and np.isfinite(tape.gradient(estimate, log_ratio)).all()
    if estimator == "k3":  # bounded at 20
        np.testing.assert_allclose(estimate, [19.0, math.exp(20.0) - 21.0] * 2, rtol=1e-5)


def test_k3_keeps_its_precision_where_it_is_small():
    np.testing.assert_allclose(kl_estimate(tf.constant([1e-3, -1e-3]), "k3"), [4.998333e-7, 5.001667e-7], rtol=1e-3)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_expected_estimate_is_the_kl(estimator):
    policy, reference = np.array([0.2, 0.3, 0.5]), np.array([0.5, 0.4, 0.1])
    estimate = kl_estimate(tf.constant(np.log(policy / reference)), estimator).numpy()
    np.testing.assert_allclose(policy @ estimate, policy @ np.log(policy / reference), rtol=1e-9)


def test_the_expected_gradient_of_k2_is_that_of_the_kl():
    """Over logits: of the KL it is p * (log(p / q) - KL)."""
    logits, reference = tf.constant([0.1, -0.4, 0.9], tf.float64), np.array([0.5, 0.4, 0.1])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        logprobs = tf.nn.log_softmax(logits)
        p = tf.exp(logprobs).numpy()  # the tokens are drawn, not differentiated
        expected_estimate = tf.reduce_sum(p * kl_estimate(logprobs - np.log(reference), "k2"))
    log_ratio = np.log(p / reference)
    np.testing.assert_allclose(tape.gradient(expected_estimate, logits), p * (log_ratio - p @ log_ratio), rtol=1e-9)


def test_an_unknown_estimate_is_refused():
    with pytest.raises(ValueError, match="'k4'; choose one of .*k3"):
        kl_estimate(tf.zeros([1]), "k4")


def test_kl_by_hand():
    policy, reference = tf.math.log([[1.0, 3.0]]), tf.math.log([[1.0, 1.0]])
    forward = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    backward = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    np.testing.assert_allclose(kl_exact(policy, reference), [forward], rtol=1e-5)
    np.testing.assert_allclose(kl_exact(reference, policy), [backward], rtol=1e-5)
    # Half the temperature squares the odds: 1 to 9.
    sharper = 0.1 * math.log(0.1 / 0.5) + 0.9 * math.log(0.9 / 0.5)
    np.testing.assert_allclose(kl_exact(policy, reference, 0.5), [sharper], rtol=1e-5)


def test_kl_of_random_logits():
    rng = np.random.default_rng(0)
    logits, ref_logits = rng.normal(0.0, 2.0, [2, 3, 4, 9]).astype(np.float32)
    expected = np.zeros([3, 4])
    for b, t in np.ndindex(3, 4):
        p = np.exp(logits[b, t].astype(np.float64) / 0.7)
        q = np.exp(ref_logits[b, t].astype(np.float64) / 0.7)
        p, q = p / p.sum(), q / q.sum()
        expected[b, t] = sum(p[v] * math.log(p[v] / q[v]) for v in range(9))
    np.testing.assert_allclose(kl_exact(logits, ref_logits, 0.7), expected, rtol=1e-5, atol=1e-6)


def test_kl_of_equal_distributions_is_zero_also_with_masked_logits():
    logits = tf.constant([[-1e9, 0.3, 1.7], [2.0, 0.3, 1.7]])
    np.testing.assert_allclose(kl_exact(logits, logits), [0.0, 0.0], atol=1e-7)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(12.0, 0.151536), (7.2, 0.151536), (6.6, 0.150768), (6.0, 0.15), (4.8, 0.148464), (0.0, 0.148464)],
)
def test_adaptive_coefficient_gives_the_published_table(kl, expected):
    coefficient = adaptive_kl_coef(0.15, kl, target=6.0, horizon=10000, num_episodes=512)
    np.testing.assert_allclose(coefficient, expected, rtol=1e-6)

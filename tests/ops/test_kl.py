"""Exact KL and the controller of its coefficient, against numbers worked by hand and loops in float64."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tfppo.ops.kl import adaptive_kl_coef, kl_exact


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

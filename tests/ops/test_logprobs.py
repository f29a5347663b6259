"""Log-probabilities and entropy, against numbers worked by hand and loops in float64."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tfppo.ops.logprobs import entropy, token_logprobs


def softmax(logits, temperature):
    """Probabilities of one row of logits, in Python floats."""
    scaled = [float(logit) / temperature for logit in logits]
    weights = [math.exp(logit - max(scaled)) for logit in scaled]
    return [weight / sum(weights) for weight in weights]


def test_logprobs_by_hand():
    logits = tf.math.log([[1.0, 3.0], [1.0, 3.0]])
    np.testing.assert_allclose(token_logprobs(logits, [0, 1]), np.log([0.25, 0.75]), rtol=1e-6)
    # Half the temperature squares the odds: 1 to 9.
    np.testing.assert_allclose(token_logprobs(logits, [0, 1], 0.5), np.log([0.1, 0.9]), rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
def test_logprobs_and_entropy_of_random_logits(temperature):
    rng = np.random.default_rng(3)
    logits = rng.normal(0.0, 3.0, [4, 5, 11]).astype(np.float32)
    tokens = rng.integers(0, 11, [4, 5])
    logprobs, entropies = np.zeros([4, 5]), np.zeros([4, 5])
    for b, t in np.ndindex(4, 5):
        probabilities = softmax(logits[b, t], temperature)
        logprobs[b, t] = math.log(probabilities[tokens[b, t]])
        entropies[b, t] = -sum(p * math.log(p) for p in probabilities)
    np.testing.assert_allclose(token_logprobs(logits, tokens, temperature), logprobs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(entropy(logits, temperature), entropies, rtol=1e-5, atol=1e-6)


def test_logits_far_from_zero_stay_exact():
    near = np.array([[0.0, 1.0, -2.0]], np.float32)
    far = near + np.float32(4096.0)
    np.testing.assert_allclose(token_logprobs(far, [1]), math.log(softmax(near[0], 1.0)[1]), rtol=1e-6)
    np.testing.assert_allclose(entropy(far), entropy(near), rtol=1e-6)


def test_bfloat16_logits_give_float32():
    logits = tf.cast([[0.0, 1.0, 2.0]], tf.bfloat16)
    probabilities = softmax([0.0, 1.0, 2.0], 0.7)
    logprobs, entropies = token_logprobs(logits, [2], 0.7), entropy(logits, 0.7)
    assert logprobs.dtype == entropies.dtype == tf.float32
    np.testing.assert_allclose(logprobs, [math.log(probabilities[2])], rtol=1e-5)
    np.testing.assert_allclose(entropies, [-sum(p * math.log(p) for p in probabilities)], rtol=1e-5)


def test_entropy_by_hand():
    np.testing.assert_allclose(entropy(tf.fill([1, 8], 5.0)), [math.log(8.0)], rtol=1e-6)
    expected = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    np.testing.assert_allclose(entropy(tf.math.log([[1.0, 3.0]])), [expected], rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0])
def test_entropy_is_never_negative_and_masked_logits_have_no_share(temperature):
    rng = np.random.default_rng(4)
    logits = rng.normal(0.0, 20.0, [500, 12]).astype(np.float32)
    masked = logits.copy()
    masked[:, ::3] = -1e9
    masked[0, 1:] = -1e9
    masked[0, 0] = 2.0
    assert (entropy(logits, temperature).numpy() >= 0.0).all()
    entropies = entropy(masked, temperature).numpy()
    assert (entropies >= 0.0).all()
    assert entropies[0] == 0.0
    kept = [i for i in range(12) if i % 3]
    np.testing.assert_allclose(entropies[1:], entropy(logits[1:, kept], temperature), rtol=1e-5, atol=1e-6)


def test_masked_token_has_no_share_in_a_logprob():
    logits = tf.constant([[-1e9, 0.0, math.log(3.0)]])
    np.testing.assert_allclose(token_logprobs(logits, [2], 0.5), [math.log(0.9)], rtol=1e-6)

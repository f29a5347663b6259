"""Log-probabilities and entropies through the native operations, and their gradients, against float64 in NumPy."""

import hashlib

import numpy as np
import pytest
import tensorflow as tf
from native_support import OPS, needs_bfloat16_ops

from tfppo.computation.native.head import logprobs_and_entropies
from tfppo.models.language_model import LanguageModel

pytestmark = needs_bfloat16_ops
PAD = 3
# vocabulary, width, states: no multiple of the kernels' 16 lanes and 32 columns; just that; more than one group of
# panels and more rows than a tile has.
SIZES = {"odd": (77, 21, 5), "even": (128, 32, 32), "large": (1100, 48, 150)}


def make(name):
    vocabulary, width, states = SIZES[name]
    rng = np.random.default_rng(0)
    model = LanguageModel(vocabulary, 1, 1, width, width, 8, pad_id=PAD)
    embedding = rng.normal(size=[vocabulary, width])
    model.trunk.token_embedding.assign(embedding)
    tokens = rng.integers(PAD + 1, vocabulary, states)
    return model, rng.normal(size=[states, width]).astype(np.float32), tokens, rng.normal(size=[2, states])


def rounded(array):
    return tf.cast(tf.cast(array, tf.bfloat16), tf.float64).numpy()


def naive(model, hidden, tokens, factors, temperature):
    """Log-probabilities and entropies, and the gradients of their sum weighted by `factors`, to the logits."""
    logits = rounded(hidden) @ rounded(model.trunk.token_embedding).T
    logits[:, PAD] -= 1e9
    scaled = logits / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    log_p = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    entropies = -(p * np.where(p > 0, log_p, 0.0)).sum(axis=1)
    chosen = np.eye(logits.shape[1])[tokens]
    of_logprob, of_entropy = factors[:, :, None]
    slopes = of_logprob * (chosen - p) - of_entropy * p * (np.where(p > 0, log_p, 0.0) + entropies[:, None])
    return log_p[np.arange(len(tokens)), tokens], entropies, slopes / temperature


def compute(model, hidden, tokens, temperature, **options):
    embedding = options.pop("embedding", model.trunk.token_embedding)
    options |= dict(temperature=temperature, pad_id=model.pad_id)
    return logprobs_and_entropies(OPS, embedding, hidden, tf.constant(tokens, tf.int32), **options)


def natively(model, hidden, tokens, factors, temperature):
    hidden, copy = tf.constant(hidden), tf.cast(model.trunk.token_embedding, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch([hidden, copy])
        parts = compute(model, hidden, tokens, temperature, embedding=copy)
        total = tf.reduce_sum(tf.stack(parts) * tf.constant(factors, tf.float32))
    return [tf.cast(part, tf.float64).numpy() for part in (*parts, *tape.gradient(total, [hidden, copy]))]


def error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
@pytest.mark.parametrize("name", SIZES)
def test_they_are_those_of_float64_on_rounded_numbers(name, temperature):
    model, hidden, tokens, factors = make(name)
    logprobs, entropies, dhidden, dembedding = natively(model, hidden, tokens, factors, temperature)
    expected = naive(model, hidden, tokens, factors, temperature)
    np.testing.assert_allclose(logprobs, expected[0], rtol=2e-6, atol=1e-5)
    np.testing.assert_allclose(entropies, expected[1], rtol=2e-6, atol=1e-5)
    slopes = expected[2]
    assert error(dhidden, slopes @ rounded(model.trunk.token_embedding)) < 0.01
    assert error(dembedding, slopes.T @ rounded(hidden)) < 0.01
    assert (dembedding[PAD] == 0).all()


def test_a_large_offset_common_to_all_logits_costs_no_digits():
    """Models may have one. Float16 alone tells numbers near -200 apart by 1/8, and leaves gradients 3 to 11 % off."""
    model, hidden, tokens, factors = make("large")
    embedding = model.trunk.token_embedding
    common = np.full(hidden.shape[1], np.sqrt(200.0 / hidden.shape[1]), np.float32)
    embedding.assign(0.3 * embedding - common)
    hidden, factors = hidden + common, factors * [[1.0], [0.0]]
    slopes = naive(model, hidden, tokens, factors, 1.0)[2]
    _, _, dhidden, dembedding = natively(model, hidden, tokens, factors, 1.0)
    assert error(dembedding, slopes.T @ rounded(hidden)) < 0.004
    assert error(dhidden, slopes @ rounded(embedding)) < 0.02


def test_sizes_that_do_not_fit_are_refused():
    model, hidden, tokens, _ = make("odd")
    with pytest.raises(tf.errors.InvalidArgumentError, match="different widths"):
        narrow = dict(hidden=tf.zeros([1, 3]), embedding=tf.zeros([5, 4]), tokens=[0], temperature=1.0)
        OPS.tfppo_head(**narrow, masked=0, penalty=0.0, keep=0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="a token for every state"):
        compute(model, tf.constant(hidden), tokens[1:], 1.0)


def test_no_states_give_no_gradient():
    model, hidden, tokens, factors = make("odd")
    logprobs, _, dhidden, dembedding = natively(model, hidden[:0], tokens[:0], factors[:, :0], 1.0)
    assert logprobs.shape == (0,) and dhidden.shape == (0, hidden.shape[1]) and (dembedding == 0).all()


def test_without_a_gradient_the_numbers_are_the_same():
    model, hidden, tokens, factors = make("large")
    states = tf.reshape(tf.constant(hidden), [10, 15, -1])
    parts = compute(model, states, tokens.reshape(10, 15), 0.7, with_gradient=False)
    expected = natively(model, hidden, tokens, factors, 0.7)
    np.testing.assert_array_equal(np.reshape(parts[0], -1), expected[0])
    np.testing.assert_array_equal(np.reshape(parts[1], -1), expected[1])


def test_likely_and_impossible_tokens_and_rows_alike_are_finite():
    model, hidden, tokens, factors = make("odd")
    tokens[0] = PAD
    model.trunk.token_embedding.assign(60.0 * model.trunk.token_embedding)
    hidden[1] = 0.0
    numbers = natively(model, hidden, tokens, factors * (np.arange(5) > 0), 1.0)
    assert all(np.isfinite(part).all() for part in numbers)
    np.testing.assert_allclose(numbers[1][1], np.log(76), rtol=1e-6)
    assert numbers[0][0] < -1e8 and (numbers[2][0] == 0).all()


def test_a_row_is_bit_for_bit_the_same_in_any_batch():
    model, hidden, tokens, factors = make("large")
    whole = natively(model, hidden, tokens, factors, 0.7)
    for rows in (slice(0, 1), slice(40, 57)):
        part = natively(model, hidden[rows], tokens[rows], factors[:, rows], 0.7)
        for found, expected in zip(part[:3], whole[:3], strict=True):
            np.testing.assert_array_equal(found, expected[rows])


def digest():
    return hashlib.sha256(b"".join(part.tobytes() for part in natively(*make("large"), 0.7))).hexdigest()

"""Masked statistics and positions, against tables worked by hand and loops in float64."""

import numpy as np
import pytest
import tensorflow as tf

from tfppo.ops.masking import (
    last_token_one_hot,
    masked_mean,
    masked_moments,
    masked_sum,
    positions_from_mask,
    scale_to_unit,
    whiten,
)

# The example of "The N implementation details of RLHF with PPO".
TABLE = [[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]]
MEAN_KEPT = [[0.0508, 0.4381, 0.8254], [1.2127, 1.6, 1.9873], [2.3746, 2.7619, 3.1492]]
MEAN_REMOVED = [[-1.5492, -1.1619, -0.7746], [-0.3873, 0.0, 0.3873], [0.7746, 1.1619, 1.5492]]


def random_batch(seed, garbage=np.nan):
    """Values [6, 7] with ragged rows, one of them empty and one full; `garbage` stands at the padding."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(7) < np.array([0, 1, 3, 7, 5, 2])[:, None]).astype(np.float32)
    values = rng.normal(0.7, 2.0, mask.shape).astype(np.float32)
    return np.where(mask > 0, values, np.float32(garbage)), mask


def real_values(values, mask):
    """The values at the real tokens, one by one, as Python floats."""
    rows, columns = mask.shape
    return [float(values[b, t]) for b in range(rows) for t in range(columns) if mask[b, t] == 1]


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30, 0.0])
def test_sum_mean_and_moments_see_real_tokens_only(garbage):
    values, mask = random_batch(0, garbage)
    real = real_values(values, mask)
    mean = sum(real) / len(real)
    variance = sum((x - mean) ** 2 for x in real) / len(real)
    np.testing.assert_allclose(masked_sum(values, mask), sum(real), rtol=1e-5)
    np.testing.assert_allclose(masked_mean(values, mask), mean, rtol=1e-5)
    np.testing.assert_allclose(masked_moments(values, mask), [mean, variance], rtol=1e-5)


def test_sum_and_mean_of_each_row():
    values, mask = random_batch(1)
    sums = [sum(real_values(values[b : b + 1], mask[b : b + 1])) for b in range(len(mask))]
    means = [total / max(size, 1) for total, size in zip(sums, mask.sum(1), strict=True)]
    np.testing.assert_allclose(masked_sum(values, mask, axis=1), sums, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(masked_mean(values, mask, axis=1), means, rtol=1e-5, atol=1e-6)


def test_variance_divides_by_n():
    mean, variance = masked_moments(tf.constant([[1.0, 2.0, 3.0, 9.0]]), tf.constant([[1.0, 1.0, 1.0, 0.0]]))
    np.testing.assert_allclose([mean, variance], [2.0, 2.0 / 3.0], rtol=1e-6)


def test_nothing_real_gives_zeros():
    values, mask = tf.fill([2, 3], np.nan), tf.zeros([2, 3])
    assert masked_sum(values, mask).numpy() == 0.0
    assert masked_mean(values, mask).numpy() == 0.0
    for shift_mean in (False, True):
        np.testing.assert_array_equal(whiten(values, mask, shift_mean=shift_mean), np.zeros([2, 3]))


def test_gradient_of_a_masked_mean_is_nothing_at_padding():
    values = tf.constant([[1.0, 2.0, np.nan, np.inf]])
    with tf.GradientTape() as tape:
        tape.watch(values)
        mean = masked_mean(values, tf.constant([[1.0, 1.0, 0.0, 0.0]]))
    np.testing.assert_array_equal(tape.gradient(mean, values), [[0.5, 0.5, 0.0, 0.0]])


@pytest.mark.parametrize(("shift_mean", "expected"), [(False, MEAN_KEPT), (True, MEAN_REMOVED)])
def test_whiten_gives_the_published_table(shift_mean, expected):
    whitened = whiten(tf.constant(TABLE), tf.ones([3, 3]), shift_mean=shift_mean)
    np.testing.assert_allclose(whitened, expected, atol=6e-5)


@pytest.mark.parametrize("shift_mean", [False, True])
def test_whiten_ignores_padding_and_leaves_zeros_there(shift_mean):
    values, mask = random_batch(2)
    real = real_values(values, mask)
    mean = sum(real) / len(real)
    deviation = (sum((x - mean) ** 2 for x in real) / len(real) + 1e-8) ** 0.5
    expected = np.zeros(mask.shape)
    for b, t in np.argwhere(mask == 1):
        expected[b, t] = (float(values[b, t]) - mean) / deviation + (0.0 if shift_mean else mean)
    np.testing.assert_allclose(whiten(values, mask, shift_mean=shift_mean), expected, rtol=1e-5, atol=1e-6)


def test_unbiased_whiten_gives_the_published_number():
    whitened = whiten(tf.constant(TABLE), tf.ones([3, 3]), shift_mean=False, unbiased=True)
    np.testing.assert_allclose(whitened[0, 0], 0.1394, atol=6e-5)  # 1.6 - .4 / sqrt(.6 / 8)
    # Of the real tokens alone: their number is 9 here too.
    padded, mask = tf.pad(TABLE, [[0, 1], [0, 1]], constant_values=9.0), tf.pad(tf.ones([3, 3]), [[0, 1], [0, 1]])
    np.testing.assert_allclose(whiten(padded, mask, shift_mean=False, unbiased=True)[:3, :3], whitened, rtol=1e-6)


@pytest.mark.parametrize("unbiased", [False, True])
def test_whiten_of_one_value_is_finite(unbiased):
    mask = tf.constant([[1.0, 0.0]])
    np.testing.assert_allclose(whiten(tf.constant([[5.0, 1.0]]), mask, shift_mean=True, unbiased=unbiased), [[0, 0]])


def test_sum_weighs_by_the_mask():
    weights = tf.constant([[0.25, 0.5, 0.0], [2.0, 0.0, 0.0]])
    values = tf.constant([[4.0, 6.0, np.nan], [-1.0, np.inf, 7.0]])
    np.testing.assert_allclose(masked_sum(values, weights), 2.0, rtol=1e-6)
    np.testing.assert_allclose(masked_sum(values, weights, axis=1), [4.0, -2.0], rtol=1e-6)


def test_whiten_of_equal_values_is_finite():
    values, mask = tf.fill([2, 2], 3.0), tf.ones([2, 2])
    np.testing.assert_array_equal(whiten(values, mask, shift_mean=True), np.zeros([2, 2]))
    np.testing.assert_array_equal(whiten(values, mask, shift_mean=False), np.full([2, 2], 3.0))


@pytest.mark.parametrize("dtype", [tf.int32, tf.float32])
def test_positions_are_not_shifted_by_padding(dtype):
    mask = tf.constant([[0, 0, 1, 1, 1], [1, 0, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], dtype)
    positions = positions_from_mask(mask)
    assert positions.dtype == tf.int32
    expected = [[0, 0, 0, 1, 2], [0, 1, 1, 1, 2], [0, 1, 2, 3, 4], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(positions, expected)


@pytest.mark.parametrize("dtype", [tf.int32, tf.float32])
def test_last_token_one_hot(dtype):
    mask = tf.constant([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], dtype)
    expected = [[0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(last_token_one_hot(mask), expected)


def test_scaling_to_unit_keeps_zeros_and_signs():
    """Mean square of 0, 3, -3 and 6: 13.5."""
    values, mask = tf.constant([[0.0, 3.0, np.nan], [-3.0, 6.0, 1e6]]), tf.constant([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    expected = np.array([[0.0, 3.0, 0.0], [-3.0, 6.0, 0.0]]) / 13.5**0.5
    np.testing.assert_allclose(scale_to_unit(values, mask), expected, rtol=1e-6)
    np.testing.assert_array_equal(scale_to_unit(tf.zeros([2, 3]), mask), np.zeros([2, 3]))

"""The losses and their gradients, against numbers worked by hand and loops in float64."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tfppo.ops.logprobs import token_logprobs
from tfppo.ops.losses import (
    clipped_surrogate_loss,
    clipped_value_loss,
    importance_ratio,
    is_clipped,
    is_value_clipped,
    token_weights,
)


def value_and_gradient(loss_fn, at):
    """A loss and its derivative at a number."""
    at = tf.constant(at)
    with tf.GradientTape() as tape:
        tape.watch(at)
        loss = loss_fn(at)
    return loss.numpy(), tape.gradient(loss, at).numpy()


def test_ratio_by_hand():
    ratio = importance_ratio(tf.math.log([0.7, 0.3, 0.5]), tf.math.log([0.6, 0.6, 0.5]))
    np.testing.assert_allclose(ratio, [0.7 / 0.6, 0.5, 1.0], rtol=1e-6)


def test_ratio_stays_finite():
    logprobs = tf.constant([0.0, -1e9, -3.0])
    with tf.GradientTape() as tape:
        tape.watch(logprobs)
        ratio = importance_ratio(logprobs, tf.constant([-1e9, 0.0, -3.0]))
    assert np.isfinite(ratio).all()
    assert ratio[0] > 1e6 and ratio[1] < 1e-6 and ratio[2] == 1.0
    np.testing.assert_array_equal(tape.gradient(ratio, logprobs), [0.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.5, 1.0, -1.2, 0.0),  # gained enough: no more
        (1.5, -1.0, 1.5, 1.0),  # moved the wrong way: pulled back in full
        (0.5, 1.0, -0.5, -1.0),
        (0.5, -1.0, 0.8, 0.0),
        (1.1, 2.0, -2.2, -2.0),  # inside the range
        (1.3, 2.0, -2.4, 0.0),
        (1.0, 3.0, -3.0, -3.0),  # where the two branches tie, the gradient is the whole one
        (1.0, -3.0, 3.0, 3.0),
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, loss, gradient):
    result = value_and_gradient(lambda r: clipped_surrogate_loss(r, advantage, clip_range=0.2), ratio)
    np.testing.assert_allclose(result, [loss, gradient], rtol=1e-6, atol=1e-7)


def test_clipped_surrogate_at_the_edge_of_the_range():
    np.testing.assert_allclose(clipped_surrogate_loss(1.2, 2.0, clip_range=0.2), -2.4, rtol=1e-6)


def test_clipped_surrogate_of_random_numbers():
    rng = np.random.default_rng(0)
    ratios = np.exp(rng.normal(0.0, 0.4, [50])).astype(np.float32)
    advantages = rng.normal(0.0, 2.0, [50]).astype(np.float32)
    expected = []
    for ratio, advantage in zip(ratios.astype(float), advantages.astype(float), strict=True):
        kept = min(max(ratio, 0.7), 1.3)
        expected.append(-min(ratio * advantage, kept * advantage))
    np.testing.assert_allclose(clipped_surrogate_loss(ratios, advantages, clip_range=0.3), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.25, 1.0, -1.25, -1.0),  # inside: the upper range is .28
        (1.5, 1.0, -1.28, 0.0),
        (0.75, -1.0, 0.8, 0.0),  # outside: the lower one stays .2
        (0.75, 1.0, -0.75, -1.0),
        (1.5, -1.0, 1.5, 1.0),
    ],
)
def test_clip_with_another_upper_range_by_hand(ratio, advantage, loss, gradient):
    result = value_and_gradient(
        lambda r: clipped_surrogate_loss(r, advantage, clip_range=0.2, clip_range_high=0.28), ratio
    )
    np.testing.assert_allclose(result, [loss, gradient], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (5.0, -1.0, 3.0, 0.0),
        (5.0, -2.0, 6.0, 0.0),
        (2.9, -1.0, 2.9, 1.0),
        (0.5, -1.0, 0.8, 0.0),
        (5.0, 1.0, -1.2, 0.0),  # a gain is never bounded by it
        (0.5, 1.0, -0.5, -1.0),
    ],
)
def test_dual_clip_by_hand(ratio, advantage, loss, gradient):
    result = value_and_gradient(lambda r: clipped_surrogate_loss(r, advantage, clip_range=0.2, dual_clip=3.0), ratio)
    np.testing.assert_allclose(result, [loss, gradient], rtol=1e-6, atol=1e-7)


def test_is_clipped_where_the_gradient_is_cut_off():
    ratios = tf.constant([1.5, 1.5, 0.5, 0.5, 1.1, 0.9, 1.5, 0.5, 1.25])
    advantages = tf.constant([1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 0.0, 0.0, 1.0])
    expected = [True, False, False, True, False, False, False, False, True]
    assert is_clipped(ratios, advantages, clip_range=0.2).numpy().tolist() == expected
    higher = is_clipped(ratios, advantages, clip_range=0.2, clip_range_high=0.28).numpy().tolist()
    assert higher == [*expected[:-1], False]


def test_is_value_clipped_where_the_clipped_error_counts():
    values = tf.constant([0.5, 0.5, -0.5, 0.1, 0.2, 0.0])
    returns = tf.constant([1.0, 0.0, -1.0, 1.0, 1.0, 1.0])
    expected = [True, False, True, False, False, False]
    assert is_value_clipped(values, tf.zeros(6), returns, value_clip_range=0.2).numpy().tolist() == expected
    # Where it says so, the loss stands still in the value.
    values = tf.Variable(values)
    with tf.GradientTape() as tape:
        losses = clipped_value_loss(values, tf.zeros(6), returns, value_clip_range=0.2)
    np.testing.assert_array_equal(tape.gradient(losses, values).numpy() == 0.0, expected)


@pytest.mark.parametrize(
    ("aggregation", "expected", "total"),
    [
        ("token_mean", [[0.25, 0.25, 0.25, 0.0], [0.25, 0.0, 0.0, 0.0]], 1.0),
        ("sequence_mean", [[1 / 6, 1 / 6, 1 / 6, 0.0], [0.5, 0.0, 0.0, 0.0]], 1.0),
        ("sequence_sum", [[0.5, 0.5, 0.5, 0.0], [0.5, 0.0, 0.0, 0.0]], 2.0),  # the mean length
    ],
)
def test_token_weights_by_hand(aggregation, expected, total):
    mask = tf.constant([[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    weights = token_weights(mask, aggregation)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    np.testing.assert_allclose(tf.reduce_sum(weights), total, rtol=1e-6)
    # A sequence without a token weighs nothing, though it is one of the three.
    wider = token_weights(tf.concat([mask, tf.zeros([1, 4])], 0), aggregation)
    share = 1.0 if aggregation == "token_mean" else 2 / 3
    np.testing.assert_allclose(wider, share * np.array([*expected, [0.0] * 4]), rtol=1e-6)
    np.testing.assert_array_equal(token_weights(tf.zeros([2, 4]), aggregation), np.zeros([2, 4]))


def test_an_unknown_aggregation_is_refused():
    with pytest.raises(ValueError, match="'mean'; choose one of .*token_mean"):
        token_weights(tf.ones([1, 1]), "mean")


def test_surrogate_gradient_at_ratio_one_is_that_of_reinforce():
    # Four equally likely tokens: d(-A log p(1))/d logits = A * (p - [0, 1, 0, 0]).
    logits = tf.zeros([1, 4])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        logprobs = token_logprobs(logits, [1])
        ratio = importance_ratio(logprobs, tf.fill([1], math.log(0.25)))
        loss = clipped_surrogate_loss(ratio, tf.constant([-0.6995]), clip_range=0.2)
    expected = [[-0.174875, 0.524625, -0.174875, -0.174875]]
    np.testing.assert_allclose(tape.gradient(loss, logits), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("value", "old", "target", "clip", "loss", "gradient"),
    [
        (0.5, 0.0, 1.0, 0.2, 0.32, 0.0),  # max(0.25, 0.64) / 2: the clipped one counts, and stands still
        (0.5, 0.0, 0.0, 0.2, 0.125, 0.5),  # moved away from the target: the full error counts
        (-0.5, 0.0, -1.0, 0.2, 0.32, 0.0),
        (0.1, 0.0, 1.0, 0.2, 0.405, -0.9),  # inside the range
        (0.5, 0.0, 1.0, None, 0.125, -0.5),
    ],
)
def test_clipped_value_loss_by_hand(value, old, target, clip, loss, gradient):
    result = value_and_gradient(lambda v: clipped_value_loss(v, old, target, value_clip_range=clip), value)
    np.testing.assert_allclose(result, [loss, gradient], rtol=1e-6, atol=1e-7)


def test_clipped_value_loss_of_random_numbers():
    rng = np.random.default_rng(1)
    values, old_values, returns = rng.normal(0.0, 1.0, [3, 50]).astype(np.float32)
    expected = []
    for value, old, target in zip(values.astype(float), old_values.astype(float), returns.astype(float), strict=True):
        near = min(max(value, old - 0.3), old + 0.3)
        expected.append(0.5 * max((value - target) ** 2, (near - target) ** 2))
    losses = clipped_value_loss(values, old_values, returns, value_clip_range=0.3)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-7)

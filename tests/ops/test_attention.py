"""Attention by blocks against plain loops in float64, forward and backward."""

import numpy as np
import pytest
import tensorflow as tf

from tfppo.ops import attention
from tfppo.ops.attention import BlockedAttention, WholeAttention, attention_within

ROWS, HEADS, WIDTH = 3, 2, 4
PACKED = [1, 1, 1, 2, 2, 2, 2, 3, 3, 0, 0, 0, 0]
PADDED_LEFT = [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]
ALL_PADDING = [0] * 13
SEGMENTS = np.array([PACKED, PADDED_LEFT, ALL_PADDING])


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tensors(length, start, seed=0):
    parts = (length - start, length, length, length - start)
    return [numbers(ROWS, size, HEADS, WIDTH, seed=seed + n) for n, size in enumerate(parts)]


def plain(query, key, value, upstream, segments, start):
    """Context and gradients of sum(upstream * context), one query at a time."""
    query, key, value, upstream = (array.astype(np.float64) for array in (query, key, value, upstream))
    context, dq, dk, dv = np.zeros_like(query), np.zeros_like(query), np.zeros_like(key), np.zeros_like(value)
    for b, q, h in np.ndindex(query.shape[:3]):
        place = start + q
        seen = [k for k in range(place + 1) if segments[b][k] == segments[b][place]]
        scores = np.array([query[b, q, h] @ key[b, k, h] for k in seen])
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        context[b, q, h] = sum(w * value[b, k, h] for w, k in zip(weights, seen, strict=True))
        of_weights = np.array([upstream[b, q, h] @ value[b, k, h] for k in seen])
        of_scores = weights * (of_weights - weights @ of_weights)
        for n, k in enumerate(seen):
            dv[b, k, h] += weights[n] * upstream[b, q, h]
            dq[b, q, h] += of_scores[n] * key[b, k, h]
            dk[b, k, h] += of_scores[n] * query[b, q, h]
    return context, dq, dk, dv


def computed(attention_of, query, key, value, upstream, segments, start, *, compiled=False, dtype="float32"):
    @tf.function(jit_compile=compiled, autograph=False)
    def run(segments, upstream, *factors):
        with tf.GradientTape() as tape:
            tape.watch(factors)
            context = attention_of(segments)(*factors, start)
        return context, *tape.gradient(context, factors, upstream)

    cast = [tf.cast(array, dtype) for array in (upstream, query, key, value)]
    return [tf.cast(tensor, tf.float32).numpy() for tensor in run(tf.constant(segments, tf.int32), *cast)]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("length", "start", "block"), [(13, 0, 4), (13, 5, 4), (12, 3, 6), (13, 12, 4), (9, 2, 64)])
def test_blocks_are_the_softmax_and_its_gradient(length, start, block, compiled):
    segments = SEGMENTS[:, :length]
    arrays = tensors(length, start)
    expected = plain(*arrays, segments, start)
    found = computed(lambda ids: BlockedAttention(ids, block), *arrays, segments, start, compiled=compiled)
    for wanted, got in zip(expected, found, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_all_at_once_is_the_same_softmax():
    arrays = tensors(13, 5)
    expected = plain(*arrays, SEGMENTS, 5)
    for wanted, got in zip(expected, computed(WholeAttention, *arrays, SEGMENTS, 5), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_large_scores_neither_overflow_nor_lose_what_came_before():
    query, key, value, upstream = tensors(13, 0)
    arrays = 40 * query, 10 * key, value, upstream  # scores of a few thousand
    expected = plain(*arrays, SEGMENTS, 0)
    for wanted, got in zip(expected, computed(lambda ids: BlockedAttention(ids, 4), *arrays, SEGMENTS, 0), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3)


def test_in_bfloat16_the_sums_are_in_float32():
    """Of 512 equal keys the mean of the values: in bfloat16 a sum of weights would stop growing at 256."""
    length = 512
    query, key = np.zeros([2, 1, length, 1, WIDTH], np.float32)
    value = np.ones([1, length, 1, WIDTH], np.float32)
    segments = np.ones([1, length], np.int32)
    upstream = np.ones_like(query)
    context, _, _, dv = computed(
        lambda ids: BlockedAttention(ids, 16), query, key, value, upstream, segments, 0, dtype="bfloat16"
    )
    np.testing.assert_allclose(context, 1.0, atol=0.005)
    # The first key is seen by queries of 1, 2, .. 512 keys: the sum of 1 / n.
    np.testing.assert_allclose(dv[0, 0], sum(1 / n for n in range(1, length + 1)), rtol=0.01)


@pytest.mark.parametrize("by_blocks", [WholeAttention, lambda ids: BlockedAttention(ids, 4)])
def test_what_is_padding_changes_no_real_position(by_blocks):
    arrays = tensors(13, 0)
    other = [array.copy() for array in arrays]
    for array in other[1:3]:
        array[1, :4] = 1e3  # keys and values of the padding of the second row
    before, after = (computed(by_blocks, *each, SEGMENTS, 0) for each in (arrays, other))
    np.testing.assert_array_equal(before[0][1, 4:], after[0][1, 4:])
    assert all(np.isfinite(array).all() for array in after)


def test_the_length_chooses(monkeypatch):
    monkeypatch.setattr(attention, "LENGTH_FOR_BLOCKS", 8)
    assert isinstance(attention_within(tf.zeros([2, 7], tf.int32)), WholeAttention)
    assert isinstance(attention_within(tf.zeros([2, 8], tf.int32)), BlockedAttention)

    @tf.function(input_signature=[tf.TensorSpec([2, None], tf.int32)], autograph=False)
    def of_unknown_length(segment_ids):
        assert isinstance(attention_within(segment_ids), WholeAttention)
        return segment_ids

    of_unknown_length(tf.zeros([2, 9], tf.int32))

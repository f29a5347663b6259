"""Causal attention within segments: with all scores at once, or by blocks that never hold them all."""

from collections.abc import Callable
from typing import Any, Protocol

import tensorflow as tf

from tfppo.ops.masking import MASKED_SCORE, causal_mask
from tfppo.ops.sizes import BLOCK, LENGTH_FOR_BLOCKS, size_of_parts


class Attention(Protocol):
    """The weighted means of values, for each query those of its own and earlier positions of its segment."""

    def __call__(self, query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, start: int | tf.Tensor) -> tf.Tensor:
        """Query [B, T - start, H, d] of the positions from `start` on, scaled; key, value [B, T, H, d] -> as query."""


def attention_within(segment_ids: tf.Tensor) -> Attention:
    """Attention of sequences with these segments, int [B, T]; a padding mask is the case of segments 0 and 1.

    It goes by blocks from `LENGTH_FOR_BLOCKS` positions on. Where the graph does not know their number, it does not.
    """
    length = segment_ids.shape[1]
    if length is None or length < LENGTH_FOR_BLOCKS:
        return WholeAttention(segment_ids)
    return BlockedAttention(segment_ids, BLOCK)


class WholeAttention:
    """All scores [B, H, T, T] at once. Args: segment_ids int [B, T]."""

    def __init__(self, segment_ids: tf.Tensor):
        self._mask = causal_mask(segment_ids)

    def __call__(self, query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, start: int | tf.Tensor) -> tf.Tensor:
        """See `Attention`."""
        mask = self._mask[:, :, start:]
        scores = tf.einsum("bqhd,bkhd->bhqk", query, key)
        return tf.einsum("bhqk,bkhd->bqhd", masked_softmax(scores, mask), value)


class BlockedAttention:
    """Scores of one block of queries and one of keys at a time (FlashAttention, Dao et al. 2022).

    Forward, the softmax goes on from block to block with the largest score and the sum so far (Milakov and Gimelshein
    2018). The log of the sum is kept, from which the backward pass makes each block's weights anew. Scores, sums and
    gradients are added up in float32, products are in the dtype of their factors.

    Args: segment_ids int [B, T], T known to the graph; block: positions of a block at most.
    """

    def __init__(self, segment_ids: tf.Tensor, block: int):
        self._segment_ids, self._block = segment_ids, block

    def __call__(self, query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, start: int | tf.Tensor) -> tf.Tensor:
        """See `Attention`; `start` must be an int."""
        pairs = _Pairs(self._segment_ids, int(start), self._block)

        @tf.custom_gradient
        def attend(query, key, value):
            blocks = pairs.cut_queries(query), pairs.cut_keys(key), pairs.cut_keys(value)
            context, log_sums = _forward(pairs, *blocks)
            context = pairs.join_queries(context, query)

            def backward(upstream):
                products = tf.reduce_sum(tf.cast(upstream, tf.float32) * tf.cast(context, tf.float32), -1, True)
                of_context = pairs.cut_queries(upstream), pairs.cut_queries(products)
                dq, dk, dv = _backward(pairs, *blocks, log_sums, *of_context)
                return pairs.join_queries(dq, query), pairs.join_keys(dk, key), pairs.join_keys(dv, value)

            return context, backward

        return attend(query, key, value)


class _Pairs:
    """The pairs of a block of queries and a block of keys that has a position which they may see.

    Blocks are [n, B, H, b, d], the last one filled up. Keys that fill up come after all queries, so nobody sees them.
    """

    def __init__(self, segment_ids, start, block):
        length = segment_ids.shape[1]
        self._sizes = _size_of_block(length - start, block), _size_of_block(length, block)
        rows, columns = self._sizes
        self._lengths, self._start = (length - start, length), start
        self._segments = self._segments_of(segment_ids[:, start:], rows), self._segments_of(segment_ids, columns)
        ends = [min(start + first + rows, length) for first in range(0, length - start, rows)]
        table = [(i, j) for i, end in enumerate(ends) for j in range(-(-end // columns))]
        # One loop over all pairs, of a length that XLA knows: a GPU then need not tell the host when to end.
        self.count, self._table = len(table), tf.constant(table)

    def __getitem__(self, number):
        """Which block of queries, and which of keys."""
        return tf.unstack(self._table[number])

    def cut_queries(self, tensor):
        return _cut(tensor, self._sizes[0])

    def cut_keys(self, tensor):
        return _cut(tensor, self._sizes[1])

    def join_queries(self, blocks, like):
        return _join(blocks, self._lengths[0], like.dtype)

    def join_keys(self, blocks, like):
        return _join(blocks, self._lengths[1], like.dtype)

    def scores(self, i, j, query, key):
        """float32 [B, H, b, b] of a block of queries and one of keys, MASKED_SCORE where a query may not look."""
        rows, columns = self._sizes
        places = self._start + i * rows + tf.range(rows), j * columns + tf.range(columns)
        same = self._segments[0][i][:, :, None] == self._segments[1][j][:, None, :]
        visible = same & (places[0][:, None] >= places[1])
        scores = tf.cast(tf.matmul(query, key, transpose_b=True), tf.float32)
        return tf.where(visible[:, None], scores, MASKED_SCORE)

    @staticmethod
    def _segments_of(segment_ids, size):
        filled = tf.pad(segment_ids, [[0, 0], [0, -segment_ids.shape[1] % size]])
        return tf.transpose(tf.reshape(filled, [-1, filled.shape[1] // size, size]), [1, 0, 2])


def masked_softmax(scores: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Softmax over the last axis where a mask is true, and 0 elsewhere: computed in float32, in the dtype of scores."""
    return tf.cast(tf.nn.softmax(tf.where(mask, tf.cast(scores, tf.float32), MASKED_SCORE)), scores.dtype)


def _forward(pairs, query, key, value):
    """Context [n, B, H, b, d] in float32, and the log of the sum of exponentials [n, B, H, b, 1] of each query."""
    column = tf.zeros_like(query[..., :1], tf.float32)
    starts = tf.zeros_like(query, tf.float32), column + MASKED_SCORE, column

    def step(number, context, largest, total):
        i, j = pairs[number]
        scores = pairs.scores(i, j, query[i], key[j])
        before = largest.read(i)
        now = tf.maximum(before, tf.reduce_max(scores, axis=-1, keepdims=True))
        # A row that has seen nothing but masked scores has weights of 1 here; the first real score makes them 0.
        weights, shrink = tf.exp(scores - now), tf.exp(before - now)
        added = tf.cast(tf.matmul(tf.cast(weights, value.dtype), value[j]), tf.float32)
        context = context.write(i, shrink * context.read(i) + added)
        total = total.write(i, shrink * total.read(i) + tf.reduce_sum(weights, axis=-1, keepdims=True))
        return number + 1, context, largest.write(i, now), total

    context, largest, total = _over(pairs, step, starts)
    return context / total, largest + tf.math.log(total)


def _backward(pairs, query, key, value, log_sums, upstream, products):
    """Gradients [n, B, H, b, d] in float32 of queries, keys and values.

    Args: upstream: of the context; products [n, B, H, b, 1]: the sum of context times upstream of each query, which is
        what the softmax subtracts (Dao et al. 2022, appendix B).
    """
    starts = [tf.zeros_like(tensor, tf.float32) for tensor in (query, key, value)]

    def product(a, b, **transposed):
        return tf.cast(tf.matmul(a, b, **transposed), tf.float32)

    def step(number, of_query, of_key, of_value):
        i, j = pairs[number]
        weights = tf.exp(pairs.scores(i, j, query[i], key[j]) - log_sums[i])
        of_weights = product(upstream[i], value[j], transpose_b=True)
        of_scores = tf.cast(weights * (of_weights - products[i]), query.dtype)
        weights = tf.cast(weights, value.dtype)
        return (
            number + 1,
            of_query.write(i, of_query.read(i) + product(of_scores, key[j])),
            of_key.write(j, of_key.read(j) + product(of_scores, query[i], transpose_a=True)),
            of_value.write(j, of_value.read(j) + product(weights, upstream[i], transpose_a=True)),
        )

    return _over(pairs, step, starts)


def _over(pairs: _Pairs, step: Callable[..., Any], starts):
    """Tensors [n, ...] after a step for each pair, which reads and writes their blocks."""
    arrays = [
        tf.TensorArray(tf.float32, tensor.shape[0], element_shape=tensor.shape[1:], clear_after_read=False).unstack(
            tensor
        )
        for tensor in starts
    ]
    _, *arrays = tf.while_loop(lambda number, *_: number < pairs.count, step, [tf.constant(0), *arrays])
    return [array.stack() for array in arrays]


def _size_of_block(length, most):
    return min(size_of_parts(length, -(-length // most), most), length)


def _cut(tensor, size):
    """[B, T, H, d] as [n, B, H, b, d], filled up with zeros."""
    _, length, heads, width = tensor.shape
    filled = tf.pad(tensor, [[0, 0], [0, -length % size], [0, 0], [0, 0]])
    return tf.transpose(tf.reshape(filled, [-1, filled.shape[1] // size, size, heads, width]), [1, 0, 3, 2, 4])


def _join(blocks, length, dtype):
    """[n, B, H, b, d] as [B, T, H, d] in a dtype."""
    count, _, heads, size, width = blocks.shape
    joined = tf.reshape(tf.transpose(tf.cast(blocks, dtype), [1, 0, 3, 2, 4]), [-1, count * size, heads, width])
    return joined[:, :length]

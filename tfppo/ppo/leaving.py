"""Shrinking batches: once half of the rows have stopped, the others continue in a batch of half the size."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tfppo.computation.engine import Cache

_FEWEST_ROWS = 4  # smaller batches are not made: their steps take hardly less time


class Rows(NamedTuple):
    """The rows that are being sampled, after some steps."""

    step: tf.Tensor  # scalar: tokens that every row has
    tokens: tf.Tensor  # [B] the last ones
    alive: tf.Tensor  # [B] bool, no stop token yet
    valued: tf.Tensor  # [B] bool, the state reached still needs its value
    sizes: tf.Tensor  # [B] prompt lengths
    real: tf.Tensor  # [B, C] bool, cache slots that are not a prompt's padding
    uniforms: tf.Tensor  # [B, R]
    buffers: tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]  # [B, R]: token ids, mask, log-probabilities, values
    cache: Cache


def enough_of(size: int | None, rows_leave: bool) -> int:
    """The number of unfinished rows at which a batch of `size` rows is halved; 0 if it never is.

    Args: size: None where it is known only when the graph runs; rows_leave: whether rows can stop early at all.
    """
    return size // 2 if rows_leave and size is not None and size % 2 == 0 and size >= 2 * _FEWEST_ROWS else 0


def go_on_in_smaller_batches(rows: Rows, go_on: Callable[[Rows, tf.Tensor], Rows], rows_leave: bool) -> Rows:
    """Samples until no row needs more tokens, halving the batch on the way. Returns: all rows, finished.

    Args:
        rows: those being sampled, of which no more than `enough_of` their number still need tokens.
        go_on: (rows, enough) -> rows after as many steps as leave no more than `enough` in need.
    """
    size = rows.tokens.shape[0]
    if not enough_of(size, rows_leave):
        return rows
    response_length = rows.uniforms.shape[1]

    def rest():
        kept = tf.argsort(tf.cast(rows.valued, tf.int32), direction="DESCENDING", stable=True)[: size // 2]
        half = tf.nest.map_structure(lambda tensor: tf.gather(tensor, kept) if tensor.shape.rank else tensor, rows)
        longer = go_on_in_smaller_batches(go_on(half, tf.constant(enough_of(size // 2, rows_leave))), go_on, rows_leave)
        return tuple(
            tf.tensor_scatter_nd_update(all_rows, kept[:, None], of_longer)
            for all_rows, of_longer in zip(_results(rows), _results(longer), strict=True)
        )

    in_need = (rows.step < response_length) & tf.reduce_any(rows.valued)
    *buffers, alive = tf.cond(in_need, rest, lambda: _results(rows))
    return rows._replace(buffers=tuple(buffers), alive=alive)


def _results(rows):
    return (*rows.buffers, rows.alive)

"""Functions of a product with a large matrix, such as logits, for some rows at a time: the product is never whole."""

import math
from collections.abc import Callable

import tensorflow as tf

from tfppo.ops.sizes import LOGITS_AT_ONCE

_TILE = 64  # what numbers of rows are multiples of: odd sizes are slow to multiply


def is_large(rows: tf.Tensor, num_columns: int) -> bool:
    """Whether a product [..., V] of rows [..., D] is to be made by chunks; not where the graph knows no size."""
    sizes = [*rows.shape[:-1], num_columns]
    return None not in sizes and math.prod(sizes) > LOGITS_AT_ONCE


def by_chunks(
    function: Callable[..., tuple[tf.Tensor, ...]],
    rows: tf.Tensor,
    matrix: tf.Tensor,
    labels: tf.Tensor,
    *,
    num_results: int,
) -> tuple[tf.Tensor, ...]:
    """function(rows, matrix, labels), computed for some rows at a time, and a second time so for its gradient.

    There are gradients with respect to rows and matrix; that of the matrix is added up in float32.

    Args:
        function: (rows [n, D], matrix [V, D], labels [n]) -> `num_results` of float32 [n], of each row by itself.
        rows: [..., D] of known shape; labels: [...].
    Returns: as many of float32 [...].
    """
    *leading, width = rows.shape
    number = math.prod(leading)
    size = _rows_of_chunk(number, matrix.shape[0])
    chunks = -(-number // size)

    def cut(tensor, *rest):
        """[..., *rest] as [chunks, size, *rest], the last one filled up with zeros."""
        filled = tf.pad(tf.reshape(tensor, [number, *rest]), [[0, -number % size], *[[0, 0]] * len(rest)])
        return tf.reshape(filled, [chunks, size, *rest])

    def join(array, *rest):
        return tf.reshape(tf.reshape(array.stack(), [chunks * size, *rest])[:number], [*leading, *rest])

    cut_labels = cut(labels)

    @tf.custom_gradient
    def computed(rows, matrix):
        cut_rows = cut(rows, width)

        def step(i, *arrays):
            results = function(cut_rows[i], matrix, cut_labels[i])
            return i + 1, *(array.write(i, result) for array, result in zip(arrays, results, strict=True))

        def backward(*upstream):
            cut_upstream = [cut(tensor) for tensor in upstream]

            def step(i, of_rows, of_matrix):
                own = cut_rows[i]
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch([own, matrix])
                    results = function(own, matrix, cut_labels[i])
                of_own, of_part = tape.gradient(results, [own, matrix], [tensor[i] for tensor in cut_upstream])
                return i + 1, of_rows.write(i, of_own), of_matrix + tf.cast(of_part, tf.float32)

            start = _array(chunks, rows.dtype, size, width), tf.zeros_like(matrix, tf.float32)
            of_rows, of_matrix = _loop(chunks, step, *start)
            return join(of_rows, width), tf.cast(of_matrix, matrix.dtype)

        results = _loop(chunks, step, *(_array(chunks, tf.float32, size) for _ in range(num_results)))
        return tuple(join(result) for result in results), backward

    return computed(rows, matrix)


def _array(chunks, dtype, *shape):
    return tf.TensorArray(dtype, chunks, element_shape=shape)


def _loop(chunks, step, *start):
    """What is carried along by steps for each chunk. Of a number that XLA knows: a GPU need not ask when it ends."""
    return tf.while_loop(lambda i, *_: i < chunks, step, [tf.constant(0), *start])[1:]


def _rows_of_chunk(number, num_columns):
    """Chunks of like size, so that the last one has little to fill up."""
    chunks = -(-number * num_columns // LOGITS_AT_ONCE)
    size, tile = -(-number // chunks), min(_TILE, number)
    return -(-size // tile) * tile

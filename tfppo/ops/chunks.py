"""Functions of a product with a large matrix, such as logits, for some rows at a time: the product is never whole."""

import math
from collections.abc import Callable

import tensorflow as tf

from tfppo.ops.sizes import LOGITS_AT_ONCE, size_of_parts


def is_large(rows: tf.Tensor, num_columns: int) -> bool:
    """Whether a product [..., V] of rows [..., D] is to be made by chunks; not where the graph knows no size."""
    sizes = [*rows.shape[:-1], num_columns]
    return None not in sizes and math.prod(sizes) > LOGITS_AT_ONCE


class _Cutting:
    """How N rows are cut into chunks whose products with V columns are small enough. Args: leading: N by axes."""

    def __init__(self, leading, num_columns):
        self._leading, self._number = leading, math.prod(leading)
        chunks = -(-self._number * num_columns // LOGITS_AT_ONCE)
        self._size = size_of_parts(self._number, chunks, most=self._number)
        self.count = -(-self._number // self._size)

    def cut(self, tensor):
        """[*leading, ...] as [chunks, size, ...], the last one filled up with zeros."""
        rest = tensor.shape[len(self._leading) :]
        filled = tf.pad(
            tf.reshape(tensor, [self._number, *rest]), [[0, -self._number % self._size], *[[0, 0]] * len(rest)]
        )
        return tf.reshape(filled, [self.count, self._size, *rest])

    def array(self, dtype, *rest):
        return tf.TensorArray(dtype, self.count, element_shape=[self._size, *rest])

    def join(self, array, *rest):
        """What was written for each chunk as [*leading, ...]."""
        stacked = tf.reshape(array.stack(), [self.count * self._size, *rest])
        return tf.reshape(stacked[: self._number], [*self._leading, *rest])

    def loop(self, step, *start):
        """What steps carry along. Of a number that XLA knows: a GPU need not ask when it ends."""
        return tf.while_loop(lambda i, *_: i < self.count, step, [tf.constant(0), *start])[1:]


def in_chunks(
    function: Callable[..., tuple[tf.Tensor, ...]], *tensors: tf.Tensor, num_columns: int, num_results: int
) -> tuple[tf.Tensor, ...]:
    """function(*tensors), computed for some rows at a time, without a gradient.

    Args:
        function: (tensors [n, ...]) -> `num_results` of float32 [n], of each row by itself, through products [n, V].
        tensors: [..., *], the last one [...] alone, of known shapes; num_columns: V.
    Returns: as many of float32 [...].
    """
    return _computed(_Cutting(tensors[-1].shape, num_columns), function, tensors, num_results)


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
    cutting, width = _Cutting(rows.shape[:-1], matrix.shape[0]), rows.shape[-1]

    @tf.custom_gradient
    def computed(rows, matrix):
        results = _computed(cutting, lambda own, part: function(own, matrix, part), (rows, labels), num_results)

        def backward(*upstream):
            cut_rows, cut_labels, *cut_upstream = (cutting.cut(tensor) for tensor in (rows, labels, *upstream))

            def step(i, of_rows, of_matrix):
                own = cut_rows[i]
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch([own, matrix])
                    results = function(own, matrix, cut_labels[i])
                of_own, of_part = tape.gradient(results, [own, matrix], [tensor[i] for tensor in cut_upstream])
                return i + 1, of_rows.write(i, of_own), of_matrix + tf.cast(of_part, tf.float32)

            start = cutting.array(rows.dtype, width), tf.zeros_like(matrix, tf.float32)
            of_rows, of_matrix = cutting.loop(step, *start)
            return cutting.join(of_rows, width), tf.cast(of_matrix, matrix.dtype)

        return results, backward

    return computed(rows, matrix)


def _computed(cutting, function, tensors, num_results):
    parts = [cutting.cut(tensor) for tensor in tensors]

    def step(i, *arrays):
        results = function(*(part[i] for part in parts))
        return i + 1, *(array.write(i, result) for array, result in zip(arrays, results, strict=True))

    arrays = cutting.loop(step, *(cutting.array(tf.float32) for _ in range(num_results)))
    return tuple(cutting.join(array) for array in arrays)

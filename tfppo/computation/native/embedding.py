"""Sums of rows through the native operations, as the gradients of embeddings are."""

from types import ModuleType

import tensorflow as tf


def add_rows(ops: ModuleType, matrix: tf.Tensor, rows: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """matrix [V, D] with rows [N, D] added to its rows `places` int [N], float32; in place where nobody else needs it.

    Args: ops: the loaded operations.
    """
    sums = ops.tfppo_add_rows(matrix=matrix, rows=rows, places=tf.cast(places, tf.int32))
    return tf.ensure_shape(sums, matrix.shape)

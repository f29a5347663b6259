"""Sizes of tensors."""

import tensorflow as tf


def size_of(tensor: tf.Tensor, axis: int) -> int | tf.Tensor:
    """The size of an axis: a Python int where the graph knows it, else a scalar tensor."""
    static = tensor.shape[axis]
    return tf.shape(tensor)[axis] if static is None else static


def repeat_rows(tensor: tf.Tensor, size: int) -> tf.Tensor:
    """A batch [B, ...] filled up to [size, ...] with copies of its rows."""
    return tf.gather(tensor, tf.range(size) % tensor.shape[0])

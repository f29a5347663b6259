"""Writes into a buffer at an index that is a tensor, without a copy of the buffer."""

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla


def write_slot(buffer: tf.Tensor, values: tf.Tensor, index: tf.Tensor, *, axis: int, compiled: bool) -> tf.Tensor:
    """The buffer with `values` at `index` of an axis; written in place where the old buffer is not needed again.

    XLA and the plain graph each have an operation for this that the other lacks.

    Args: values: of the shape of the buffer without the axis; index: int32 scalar; compiled: whether XLA compiles.
    """
    if compiled:
        start = [index if i == axis else 0 for i in range(len(buffer.shape))]
        return xla.dynamic_update_slice(buffer, tf.expand_dims(values, axis), tf.stack(start))
    others = sum(1 << i for i in range(len(buffer.shape)) if i != axis)
    start = [index if i == axis else 0 for i in range(len(buffer.shape))]
    return tf.raw_ops.TensorStridedSliceUpdate(
        input=buffer,
        begin=tf.stack(start),
        end=tf.zeros_like(tf.stack(start)),
        strides=tf.ones_like(tf.stack(start)),
        value=values,
        begin_mask=others,
        end_mask=others,
        shrink_axis_mask=1 << axis,
    )

"""Responses of varying lengths: how many parts to compute them in, and what to cut a part to."""

import tensorflow as tf

LENGTH_PARTS = 2  # parts of like length; each further one costs an update casts and sums of all gradients


def bucket_of(length: int | tf.Tensor, longest: int, buckets: int) -> int | tf.Tensor:
    """A length rounded up to one of at most `buckets` different ones, the last of which is `longest` or just above.

    Args: length: int or int tensor, at least 1.
    """
    step = -(-longest // buckets)
    return -(-length // step) * step


def at_places(tensor: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """[B, R, ...] at places int [N] among its B x R, row after row: [N, 1, ...]."""
    flat = tf.reshape(tensor, [-1, *tensor.shape[2:]])
    return tf.gather(flat, places)[:, None]

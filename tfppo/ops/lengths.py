"""Batches of responses of different lengths: split into parts of similar length, each cut to its longest row."""

import tensorflow as tf

LENGTH_PARTS = 2  # each further part costs the update one more cast of all weights and sum of all gradients


def bucket_of(length: int | tf.Tensor, longest: int, buckets: int) -> int | tf.Tensor:
    """Rounds a length up to one of at most `buckets` values, the largest of which is `longest` or just above.

    Args: length: int or int tensor, at least 1.
    """
    step = -(-longest // buckets)
    return -(-length // step) * step


def at_places(tensor: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """Elements of a tensor [B, R, ...] at flat indices `places` int [N] into B x R: [N, 1, ...]."""
    flat = tf.reshape(tensor, [-1, *tensor.shape[2:]])
    return tf.gather(flat, places)[:, None]

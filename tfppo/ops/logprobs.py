"""From logits to log-probabilities and entropy."""

import tensorflow as tf


def token_logprobs(logits: tf.Tensor, token_ids: tf.Tensor, temperature: float = 1.0) -> tf.Tensor:
    """Log-probability of each token under softmax(logits / temperature), in float32.

    Args: logits [..., V]; token_ids int [...]. Returns float32 [...].
    """
    logits = tf.cast(logits, tf.float32) / temperature
    return -tf.nn.sparse_softmax_cross_entropy_with_logits(labels=token_ids, logits=logits)


def entropy(logits: tf.Tensor, temperature: float = 1.0) -> tf.Tensor:
    """Entropy in nats of softmax(logits / temperature), in float32.

    Args: logits [..., V], none of them infinite. Returns float32 [...], never negative.
    """
    logits = tf.cast(logits, tf.float32) / temperature
    shifted = logits - tf.reduce_max(logits, axis=-1, keepdims=True)
    weights = tf.exp(shifted)
    total = tf.reduce_sum(weights, axis=-1)
    return tf.math.log(total) - tf.reduce_sum(weights * shifted, axis=-1) / total

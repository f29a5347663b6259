"""Per-token estimates of the KL divergence, and the controller of its coefficient."""

import tensorflow as tf


def kl_exact(logits, ref_logits, temperature=1.0):
    """KL(policy || reference) in nats of the two next-token distributions, over the whole vocabulary.

    Args: logits, ref_logits [..., V]. Returns float32 [...].
    """
    logprobs = tf.nn.log_softmax(tf.cast(logits, tf.float32) / temperature)
    ref_logprobs = tf.nn.log_softmax(tf.cast(ref_logits, tf.float32) / temperature)
    return tf.reduce_sum(tf.exp(logprobs) * (logprobs - ref_logprobs), axis=-1)


def adaptive_kl_coef(kl_coef, kl, *, target, horizon, num_episodes):
    """The next KL coefficient: raised while the measured KL is above target, lowered while below.

    Ziegler et al. 2019, section 2.2: the relative error is clipped to 0.2, the gain is episodes over horizon.

    Args: kl: mean over the batch of the KL summed over each response, in nats; target: in the same unit.
    """
    error = tf.clip_by_value(kl / target - 1.0, -0.2, 0.2)
    return kl_coef * (1.0 + error * num_episodes / horizon)

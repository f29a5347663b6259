"""The losses of PPO, one number a token; the caller takes the masked, global mean."""

import tensorflow as tf

# exp(20) is far outside any clip range and far inside float32: the bound changes no clipped loss and stops overflow.
MAX_LOG_RATIO = 20.0


def importance_ratio(logprobs, old_logprobs):
    """pi(token) / pi_old(token), with the log-ratio bounded so that nothing overflows. [...] -> [...]."""
    return tf.exp(tf.clip_by_value(logprobs - old_logprobs, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def clipped_surrogate_loss(ratio, advantages, *, clip_range):
    """-min(ratio * A, clip(ratio, 1 - eps, 1 + eps) * A) (Schulman et al. 2017, equation 7). [...] -> [...]."""
    clipped = tf.clip_by_value(ratio, 1.0 - clip_range, 1.0 + clip_range)
    return tf.maximum(-advantages * ratio, -advantages * clipped)


def clipped_value_loss(values, old_values, returns, *, value_clip_range):
    """Half the larger of the squared errors of the value and of the value kept near the old one. [...] -> [...].

    `value_clip_range` None takes the plain squared error.
    """
    squared_error = tf.square(values - returns)
    if value_clip_range is not None:
        clipped = old_values + tf.clip_by_value(values - old_values, -value_clip_range, value_clip_range)
        squared_error = tf.maximum(squared_error, tf.square(clipped - returns))
    return 0.5 * squared_error

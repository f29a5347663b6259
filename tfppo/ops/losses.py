"""The losses of PPO, per token, to be summed with `token_weights`; and the loss of reward models."""

import tensorflow as tf

from tfppo.config.choices import AGGREGATIONS
from tfppo.ops.kl import MAX_LOG_RATIO


def importance_ratio(logprobs: tf.Tensor, old_logprobs: tf.Tensor) -> tf.Tensor:
    """pi(token) / pi_old(token), with the log-ratio clipped against overflow. [...] -> [...]."""
    return tf.exp(tf.clip_by_value(logprobs - old_logprobs, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def clipped_surrogate_loss(
    ratio: tf.Tensor,
    advantages: tf.Tensor,
    *,
    clip_range: float,
    clip_range_high: float | None = None,
    dual_clip: float | None = None,
) -> tf.Tensor:
    """-min(ratio * A, clip(ratio, 1 - eps, 1 + eps) * A) (Schulman et al. 2017, equation 7). [...] -> [...].

    Args:
        clip_range_high: eps of the upper clip (clip-higher, Yu et al. 2025); None: clip_range.
        dual_clip: upper bound of the loss where A < 0, in multiples of -A (Ye et al. 2020); None: no bound.
    """
    high = clip_range if clip_range_high is None else clip_range_high
    clipped = tf.clip_by_value(ratio, 1.0 - clip_range, 1.0 + high)
    loss = tf.maximum(-advantages * ratio, -advantages * clipped)
    if dual_clip is not None:
        loss = tf.where(advantages < 0, tf.minimum(loss, -advantages * dual_clip), loss)
    return loss


def is_clipped(
    ratio: tf.Tensor, advantages: tf.Tensor, *, clip_range: float, clip_range_high: float | None = None
) -> tf.Tensor:
    """Whether the clip has removed the gradient of a token: bool [...]."""
    high = clip_range if clip_range_high is None else clip_range_high
    return ((advantages > 0) & (ratio > 1.0 + high)) | ((advantages < 0) & (ratio < 1.0 - clip_range))


def clipped_value_loss(
    values: tf.Tensor, old_values: tf.Tensor, returns: tf.Tensor, *, value_clip_range: float | None
) -> tf.Tensor:
    """Half the squared error of the value or of the clipped value, whichever is larger. [...] -> [...].

    The clipped value is at most `value_clip_range` from the old value. With None it is half the plain squared error.
    """
    squared_error = tf.square(values - returns)
    if value_clip_range is not None:
        clipped = old_values + tf.clip_by_value(values - old_values, -value_clip_range, value_clip_range)
        squared_error = tf.maximum(squared_error, tf.square(clipped - returns))
    return 0.5 * squared_error


def is_value_clipped(
    values: tf.Tensor, old_values: tf.Tensor, returns: tf.Tensor, *, value_clip_range: float
) -> tf.Tensor:
    """Whether the value loss is the one of the clipped value: bool [...]."""
    clipped = old_values + tf.clip_by_value(values - old_values, -value_clip_range, value_clip_range)
    # Inside the range `clipped` equals the value up to rounding, which must not decide.
    outside = tf.abs(values - old_values) > value_clip_range
    return outside & (tf.square(clipped - returns) > tf.square(values - returns))


def token_weights(mask: tf.Tensor, aggregation: str) -> tf.Tensor:
    """The weight of each token in the loss of a minibatch: [M, R] -> [M, R], 0 at padding.

    token_mean: the mean over tokens. sequence_mean: the mean over sequences of their mean over tokens.
    sequence_sum: the mean over sequences of their sum over tokens.
    """
    num_sequences = tf.cast(tf.shape(mask)[0], mask.dtype)
    if aggregation == "token_mean":
        return tf.math.divide_no_nan(mask, tf.reduce_sum(mask))
    if aggregation == "sequence_mean":
        return tf.math.divide_no_nan(mask, tf.reduce_sum(mask, axis=1, keepdims=True)) / num_sequences
    if aggregation == "sequence_sum":
        return mask / num_sequences
    raise ValueError(f"aggregation is {aggregation!r}; choose one of {AGGREGATIONS}")


def preference_loss(scores: tf.Tensor) -> tf.Tensor:
    """-log softmax of the first of K scores, that of the chosen response: [B, K] -> [B].

    For K = 4 the best-of-4 cross entropy of Ziegler et al. 2019 (equation 1); for K = 2 it is -log sigmoid(chosen -
    rejected) (Stiennon et al. 2020, equation 1).
    """
    # log(1 + sum of exp(rejected - chosen)): accurate for small losses and finite for large ones.
    return tf.nn.softplus(tf.reduce_logsumexp(scores[:, 1:], axis=1) - scores[:, 0])

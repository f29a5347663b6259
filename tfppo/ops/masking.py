"""Masks, masked statistics, whitening and positions. Sums leave padding out, even if it is NaN."""

import tensorflow as tf

MASKED_SCORE = -1e9  # a score or logit that softmax makes 0


def zero_padding(values: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """The values where `mask` is above 0, and 0 elsewhere, even where they are NaN. [...] -> [...]."""
    return tf.where(mask > 0, values, tf.zeros_like(values))


def masked_sum(values: tf.Tensor, mask: tf.Tensor, axis: int | None = None) -> tf.Tensor:
    """Sum of values times mask over the positions where `mask` is above 0; NaN elsewhere does not matter."""
    return tf.reduce_sum(mask * zero_padding(values, mask), axis=axis)


def masked_mean(values: tf.Tensor, mask: tf.Tensor, axis: int | None = None) -> tf.Tensor:
    """Mean over the positions where `mask` is 1; 0 where there is none."""
    return tf.math.divide_no_nan(masked_sum(values, mask, axis), tf.reduce_sum(mask, axis=axis))


def masked_moments(values: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and biased variance (divided by n, not n - 1) over the positions where `mask` is 1."""
    mean = masked_mean(values, mask)
    return mean, masked_mean(tf.square(values - mean), mask)


def whiten(values: tf.Tensor, mask: tf.Tensor, *, shift_mean: bool, unbiased: bool = False) -> tf.Tensor:
    """Scales values to variance 1 over the mask; with `shift_mean` also to mean 0, else the mean stays.

    The variance is divided by n (Ziegler et al. 2019), with `unbiased` by n - 1 (TRL); the factor is
    rsqrt(variance + 1e-8). Padding becomes 0.

    Args: values [B, R]; mask [B, R]. Returns [B, R].
    """
    mean, variance = masked_moments(values, mask)
    if unbiased:
        count = tf.reduce_sum(mask)
        variance *= count / tf.maximum(count - 1.0, 1.0)
    whitened = (values - mean) * tf.math.rsqrt(variance + 1e-8)
    if not shift_mean:
        whitened += mean
    return zero_padding(whitened, mask)


def scale_to_unit(values: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Scales values to a mean square of 1 over the mask: zeros stay zeros, and signs stay. Padding becomes 0.

    Args: values [B, R]; mask [B, R]. Returns [B, R].
    """
    return zero_padding(values * tf.math.rsqrt(masked_mean(tf.square(values), mask) + 1e-8), mask)


def causal_mask(segment_ids: tf.Tensor) -> tf.Tensor:
    """Which position may attend to which: itself and earlier ones of the same segment.

    Args: segment_ids int [B, T]; a padding mask is the special case of segments 0 and 1.
    Returns: bool [B, 1, T, T].
    """
    length = tf.shape(segment_ids)[1]
    causal = tf.linalg.band_part(tf.ones([length, length], tf.bool), -1, 0)
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return (same & causal[None])[:, None]


def positions_from_mask(mask: tf.Tensor) -> tf.Tensor:
    """Positions that do not count padding: the number of real tokens before each position.

    Args: mask [B, T]. Returns int32 [B, T]; for two pads and three tokens 0, 0, 0, 1, 2.
    """
    mask = tf.cast(mask, tf.int32)
    return tf.cumsum(mask, axis=1) - mask


def last_token_one_hot(mask: tf.Tensor) -> tf.Tensor:
    """1 at the last real token of each row, 0 elsewhere; an empty row is all 0.

    Args: mask [B, R], padded on the right. Returns float32 [B, R].
    """
    mask = tf.cast(mask, tf.float32)
    following = tf.concat([mask[:, 1:], tf.zeros_like(mask[:, :1])], axis=1)
    return mask * (1.0 - following)

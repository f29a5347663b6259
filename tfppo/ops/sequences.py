"""Prompts and responses as one sequence."""

import tensorflow as tf

from tfppo.ops.shapes import size_of


def teacher_forced(
    prompt_ids: tf.Tensor, prompt_mask: tf.Tensor, response_ids: tf.Tensor, response_mask: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, int | tf.Tensor]:
    """The sequence that is read to get the states in which each response token was chosen.

    The state of the first one is the prompt: each is read one position before its token, and the last token's own
    position is not computed at all.

    Args: prompt_ids, prompt_mask [B, P], padded on the left; response_ids, response_mask [B, R].
    Returns: token_ids and mask int32 [B, P + R - 1], and the position of the first of the R states.
    """
    token_ids = tf.concat([prompt_ids, response_ids[:, :-1]], axis=1)
    mask = tf.concat([tf.cast(prompt_mask, tf.int32), tf.cast(response_mask[:, :-1], tf.int32)], axis=1)
    return token_ids, mask, size_of(prompt_ids, 1) - 1

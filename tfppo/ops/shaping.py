"""Placement of the score of a response among its tokens."""

import tensorflow as tf

from tfppo.config.choices import PLACEMENTS
from tfppo.ops.masking import last_token_one_hot, zero_padding


def mask_after_last(mask: tf.Tensor) -> tf.Tensor:
    """The mask extended by the state after the last token, where there is room. [B, R] -> [B, R]."""
    return tf.concat([tf.ones_like(mask[:, :1]), mask[:, :-1]], axis=1)


def place_scores(scores: tf.Tensor, mask: tf.Tensor, placement: str) -> tf.Tensor:
    """Per-token scores [B, R] from one score for each response [B]; dense scores [B, R] stay where they are.

    last_token: at the last real token. after_last: one position later, where there is room (TRL's convention).
    last_position: at position R - 1, regardless of where the response ended (Ziegler et al. 2019).
    """
    if len(scores.shape) == 2:
        return zero_padding(scores, mask)
    if placement == "last_token":
        return scores[:, None] * last_token_one_hot(mask)
    if placement == "after_last":
        return scores[:, None] * last_token_one_hot(mask_after_last(mask))
    if placement == "last_position":
        return scores[:, None] * tf.one_hot(tf.fill(tf.shape(scores), tf.shape(mask)[1] - 1), tf.shape(mask)[1])
    raise ValueError(f"placement is {placement!r}; choose one of {PLACEMENTS}")

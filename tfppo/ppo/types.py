"""The data that flows through one PPO iteration, one shape a field.

Shape legend: B batch (episodes), P prompt length, R response length, T = P + R, V vocabulary, D hidden size.
Masks are 1 for a real token and 0 for padding everywhere. Prompts are padded on the left, responses on the right,
so that column P is the first response token of every row.
"""

from typing import NamedTuple

import tensorflow as tf

# [b, R] each: weights of tokens in the policy's losses, in the statistics, and in the critic's loss.
TokenWeights = tuple[tf.Tensor, tf.Tensor, tf.Tensor]


class Samples(NamedTuple):
    """What the sampler knew while it sampled; nothing here is computed a second time."""

    response_ids: tf.Tensor  # [B, R] int32, PAD after the stop token
    response_mask: tf.Tensor  # [B, R] float32, the stop token included
    logprobs: tf.Tensor  # [B, R] float32, under the sampling distribution; 0 at padding
    values: tf.Tensor  # [B, R] float32, the critic's value of the state before each token; 0 at padding, but for the
    #                    state right after the stop token where the sampler was asked for it
    stopped: tf.Tensor  # [B] bool, whether the stop token came within R tokens


class Rollout(NamedTuple):
    """One batch of all that sampling and scoring produced: the input of an update."""

    prompt_ids: tf.Tensor  # [B, P] int32
    prompt_mask: tf.Tensor  # [B, P] int32
    response_ids: tf.Tensor  # [B, R] int32
    response_mask: tf.Tensor  # [B, R] float32
    logprobs: tf.Tensor  # [B, R] float32
    values: tf.Tensor  # [B, R] float32
    ref_logprobs: tf.Tensor  # [B, R] float32, under the frozen reference; 0 at padding
    scores: tf.Tensor  # [B] or, dense, [B, R] float32: what the reward functions gave, weighted and summed
    stopped: tf.Tensor  # [B] bool


class Targets(NamedTuple):
    """What the losses of every epoch are computed from: a rollout, reduced to the learner's needs."""

    prompt_ids: tf.Tensor  # [B, P] int32
    prompt_mask: tf.Tensor  # [B, P] int32
    response_ids: tf.Tensor  # [B, R] int32
    response_mask: tf.Tensor  # [B, R] float32
    critic_mask: tf.Tensor  # [B, R] float32, the states that the critic learns the value of
    old_logprobs: tf.Tensor  # [B, R] float32
    old_values: tf.Tensor  # [B, R] float32
    ref_logprobs: tf.Tensor  # [B, R] float32
    advantages: tf.Tensor  # [B, R] float32
    returns: tf.Tensor  # [B, R] float32

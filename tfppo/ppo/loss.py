"""The loss of PPO: clipped surrogate, clipped value error, entropy bonus and KL term, summed over tokens."""

import tensorflow as tf

from tfppo.computation.engine import Loss
from tfppo.config import PpoConfig
from tfppo.ops.kl import kl_estimate
from tfppo.ops.losses import (
    clipped_surrogate_loss,
    clipped_value_loss,
    importance_ratio,
    is_clipped,
    is_value_clipped,
)
from tfppo.ops.masking import masked_sum
from tfppo.ppo.types import Targets, TokenWeights

STEP_STATISTICS = (
    "loss/policy",
    "loss/value",
    "loss/total",
    "policy/approx_kl",
    "policy/clip_fraction",
    "policy/entropy",
    "policy/ratio",
    "value/clip_fraction",
)
APPROX_KL = STEP_STATISTICS.index("policy/approx_kl")


def make_loss(
    batch: Targets, weights: TokenWeights, config: PpoConfig, temperature: float, policy_coef: tf.Tensor
) -> Loss:
    """The loss of some rows of a minibatch, for an engine to differentiate; the arguments are those of `ppo_loss`."""
    return Loss(
        of_tokens=lambda logprobs, entropies, values: ppo_loss(
            logprobs, entropies, values, batch, weights, config, policy_coef
        ),
        token_ids=batch.response_ids,
        temperature=temperature,
        entropy_learns=config.entropy_coef > 0,
    )


def ppo_loss(
    logprobs: tf.Tensor,
    entropies: tf.Tensor,
    values: tf.Tensor,
    batch: Targets,
    weights: TokenWeights,
    config: PpoConfig,
    policy_coef: tf.Tensor,
) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor]]:
    """The loss of some rows of a minibatch, and STEP_STATISTICS, as shares of the whole minibatch's.

    Each token enters with its weight in the whole minibatch: however a minibatch is cut, over replicas or accumulation
    steps, the shares add up to the same loss.
    Args:
        logprobs, entropies, values [b, R]: the policy's, of the states in which each response token was chosen.
        weights: three [b, R]: of the policy's losses, of the statistics (mean over tokens), of the critic's loss.
        policy_coef: 0 while the critic alone learns, else 1.
    Returns: (loss, ([8] statistics, largest |ratio - 1| of these rows)).
    """
    policy_weights, token_means, critic_weights = weights
    ratio = importance_ratio(logprobs, batch.old_logprobs)
    surrogate = clipped_surrogate_loss(
        ratio,
        batch.advantages,
        clip_range=config.clip_range,
        clip_range_high=config.clip_range_high,
        dual_clip=config.dual_clip,
    )
    value_errors = clipped_value_loss(values, batch.old_values, batch.returns, value_clip_range=config.value_clip_range)

    policy_loss = masked_sum(surrogate, policy_weights)
    value_loss = masked_sum(value_errors, critic_weights)
    objective = policy_loss
    if config.entropy_coef:
        objective -= config.entropy_coef * masked_sum(entropies, policy_weights)
    if config.kl_loss_coef:
        kl = kl_estimate(logprobs - batch.ref_logprobs, config.kl_loss_estimator)
        objective += config.kl_loss_coef * masked_sum(kl, policy_weights)
    loss = policy_coef * objective + config.value_coef * value_loss

    def mean(per_token):
        return masked_sum(per_token, token_means)

    clipped = is_clipped(ratio, batch.advantages, clip_range=config.clip_range, clip_range_high=config.clip_range_high)
    value_clipped = tf.zeros_like(values, tf.bool)
    if config.value_clip_range is not None:
        value_clipped = is_value_clipped(
            values, batch.old_values, batch.returns, value_clip_range=config.value_clip_range
        )
    statistics = [
        policy_loss,
        value_loss,
        loss,
        mean(0.5 * tf.square(logprobs - batch.old_logprobs)),
        mean(tf.cast(clipped, tf.float32)),
        mean(entropies),
        mean(ratio),
        mean(tf.cast(value_clipped, tf.float32)),
    ]
    ratio_error = tf.reduce_max(tf.where(batch.response_mask > 0, tf.abs(ratio - 1.0), 0.0))
    return loss, (tf.stack(statistics), ratio_error)

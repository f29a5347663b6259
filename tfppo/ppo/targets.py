"""From a rollout to what the losses need: per-token rewards, returns, advantages."""

import tensorflow as tf

from tfppo.config import PpoConfig, RewardConfig
from tfppo.config.choices import GROUPED
from tfppo.ops.advantages import estimate_advantages, without_spread
from tfppo.ops.kl import kl_estimate
from tfppo.ops.masking import masked_mean, masked_moments, masked_sum, scale_to_unit, whiten, zero_padding
from tfppo.ops.shaping import mask_after_last, place_scores
from tfppo.ppo.types import Rollout, Targets


def prepare_targets(
    rollout: Rollout, ppo: PpoConfig, reward: RewardConfig, kl_coef: tf.Tensor | float
) -> tuple[Targets, dict[str, tf.Tensor]]:
    """Rewards, returns and advantages of a rollout, or of those rows that are whitened together, and figures of them.

    Returns: Targets, and a dict of scalars.
    """
    mask = rollout.response_mask
    critic_mask = mask_after_last(mask) if reward.placement == "after_last" else mask
    log_ratio = zero_padding(rollout.logprobs - rollout.ref_logprobs, mask)
    penalty = kl_coef * kl_estimate(log_ratio, ppo.kl_estimator)
    rewards = place_scores(rollout.scores, mask, reward.placement)
    due: tf.Tensor | None = penalty
    if reward.whiten:
        rewards, due = whiten(rewards - penalty, critic_mask, shift_mean=False, unbiased=ppo.whiten_unbiased), None
    advantages, returns = estimate_advantages(
        rewards,
        rollout.values,
        mask,
        estimator=ppo.estimator,
        gamma=ppo.gamma,
        gae_lambda=ppo.gae_lambda,
        critic_gae_lambda=ppo.critic_gae_lambda,
        group_size=ppo.group_size,
        critic_mask=critic_mask,
        penalty=due,
    )
    largest = tf.reduce_max(tf.abs(advantages))
    if ppo.whiten_advantages and ppo.estimator in GROUPED:
        advantages = scale_to_unit(advantages, mask)  # a shift would move groups without spread away from 0
    elif ppo.whiten_advantages:
        advantages = whiten(advantages, mask, shift_mean=True, unbiased=ppo.whiten_unbiased)
    targets = Targets(
        rollout.prompt_ids,
        rollout.prompt_mask,
        rollout.response_ids,
        mask,
        critic_mask,
        old_logprobs=zero_padding(rollout.logprobs, mask),
        old_values=zero_padding(rollout.values, critic_mask),
        ref_logprobs=zero_padding(rollout.ref_logprobs, mask),
        advantages=advantages,
        returns=returns,
    )
    return targets, {
        **_objective(rollout, log_ratio, penalty, kl_coef),
        **_groups(rollout, ppo),
        **_critic(rollout.values, returns, critic_mask),
        "objective/largest_advantage": largest,
        "response/length": tf.reduce_mean(tf.reduce_sum(mask, axis=1)),
        "response/stopped": tf.reduce_mean(tf.cast(rollout.stopped, tf.float32)),
    }


def _whole_scores(rollout):
    """One score a response [B]: of dense scores the sum."""
    if len(rollout.scores.shape) == 2:
        return masked_sum(rollout.scores, rollout.response_mask, axis=1)
    return rollout.scores


def _groups(rollout, ppo):
    if ppo.estimator not in GROUPED:
        return {}
    equal = without_spread(_whole_scores(rollout), ppo.group_size)
    return {"objective/groups_without_spread": tf.reduce_mean(tf.cast(equal, tf.float32))}


def _objective(rollout, log_ratio, penalty, kl_coef):
    scores = _whole_scores(rollout)
    return {
        "objective/kl": tf.reduce_mean(tf.reduce_sum(log_ratio, axis=1)),
        "objective/kl_coef": kl_coef,
        "objective/entropy": tf.reduce_mean(masked_sum(-rollout.logprobs, rollout.response_mask, axis=1)),
        "objective/shaped_score": tf.reduce_mean(scores),
        "objective/rlhf_reward": tf.reduce_mean(scores - tf.reduce_sum(penalty, axis=1)),
    }


def _critic(values, returns, mask):
    _, variance = masked_moments(returns, mask)
    squared_error = masked_mean(tf.square(values - returns), mask)
    return {
        "value/explained_variance": 1.0 - squared_error / (variance + 1e-8),
        "value/mean": masked_mean(values, mask),
    }

"""The PPO update re-implemented in float64 (NumPy), or on one tape, one token at a time."""

import math

import numpy as np
import tensorflow as tf
from ppo_cases import TEMPERATURE

from tfppo.ppo.learner import STEP_STATISTICS

KL_ESTIMATES = {"k1": lambda d: d, "k2": lambda d: d * d / 2, "k3": lambda d: math.exp(-d) - 1 + d, "abs": abs}


def naive_targets(rollout, config, kl_coef, whiten_rewards=False):
    """Advantages and returns [B, R], from the equations: KL reward, whitening, GAE, whitening."""
    mask = rollout.response_mask.numpy().astype(int)
    logprobs, ref_logprobs, values, scores = (
        array.numpy().astype(np.float64)
        for array in (rollout.logprobs, rollout.ref_logprobs, rollout.values, rollout.scores)
    )
    tokens = [(b, t) for b in range(mask.shape[0]) for t in range(mask[b].sum())]
    rewards, advantages, returns = np.zeros([3, *mask.shape])
    for b, t in tokens:
        rewards[b, t] = -kl_coef * KL_ESTIMATES[config.kl_estimator](logprobs[b, t] - ref_logprobs[b, t])
        if scores.ndim == 2:
            rewards[b, t] += scores[b, t]
        elif t == mask[b].sum() - 1:
            rewards[b, t] += scores[b]

    def naive_whiten(numbers, keep_mean):
        real = np.array([numbers[token] for token in tokens])
        deviation = math.sqrt(real.var(ddof=int(config.whiten_unbiased)) + 1e-8)
        whitened = np.zeros(mask.shape)
        for token in tokens:
            whitened[token] = (numbers[token] - real.mean()) / deviation + keep_mean * real.mean()
        return whitened

    if whiten_rewards:
        rewards = naive_whiten(rewards, keep_mean=True)
    for b in range(mask.shape[0]):
        advantage, next_value = 0.0, 0.0
        for t in reversed(range(mask[b].sum())):
            delta = rewards[b, t] + config.gamma * next_value - values[b, t]
            advantage = delta + config.gamma * config.gae_lambda * advantage
            advantages[b, t], returns[b, t], next_value = advantage, advantage + values[b, t], values[b, t]
    if config.whiten_advantages:
        advantages = naive_whiten(advantages, keep_mean=False)
    return advantages, returns


def clip_ranges(config):
    return config.clip_range, config.clip_range if config.clip_range_high is None else config.clip_range_high


def naive_statistics(logits, values, batch, config):
    """STEP_STATISTICS of rows as means over their real tokens, and the largest distance of a ratio from 1."""
    sums, count, largest = np.zeros(len(STEP_STATISTICS)), 0, 0.0
    mask = batch.response_mask.numpy()
    low, high = clip_ranges(config)
    for b, t in np.argwhere(mask == 1):
        scaled = logits[b, t].astype(np.float64) / TEMPERATURE
        probabilities = np.exp(scaled - scaled.max())
        probabilities /= probabilities.sum()
        value, old_value = float(values[b, t]), float(batch.old_values[b, t])
        advantage, target = float(batch.advantages[b, t]), float(batch.returns[b, t])
        log_ratio = math.log(probabilities[int(batch.response_ids[b, t])]) - float(batch.old_logprobs[b, t])
        ratio = math.exp(log_ratio)
        kept = min(max(ratio, 1 - low), 1 + high)
        policy_loss = -min(ratio * advantage, kept * advantage)
        if config.dual_clip is not None and advantage < 0:
            policy_loss = min(policy_loss, -config.dual_clip * advantage)
        near = min(max(value, old_value - config.value_clip_range), old_value + config.value_clip_range)
        value_loss = 0.5 * max((value - target) ** 2, (near - target) ** 2)
        sums += [
            policy_loss,
            value_loss,
            policy_loss + config.value_coef * value_loss,
            0.5 * log_ratio**2,
            ratio > 1 + high if advantage > 0 else ratio < 1 - low,
            -sum(p * math.log(p) for p in probabilities if p > 0),
            ratio,
            (near - target) ** 2 > (value - target) ** 2,
        ]
        count, largest = count + 1, max(largest, abs(ratio - 1))
    return sums / count, largest


def naive_mean(terms, mask, aggregation):
    """The terms {(b, t): number} of real tokens as one number, by the definition of an aggregation."""
    rows = [[terms[b, t] for t in range(mask.shape[1]) if mask[b, t]] for b in range(mask.shape[0])]
    if aggregation == "token_mean":
        return sum(sum(row) for row in rows) / sum(len(row) for row in rows)
    if aggregation == "sequence_mean":
        return sum(sum(row) / len(row) for row in rows) / len(rows)
    return sum(sum(row) for row in rows) / len(rows)


def naive_gradients(policy, batch, config, policy_coef=1.0):
    """The loss of a minibatch and its gradients, summed up one token at a time on one tape."""
    variables = [variable.value for variable in policy.trainable_variables]
    mask = batch.response_mask.numpy()
    low, high = clip_ranges(config)
    with tf.GradientTape() as tape:
        logits, values = policy.response_outputs(*batch[:4])
        objectives, value_losses = {}, {}
        for b, t in np.argwhere(mask == 1):
            logprobs = logits[b, t] / TEMPERATURE - tf.reduce_logsumexp(logits[b, t] / TEMPERATURE)
            logprob = logprobs[batch.response_ids[b, t]]
            ratio = tf.exp(logprob - batch.old_logprobs[b, t])
            advantage = batch.advantages[b, t]
            loss = -ratio * advantage
            if float(ratio) > 1 + high:
                loss = max(loss, -(1 + high) * advantage)
            if float(ratio) < 1 - low:
                loss = max(loss, -(1 - low) * advantage)
            if config.dual_clip is not None and advantage < 0:
                loss = min(loss, -config.dual_clip * advantage)
            probabilities = tf.exp(logprobs[1:])  # PAD is impossible
            loss += config.entropy_coef * tf.reduce_sum(probabilities * logprobs[1:])
            d = logprob - batch.ref_logprobs[b, t]
            kl = 0.5 * d * d if config.kl_loss_estimator == "k2" else tf.exp(-d) - 1.0 + d
            objectives[b, t] = loss + config.kl_loss_coef * kl
            squared_error = (values[b, t] - batch.returns[b, t]) ** 2
            shift = float(values[b, t] - batch.old_values[b, t])
            if config.value_clip_range is not None and abs(shift) > config.value_clip_range:
                near = batch.old_values[b, t] + math.copysign(config.value_clip_range, shift)
                squared_error = max(squared_error, (near - batch.returns[b, t]) ** 2)
            value_losses[b, t] = 0.5 * squared_error
        total = policy_coef * naive_mean(objectives, mask, config.loss_aggregation)
        total += config.value_coef * naive_mean(value_losses, mask, "token_mean")
    gradients = tape.gradient(total, variables, unconnected_gradients="zero")
    return total.numpy(), [tf.convert_to_tensor(gradient).numpy().astype(np.float64) for gradient in gradients]

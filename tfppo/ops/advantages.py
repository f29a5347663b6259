"""Returns and advantages: GAE, Monte-Carlo, and the estimators that need no critic."""

import tensorflow as tf

from tfppo.ops.masking import masked_sum, zero_padding


def _scan_from_the_end(deltas, decays):
    """x_t = deltas_t + decays_t * x_{t+1}, with x = 0 after the end. [B, R] -> [B, R]."""
    steps = (tf.transpose(deltas), tf.transpose(decays))
    scanned = tf.scan(
        lambda following, step: step[0] + step[1] * following,
        steps,
        initializer=tf.zeros_like(deltas[:, 0]),
        reverse=True,
    )
    return tf.transpose(scanned)


def discounted_returns(rewards, response_mask, gamma):
    """G_t = r_t + gamma * G_{t+1}, with G = 0 after the last real token. [B, R] -> [B, R]."""
    mask = tf.cast(response_mask, rewards.dtype)
    return _scan_from_the_end(zero_padding(rewards, mask), gamma * mask)


def gae(rewards, values, response_mask, *, gamma, gae_lambda):
    """Generalised advantage estimation (Schulman et al. 2016, equation 16); nothing is bootstrapped past the end.

    Args: rewards, values, response_mask [B, R].
    Returns: advantages [B, R] and returns = advantages + values [B, R], both 0 at padding.
    """
    mask = tf.cast(response_mask, rewards.dtype)
    rewards, values = zero_padding(rewards, mask), zero_padding(values, mask)
    following = tf.concat([values[:, 1:], tf.zeros_like(values[:, :1])], axis=1)
    deltas = rewards + gamma * following * mask - values
    advantages = _scan_from_the_end(deltas, gamma * gae_lambda * mask)
    return advantages, advantages + values


def rloo(totals, group_size):
    """Each response's total less the mean total of the others to the same prompt (Ahmadian et al. 2024).

    Args: totals [B], the responses to one prompt next to each other, `group_size` >= 2 of them. Returns [B].
    """
    groups = tf.reshape(totals, [-1, group_size])
    others = (tf.reduce_sum(groups, axis=1, keepdims=True) - groups) / (group_size - 1)
    return tf.reshape(groups - others, [-1])


def grpo(totals, group_size):
    """Each response's total, standardised within the responses to its prompt (Shao et al. 2024).

    The standard deviation divides by n - 1, and 1e-6 is added to it: a group of equal totals gets 0.
    Args: totals [B], the responses to one prompt next to each other, `group_size` >= 2 of them. Returns [B].
    """
    groups = tf.reshape(totals, [-1, group_size])
    centred = groups - tf.reduce_mean(groups, axis=1, keepdims=True)
    deviation = tf.sqrt(tf.reduce_sum(tf.square(centred), axis=1, keepdims=True) / (group_size - 1))
    return tf.reshape(centred / (deviation + 1e-6), [-1])


def estimate_advantages(
    rewards, values, mask, *, estimator, gamma, gae_lambda, critic_gae_lambda=None, group_size=1, critic_mask=None
):
    """Advantages and the critic's targets by one of ESTIMATORS, both [B, R].

    Args:
        rewards, values, mask: [B, R].
        critic_gae_lambda: the critic's own lambda (Yue et al. 2025); None: the policy's.
        critic_mask: [B, R], the states that rewards and values exist for; None: `mask`.
    """
    states = mask if critic_mask is None else critic_mask
    if estimator == "gae":
        advantages, returns = gae(rewards, values, states, gamma=gamma, gae_lambda=gae_lambda)
        if critic_gae_lambda is not None:
            _, returns = gae(rewards, values, states, gamma=gamma, gae_lambda=critic_gae_lambda)
        return zero_padding(advantages, mask), returns
    returns = discounted_returns(rewards, states, gamma)
    if estimator == "monte_carlo":
        return zero_padding(returns - values, mask), returns
    if estimator == "reinforce_pp":
        return zero_padding(returns, mask), returns
    totals = masked_sum(rewards, states, axis=1)
    by_group = rloo if estimator == "rloo" else grpo
    return by_group(totals, group_size)[:, None] * mask, returns

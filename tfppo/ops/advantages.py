"""Per-token rewards, discounted returns and generalised advantage estimation."""

import tensorflow as tf

from tfppo.ops.masking import last_token_one_hot


def token_rewards(scores, kl, response_mask, kl_coef):
    """Per-token reward: minus the KL penalty at every token, plus the score at the last real one.

    Args: scores [B]; kl [B, R] log-ratio of policy to reference; response_mask [B, R]. Returns [B, R].
    """
    penalty = tf.where(response_mask > 0, -kl_coef * kl, tf.zeros_like(kl))
    return penalty + scores[:, None] * last_token_one_hot(response_mask)


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
    return _scan_from_the_end(rewards * mask, gamma * mask) * mask


def gae(rewards, values, response_mask, *, gamma, gae_lambda):
    """Generalised advantage estimation (Schulman et al. 2016, equation 16); nothing is bootstrapped past the end.

    Args: rewards, values, response_mask [B, R].
    Returns: advantages [B, R] and returns = advantages + values [B, R], both 0 at padding.
    """
    mask = tf.cast(response_mask, rewards.dtype)
    values = values * mask
    following = tf.concat([values[:, 1:], tf.zeros_like(values[:, :1])], axis=1)
    deltas = (rewards + gamma * following - values) * mask
    advantages = _scan_from_the_end(deltas, gamma * gae_lambda * mask) * mask
    return advantages, (advantages + values) * mask

"""From scores to advantages and returns, as three families of implementations place the score."""

import numpy as np

from independent.advantages import gae, whiten
from independent.common import BATCH, LENGTH, LENGTHS, grid, mask_of


def targets_2019(rollout, kl_coef, gamma, gae_lambda, whiten_rewards):
    """lm-human-preferences: full-length responses, the score at position -1, biased variance."""
    sizes = [LENGTH] * len(rollout["scores"])
    rewards = -kl_coef * (rollout["logprobs"] - rollout["ref_logprobs"])
    rewards[:, -1] += rollout["scores"]
    ones = mask_of(sizes)
    if whiten_rewards:
        rewards = whiten(rewards, ones, False, False)
    advantages = gae(rewards, rollout["values"], sizes, gamma, gae_lambda)
    return whiten(advantages, ones, True, False), advantages + rollout["values"]


def targets_last_token(rollout, lengths, kl_coef, gamma, gae_lambda, whiten_rewards, unbiased=False):
    """Stiennon et al. 2020, OpenRLHF, verl: the score at the last real token."""
    mask = mask_of(lengths)
    rewards = -kl_coef * (rollout["logprobs"] - rollout["ref_logprobs"]) * mask
    for b, size in enumerate(lengths):
        rewards[b, size - 1] += rollout["scores"][b]
    if whiten_rewards:
        rewards = whiten(rewards, mask, False, unbiased)
    advantages = gae(rewards, rollout["values"], lengths, gamma, gae_lambda)
    return whiten(advantages, mask, True, unbiased), (advantages + rollout["values"]) * mask


def targets_after_last(rollout, lengths, kl_coef, gamma, gae_lambda, whiten_rewards, unbiased=True):
    """N+ and TRL: padding_mask, padding_mask_p1, INVALID_LOGPROB 1.0 and values kept one position past the end."""
    last = np.array(lengths) - 1
    columns = np.arange(LENGTH)
    padding, padding_p1 = columns > last[:, None], columns > (last + 1)[:, None]
    logprobs = np.where(padding, 1.0, rollout["logprobs"])
    ref_logprobs = np.where(padding, 1.0, rollout["ref_logprobs"])
    values = np.where(padding_p1, 0.0, rollout["values"])
    rewards = -kl_coef * (logprobs - ref_logprobs)
    for b in range(BATCH):
        rewards[b, last[b] + 1 if last[b] + 1 < LENGTH else last[b]] += rollout["scores"][b]
    if whiten_rewards:
        rewards = np.where(padding_p1, 0.0, whiten(rewards, (~padding_p1).astype(float), False, unbiased))
    advantages = np.zeros(rewards.shape)
    for b in range(BATCH):
        running = 0.0
        for t in reversed(range(LENGTH)):
            following = values[b, t + 1] if t < LENGTH - 1 else 0.0
            running = rewards[b, t] + gamma * following - values[b, t] + gamma * gae_lambda * running
            advantages[b, t] = running
    returns = np.where(padding_p1, 0.0, advantages + values)
    return whiten(advantages, (~padding).astype(float), True, unbiased), returns


def rewards_file():
    """Scores to advantages and returns in three conventions; penalties for a missing stop."""
    rng = np.random.default_rng(3)
    logprobs = -np.abs(grid(rng, [BATCH, LENGTH])) - 1 / 64
    rollout = {
        "logprobs": logprobs,
        "ref_logprobs": logprobs + grid(rng, [BATCH, LENGTH], 0.5),
        "values": grid(rng, [BATCH, LENGTH]),
        "scores": grid(rng, [BATCH], 2.0),
    }
    kl_coef, gamma, gae_lambda = 0.125, 0.98, 0.95
    cases = []
    for whiten_rewards in (False, True):
        settings = (kl_coef, gamma, gae_lambda, whiten_rewards)
        for placement, unbiased, lengths, (advantages, returns) in (
            ("last_position", False, [LENGTH] * BATCH, targets_2019(rollout, *settings)),
            ("last_token", False, LENGTHS, targets_last_token(rollout, LENGTHS, *settings)),
            ("after_last", True, LENGTHS, targets_after_last(rollout, LENGTHS, *settings)),
            ("after_last", False, LENGTHS, targets_after_last(rollout, LENGTHS, *settings, unbiased=False)),
        ):
            cases.append(
                dict(
                    placement=placement,
                    whiten_rewards=whiten_rewards,
                    unbiased=unbiased,
                    lengths=lengths,
                    advantages=advantages,
                    returns=returns,
                )
            )
    stopped = [bool(b % 3) for b in range(BATCH)]
    scores = rollout["scores"]
    return {
        "rollout": rollout,
        "kl_coef": kl_coef,
        "gamma": gamma,
        "gae_lambda": gae_lambda,
        "cases": cases,
        "stopped": stopped,
        "replaced_by_minus_1": [s if ok else -1.0 for s, ok in zip(scores, stopped, strict=True)],
        "less_1": [s if ok else s - 1.0 for s, ok in zip(scores, stopped, strict=True)],
    }

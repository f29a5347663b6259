"""Advantage estimates and whitening as plain loops in NumPy float64, written from the papers."""

import math

import numpy as np

from independent.common import BATCH, LENGTH, LENGTHS, grid, mask_of


def gae(rewards, values, lengths, gamma, gae_lambda):
    """Schulman et al. 2016, equation 16, as the double sum that it is. The state after the last one is worth 0."""
    advantages = np.zeros(rewards.shape)
    for b, size in enumerate(lengths):
        following = [*values[b, 1:size], 0.0]
        deltas = [rewards[b, t] + gamma * following[t] - values[b, t] for t in range(size)]
        for t in range(size):
            advantages[b, t] = sum((gamma * gae_lambda) ** (k - t) * deltas[k] for k in range(t, size))
    return advantages


def discounted(rewards, lengths, gamma):
    """The sum of gamma^k r_{t+k} over the rest of the row."""
    returns = np.zeros(rewards.shape)
    for b, size in enumerate(lengths):
        for t in range(size):
            returns[b, t] = sum(gamma ** (k - t) * rewards[b, k] for k in range(t, size))
    return returns


def whiten(numbers, mask, shift_mean, unbiased):
    """Masked whitening with rsqrt(variance + 1e-8)."""
    real = [numbers[index] for index in np.ndindex(*mask.shape) if mask[index]]
    mean = sum(real) / len(real)
    variance = sum((x - mean) ** 2 for x in real) / (len(real) - (1 if unbiased else 0))
    whitened = np.zeros(mask.shape)
    for index in np.ndindex(*mask.shape):
        if mask[index]:
            whitened[index] = (numbers[index] - mean) / math.sqrt(variance + 1e-8) + (0.0 if shift_mean else mean)
    return whitened


def rloo(totals, size):
    """Ahmadian et al. 2024: less the mean of the others of the group."""
    groups = [totals[i : i + size] for i in range(0, len(totals), size)]
    return np.array(
        [x - (sum(g[:i]) + sum(g[i + 1 :])) / (size - 1) for g in map(list, groups) for i, x in enumerate(g)]
    )


def grpo(totals, size):
    """Shao et al. 2024: less the group's mean, over its standard deviation (n - 1) plus 1e-6."""
    groups = [totals[i : i + size] for i in range(0, len(totals), size)]
    return np.concatenate([(g - g.mean()) / (g.std(ddof=1) + 1e-6) for g in groups])


def advantages_file():
    """GAE, Monte-Carlo returns, RLOO, GRPO, REINFORCE++."""
    rng = np.random.default_rng(1)
    rewards, values = grid(rng, [BATCH, LENGTH]), grid(rng, [BATCH, LENGTH])
    mask = mask_of(LENGTHS)
    totals = (rewards * mask).sum(axis=1)
    settings = [(1.0, 0.95), (1.0, 1.0), (1.0, 0.0), (0.97, 0.95), (0.9, 0.5), (0.99, 1.0)]
    return {
        "rewards": rewards,
        "values": values,
        "lengths": LENGTHS,
        "gae": [
            {"gamma": gamma, "gae_lambda": lam, "advantages": gae(rewards, values, LENGTHS, gamma, lam)}
            for gamma, lam in settings
        ],
        "returns": [{"gamma": g, "returns": discounted(rewards, LENGTHS, g)} for g in (1.0, 0.97, 0.5, 0.0)],
        "totals": totals,
        "rloo": [{"group_size": size, "advantages": rloo(totals, size)} for size in (2, 4, 8)],
        "grpo": [{"group_size": size, "advantages": grpo(totals, size)} for size in (2, 4, 8)],
        "reinforce_pp": {
            "gamma": 0.97,
            "advantages": whiten(discounted(rewards, LENGTHS, 0.97), mask, True, False),
        },
    }


def whitening_file():
    """Whitening with its two switches, of full and of ragged rows."""
    rng = np.random.default_rng(2)
    numbers = 3.0 + 2.0 * grid(rng, [BATCH, LENGTH])
    cases = []
    for lengths in ([LENGTH] * BATCH, LENGTHS):
        for shift_mean in (False, True):
            for unbiased in (False, True):
                whitened = whiten(numbers, mask_of(lengths), shift_mean, unbiased)
                cases.append(dict(lengths=lengths, shift_mean=shift_mean, unbiased=unbiased, whitened=whitened))
    return {"numbers": numbers, "cases": cases}

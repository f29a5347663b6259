"""Whole PPO updates of a linear policy, in PyTorch float64: logits = W[state], value = v[state]."""

import math

import numpy as np
import torch

from independent.common import BATCH, LENGTH, LENGTHS, grid, mask_of
from independent.losses import surrogate, tensor
from independent.optimizers import optimizer_of
from independent.rewards import targets_2019, targets_after_last, targets_last_token

VOCABULARY = 6
UPDATES = {
    "ziegler_2019": dict(placement="last_position", whiten_rewards=True, kl_coef=0.15, epsilon=1e-5, value_coef=0.1),
    "trl": dict(placement="after_last", unbiased=True, form="torch", epsilon=1e-8, weight_decay=0.01, value_coef=0.1)
    | dict(kl_coef=0.05),
    "clipped_gradients": dict(temperature=1.3, gamma=0.97, gae_lambda=0.9, epsilon=1e-5, value_coef=0.5)
    | dict(kl_coef=0.1, max_grad_norm=0.25),
    "everything_in_the_loss": dict(form="torch", epsilon=1e-5, value_coef=0.25, entropy_coef=0.02, kl_loss_coef=0.1)
    | dict(kl_coef=0.0, clip_range_high=0.28, dual_clip=3.0, aggregation="sequence_mean", max_grad_norm=1.0),
    # As lm-human-preferences computes it: rewards and advantages are whitened inside the loss.
    "ziegler_2019_by_minibatch": dict(placement="last_position", whiten_rewards=True, whiten_scope="minibatch")
    | dict(kl_coef=0.15, epsilon=1e-5, value_coef=0.1),
}
COMMON = dict(placement="last_token", temperature=0.7, gamma=1.0, gae_lambda=0.95, form="tensorflow")


def token_mean(numbers, mask):
    """Mean over the real tokens."""
    return (numbers * mask).sum() / mask.sum()


def minibatch_loss(weights, values_of, rows, data, setting):
    """The loss of a minibatch and its statistics. The state of a token is the token before it."""
    mask, critic_mask = tensor(data["mask"][rows]), tensor(data["critic_mask"][rows])
    states, actions = torch.tensor(data["states"][rows]), torch.tensor(data["response_ids"][rows])
    logprobs_of_all = torch.log_softmax(weights[states] / setting["temperature"], -1)
    logprobs = torch.gather(logprobs_of_all, -1, actions[..., None])[..., 0]
    entropy = -(logprobs_of_all.exp() * logprobs_of_all).sum(-1)
    values, old_values = values_of[states], tensor(data["old_values"][rows])
    advantages, returns = tensor(data["advantages"][rows]), tensor(data["returns"][rows])
    log_ratio = logprobs - tensor(data["old_logprobs"][rows])
    ratio = torch.exp(log_ratio)
    high = setting.get("clip_range_high", 0.2)
    policy_losses = surrogate(ratio, advantages, 0.2, high, setting.get("dual_clip"))
    near = torch.clamp(values, old_values - 0.2, old_values + 0.2)
    value_losses = 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)

    def aggregate(numbers):
        if setting.get("aggregation") == "sequence_mean":
            return ((numbers * mask).sum(1) / mask.sum(1)).mean()
        return token_mean(numbers, mask)

    policy_loss, value_loss = aggregate(policy_losses), token_mean(value_losses, critic_mask)
    loss = policy_loss + setting["value_coef"] * value_loss
    loss = loss - setting.get("entropy_coef", 0.0) * aggregate(entropy)
    d = logprobs - tensor(data["ref_logprobs"][rows])
    loss = loss + setting.get("kl_loss_coef", 0.0) * aggregate(torch.exp(-d) - 1 + d)
    cut = torch.where(advantages > 0, ratio > 1 + high, ratio < 1 - 0.2).double()
    value_cut = ((near - returns) ** 2 > (values - returns) ** 2).double()
    means = [token_mean(n, mask).item() for n in (0.5 * log_ratio**2, cut, entropy, ratio, value_cut)]
    return loss, [policy_loss.item(), value_loss.item(), loss.item(), *means]


def old_rollout(rng, weights, values_of, states, response_ids, temperature):
    """What an older policy noted: some of it far from today's, so that every clip cuts from the first step on."""
    scaled = weights[states] / temperature
    logprobs = np.take_along_axis(
        scaled - np.log(np.exp(scaled).sum(-1, keepdims=True)), response_ids[..., None], axis=-1
    )[..., 0]
    logprobs = np.round((logprobs + 0.25 * rng.normal(0, 1, states.shape)) * 1024) / 1024
    return {
        "logprobs": logprobs,
        "ref_logprobs": logprobs + grid(rng, states.shape, 0.5),
        "values": np.round((values_of[states] + 0.25 * rng.normal(0, 1, states.shape)) * 64) / 64,
        "scores": grid(rng, [BATCH], 2.0),
    }


def targets_arguments(setting):
    """What the functions of targets need of a setting."""
    return setting["kl_coef"], setting["gamma"], setting["gae_lambda"], setting.get("whiten_rewards", False)


def targets_and_critic_mask(setting, rollout, lengths):
    """(advantages, returns) where the setting places the score, and the positions whose values are learned."""
    arguments, mask = targets_arguments(setting), mask_of(lengths)
    if setting["placement"] == "last_position":
        return targets_2019(rollout, *arguments), mask
    if setting["placement"] == "last_token":
        return targets_last_token(rollout, lengths, *arguments), mask
    return targets_after_last(rollout, lengths, *arguments), mask_of(np.minimum(np.array(lengths) + 1, LENGTH))


def step(parameters, optimizer, rows, data, setting):
    """Takes one step on a minibatch, in place. Returns its statistics and the norm of its gradient."""
    w, v = (tensor(p.copy(), grad=True) for p in parameters)
    loss, statistics = minibatch_loss(w, v, rows, data, setting)
    loss.backward()
    gradients = [w.grad.numpy(), v.grad.numpy()]
    norm = math.sqrt(sum((g**2).sum() for g in gradients))
    limit = setting.get("max_grad_norm", 0.0)
    if limit and norm > limit:
        gradients = [g * limit / norm for g in gradients]
    optimizer.step(gradients, 0.05)
    return [*statistics, norm]


def update(name, rng):
    """Three epochs of two minibatches."""
    setting = COMMON | UPDATES[name]
    lengths = [LENGTH] * BATCH if setting["placement"] == "last_position" else LENGTHS
    weights, values_of = grid(rng, [VOCABULARY, VOCABULARY]), grid(rng, [VOCABULARY], 0.5)
    ids = rng.integers(1, VOCABULARY, [BATCH, LENGTH + 2])
    prompt_ids, response_ids, states = ids[:, :2], ids[:, 2:], ids[:, 1:-1]
    rollout = old_rollout(rng, weights, values_of, states, response_ids, setting["temperature"])
    (advantages, returns), critic_mask = targets_and_critic_mask(setting, rollout, lengths)
    data = dict(mask=mask_of(lengths), critic_mask=critic_mask, states=states, response_ids=response_ids)
    data |= dict(old_logprobs=rollout["logprobs"], ref_logprobs=rollout["ref_logprobs"], old_values=rollout["values"])
    data |= dict(advantages=advantages, returns=returns)

    parameters = [weights.copy(), values_of.copy()]
    optimizer = optimizer_of(setting["form"], parameters, setting["epsilon"], setting.get("weight_decay", 0.0))
    minibatches = [list(map(int, rows)) for _ in range(3) for rows in rng.permutation(BATCH).reshape(2, -1)]
    history, trace = [], []
    for rows in minibatches:
        if setting.get("whiten_scope") == "minibatch":
            own = {name: numbers[rows] for name, numbers in rollout.items()}
            data["advantages"][rows], data["returns"][rows] = targets_2019(own, *targets_arguments(setting))
        history.append(step(parameters, optimizer, rows, data, setting))
        trace.append([p.copy() for p in parameters])
    return {
        "setting": setting,
        "weights": weights,
        "values_of": values_of,
        "prompt_ids": prompt_ids,
        "response_ids": response_ids,
        "lengths": lengths,
        "rollout": rollout,
        "learning_rate": 0.05,
        "minibatches": minibatches,
        "first_weights": trace[0],
        "final_weights": trace[-1],
        "statistics": np.mean(history, axis=0),
    }


def updates_file():
    """Whole PPO updates, one a setting."""
    return {name: update(name, np.random.default_rng(60 + number)) for number, name in enumerate(UPDATES)}

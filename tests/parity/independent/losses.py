"""Losses and their gradients, by PyTorch's log-softmax and autograd in float64."""

import numpy as np
import torch

from independent.common import LENGTH, grid


def tensor(numbers, grad=False):
    """A float64 tensor."""
    return torch.tensor(np.asarray(numbers), dtype=torch.float64, requires_grad=grad)


def surrogate(ratio, advantages, low, high, dual):
    """The clipped objective of Schulman et al. 2017 (equation 7) negated, and Ye et al. 2020's bound where A < 0."""
    objective = torch.minimum(ratio * advantages, torch.clamp(ratio, 1 - low, 1 + high) * advantages)
    if dual is not None:
        objective = torch.where(advantages < 0, torch.maximum(objective, dual * advantages), objective)
    return -objective


def surrogate_cases(logits, actions, advantages):
    """Clipped losses of log-probabilities on both sides of every bound, with their gradients."""
    offsets = np.tile([-1.5, -0.5, -0.125, 0.0, 0.125, 0.25, 0.5, 1.5, 2.0], 2)
    cases = []
    for temperature, low, high, dual in (
        (1.0, 0.2, 0.2, None),
        (0.7, 0.2, 0.2, None),
        (0.7, 0.2, 0.28, None),
        (1.3, 0.2, 0.2, 3.0),
    ):
        x = tensor(logits, grad=True)
        logprobs = torch.log_softmax(x / temperature, -1)[torch.arange(18), torch.tensor(actions)]
        old = np.round((logprobs.detach().numpy() - offsets) * 1024) / 1024
        loss = surrogate(torch.exp(logprobs - tensor(old)), tensor(advantages), low, high, dual)
        loss.sum().backward()
        cases.append(
            dict(temperature=temperature, clip_range=low, clip_range_high=high, dual_clip=dual)
            | dict(old_logprobs=old, losses=loss.detach().numpy(), gradients=x.grad.numpy())
        )
    return cases


def value_cases(values, old_values, returns):
    """Half the squared error, the larger of the value and of the clipped value."""
    cases = []
    for clip in (0.2, 0.5, None):
        v = tensor(values, grad=True)
        loss = (v - tensor(returns)) ** 2
        if clip is not None:
            near = torch.clamp(v, tensor(old_values) - clip, tensor(old_values) + clip)
            loss = torch.maximum(loss, (near - tensor(returns)) ** 2)
        (0.5 * loss).sum().backward()
        cases.append(dict(clip=clip, losses=0.5 * loss.detach().numpy(), gradients=v.grad.numpy()))
    return cases


def entropy_cases(logits):
    """Entropies at two temperatures."""
    cases = []
    for temperature in (1.0, 0.7):
        x = tensor(logits, grad=True)
        logprobs = torch.log_softmax(x / temperature, -1)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        entropy.sum().backward()
        cases.append(dict(temperature=temperature, entropy=entropy.detach().numpy(), gradients=x.grad.numpy()))
    return cases


def kl_cases(logits, actions, ref_logprobs):
    """KL penalties in the loss: two estimators of the divergence from the reference."""
    cases = []
    for estimator in ("k2", "k3"):
        x = tensor(logits, grad=True)
        d = torch.log_softmax(x / 0.7, -1)[torch.arange(8), torch.tensor(actions)] - tensor(ref_logprobs)
        kl = 0.5 * d**2 if estimator == "k2" else torch.exp(-d) - 1 + d
        kl.sum().backward()
        cases.append(dict(estimator=estimator, losses=kl.detach().numpy(), gradients=x.grad.numpy()))
    return cases


def aggregation(per_token, lengths):
    """One number of a minibatch, by each definition."""
    rows = [list(row[:size]) for row, size in zip(per_token, lengths, strict=True)]
    return {
        "per_token": per_token,
        "lengths": lengths,
        "token_mean": sum(map(sum, rows)) / sum(lengths),
        "sequence_mean": sum(sum(row) / len(row) for row in rows) / len(rows),
        "sequence_sum": sum(map(sum, rows)) / len(rows),
    }


def reinforce():
    """The example of the blog post "Putting RL back in RLHF": one state, advantage 1, the second action."""
    logits = [1.0, 2.0, 1.0, 1.0]
    x = tensor(logits, grad=True)
    torch.log_softmax(x, -1)[1].backward()
    return {"logits": logits, "action": 1, "gradient": x.grad.numpy()}


def losses_file():
    """Losses of a policy and of a critic, with their gradients, and their aggregation."""
    rng = np.random.default_rng(4)
    logits, actions = grid(rng, [18, 4]), rng.integers(0, 4, 18)
    advantages = np.abs(grid(rng, [18])) + 1 / 64
    advantages[9:] *= -1
    values, old_values, returns = grid(rng, [3, 16], 0.75)
    ref_logprobs = -np.abs(grid(rng, [8])) - 1 / 64
    per_token = grid(rng, [4, LENGTH])
    values_part = {"values": values, "old_values": old_values, "returns": returns}
    return {
        "logits": logits,
        "actions": actions,
        "advantages": advantages,
        "surrogates": surrogate_cases(logits, actions, advantages),
        "values": {**values_part, "cases": value_cases(values, old_values, returns)},
        "entropies": entropy_cases(2 * logits[:6]),
        "kl": {
            "ref_logprobs": ref_logprobs,
            "temperature": 0.7,
            "cases": kl_cases(logits[:8], actions[:8], ref_logprobs),
        },
        "aggregation": aggregation(per_token, [6, 1, 4, 2]),
        "reinforce": reinforce(),
    }

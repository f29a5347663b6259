"""Writes the numbers that tests/parity compares tfppo with.

    python tools/make_parity_fixtures.py

It needs PyTorch (pip install torch==2.13.0 numpy absl-py, in an environment of its own) and never imports tfppo: all is
plain loops in NumPy float64, written from the papers, and PyTorch's autograd and optimizers. Running it again gives the
same bytes. Inputs are multiples of 1/64 or float32 numbers, so that float32 code starts from exactly the same ones.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from absl import app, flags

OUTPUT = flags.DEFINE_string(
    "output", str(Path(__file__).resolve().parents[1] / "tests" / "parity" / "fixtures"), "Folder of the JSON files."
)

BATCH, LENGTH = 8, 6
LENGTHS = [6, 1, 4, 3, 6, 2, 5, 3]


def grid(rng, shape, scale=1.0):
    """Normal numbers, rounded to multiples of 1/64."""
    return np.round(rng.normal(0.0, scale, shape) * 64) / 64


def mask_of(lengths, length=LENGTH):
    """[B, R] of 1 for the first `lengths` positions of each row."""
    return (np.arange(length) < np.array(lengths)[:, None]).astype(float)


# The algorithm, one token at a time.


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


# The files.


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


def kl_file():
    """KL estimators, also far out, and the adaptive coefficient."""
    log_ratios = [0.5, -0.5, 0.0, 1.0, -1.0, 1 / 64, -1 / 64, 2.0**-12, -(2.0**-12), 5.0, -5.0, 19.0, -19.0]
    extremes = [25.0, -25.0, 1000.0, -1000.0]
    bounded = [min(max(d, -20.0), 20.0) for d in extremes]
    table = [12.0, 6.6, 6.0, 4.8, 3.0, 0.0, -1.0]

    def next_coef(coef, kl, target, horizon, episodes):
        error = kl / target - 1
        error = 0.2 if error > 0.2 else -0.2 if error < -0.2 else error
        return coef * (1 + error * episodes / horizon)

    # A policy whose KL falls as the coefficient rises: it has to arrive at the target.
    coef, coefs, kls = 0.15, [], []
    for _ in range(50):
        kls.append(3.0 / coef**0.5)
        coef = next_coef(coef, kls[-1], 6.0, 2000, 512)
        coefs.append(coef)
    return {
        "log_ratios": log_ratios,
        "k1": log_ratios,
        "k2": [d * d / 2 for d in log_ratios],
        "k3": [math.exp(-d) - 1 + d if abs(d) > 0.01 else d**2 / 2 - d**3 / 6 + d**4 / 24 for d in log_ratios],
        "abs": [abs(d) for d in log_ratios],
        "extremes": extremes,
        "k3_of_extremes": [math.exp(-d) - 1 + d for d in bounded],
        "table": {"kl": table, "coef": [next_coef(0.15, kl, 6.0, 10000, 512) for kl in table]},
        "closed_loop": {"kl": kls, "coef": coefs, "target": 6.0, "horizon": 2000, "num_episodes": 512},
    }


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


def surrogate(ratio, advantages, low, high, dual):
    """The clipped objective of Schulman et al. 2017 (equation 7) negated, and Ye et al. 2020's bound where A < 0."""
    objective = torch.minimum(ratio * advantages, torch.clamp(ratio, 1 - low, 1 + high) * advantages)
    if dual is not None:
        objective = torch.where(advantages < 0, torch.maximum(objective, dual * advantages), objective)
    return -objective


def tensor(numbers, grad=False):
    """A float64 tensor."""
    return torch.tensor(np.asarray(numbers), dtype=torch.float64, requires_grad=grad)


def losses_file():
    """Losses and their gradients, through PyTorch's log-softmax and autograd in float64."""
    rng = np.random.default_rng(4)
    offsets = np.tile([-1.5, -0.5, -0.125, 0.0, 0.125, 0.25, 0.5, 1.5, 2.0], 2)
    logits, actions = grid(rng, [18, 4]), rng.integers(0, 4, 18)
    advantages = np.abs(grid(rng, [18])) + 1 / 64
    advantages[9:] *= -1
    surrogates = []
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
        surrogates.append(
            dict(temperature=temperature, clip_range=low, clip_range_high=high, dual_clip=dual)
            | dict(old_logprobs=old, losses=loss.detach().numpy(), gradients=x.grad.numpy())
        )

    values, old_values, returns = grid(rng, [3, 16], 0.75)
    clipped_values = []
    for clip in (0.2, 0.5, None):
        v = tensor(values, grad=True)
        loss = (v - tensor(returns)) ** 2
        if clip is not None:
            near = torch.clamp(v, tensor(old_values) - clip, tensor(old_values) + clip)
            loss = torch.maximum(loss, (near - tensor(returns)) ** 2)
        (0.5 * loss).sum().backward()
        clipped_values.append(dict(clip=clip, losses=0.5 * loss.detach().numpy(), gradients=v.grad.numpy()))

    entropies = []
    for temperature in (1.0, 0.7):
        x = tensor(2 * logits[:6], grad=True)
        logprobs = torch.log_softmax(x / temperature, -1)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        entropy.sum().backward()
        entropies.append(dict(temperature=temperature, entropy=entropy.detach().numpy(), gradients=x.grad.numpy()))

    ref_logprobs = -np.abs(grid(rng, [8])) - 1 / 64
    kl_losses = []
    for estimator in ("k2", "k3"):
        x = tensor(logits[:8], grad=True)
        d = torch.log_softmax(x / 0.7, -1)[torch.arange(8), torch.tensor(actions[:8])] - tensor(ref_logprobs)
        kl = 0.5 * d**2 if estimator == "k2" else torch.exp(-d) - 1 + d
        kl.sum().backward()
        kl_losses.append(dict(estimator=estimator, losses=kl.detach().numpy(), gradients=x.grad.numpy()))

    per_token, lengths = grid(rng, [4, LENGTH]), [6, 1, 4, 2]
    rows = [list(row[:size]) for row, size in zip(per_token, lengths, strict=True)]
    # L7: the example of the blog post "Putting RL back in RLHF": one state, advantage 1, the second action.
    x = tensor([1.0, 2.0, 1.0, 1.0], grad=True)
    torch.log_softmax(x, -1)[1].backward()
    return {
        "logits": logits,
        "actions": actions,
        "advantages": advantages,
        "surrogates": surrogates,
        "values": {"values": values, "old_values": old_values, "returns": returns, "cases": clipped_values},
        "entropies": entropies,
        "kl": {"ref_logprobs": ref_logprobs, "temperature": 0.7, "cases": kl_losses},
        "aggregation": {
            "per_token": per_token,
            "lengths": lengths,
            "token_mean": sum(map(sum, rows)) / sum(lengths),
            "sequence_mean": sum(sum(row) / len(row) for row in rows) / len(rows),
            "sequence_sum": sum(map(sum, rows)) / len(rows),
        },
        "reinforce": {"logits": [1.0, 2.0, 1.0, 1.0], "action": 1, "gradient": x.grad.numpy()},
    }


class TfAdam:
    """Kingma and Ba 2015, the efficient form at the end of section 2, whose epsilon is epsilon-hat: TensorFlow's."""

    def __init__(self, parameters, epsilon, beta_1=0.9, beta_2=0.999):
        self.parameters, self.epsilon, self.betas, self.t = parameters, epsilon, (beta_1, beta_2), 0
        self.m = [np.zeros(p.shape) for p in parameters]
        self.v = [np.zeros(p.shape) for p in parameters]

    def step(self, gradients, learning_rate):
        """One step of all parameters, in place."""
        (beta_1, beta_2), self.t = self.betas, self.t + 1
        rate = learning_rate * math.sqrt(1 - beta_2**self.t) / (1 - beta_1**self.t)
        for p, g, m, v in zip(self.parameters, gradients, self.m, self.v, strict=True):
            m[...] = beta_1 * m + (1 - beta_1) * g
            v[...] = beta_2 * v + (1 - beta_2) * g**2
            p -= rate * m / (np.sqrt(v) + self.epsilon)


class TorchAdam:
    """torch.optim.AdamW, or Adam where there is no decay; vectors are not decayed."""

    def __init__(self, parameters, epsilon, weight_decay=0.0, beta_2=0.999):
        self.tensors = [torch.from_numpy(p).requires_grad_() for p in parameters]  # they share their memory
        groups = [
            {"params": [t for t in self.tensors if t.dim() >= 2], "weight_decay": weight_decay},
            {"params": [t for t in self.tensors if t.dim() < 2], "weight_decay": 0.0},
        ]
        kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
        self.optimizer = kind([g for g in groups if g["params"]], lr=1.0, eps=epsilon, betas=(0.9, beta_2))

    def step(self, gradients, learning_rate):
        """One step of all parameters, in place."""
        for t, g in zip(self.tensors, gradients, strict=True):
            t.grad = torch.from_numpy(np.array(g))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()


def linear_rate(step, count, peak, warmup=0):
    """lr * (1 - step / count) of Ziegler et al. 2019, after a linear warmup."""
    return peak * (step + 1) / warmup if step < warmup else peak * (1 - (step - warmup) / (count - warmup))


def cosine_rate(step, count, peak, warmup, floor):
    """Warmup, then half a cosine from the peak to `floor` of it (transformers' cosine_with_min_lr)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    share = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (count - warmup)))
    return peak * (floor + (1 - floor) * share)


def optimizers_file():
    """Twenty steps of Adam and AdamW over gradients of all sizes, the first-step table, learning rates."""
    rng = np.random.default_rng(5)
    start = [grid(rng, [2, 2]), grid(rng, [3])]
    steps = 20
    # Each parameter has gradients of a size of its own, from 1e-5 to 1, of changing sign, and zeros.
    sizes = [np.array([[1e-5, 1e-4], [1e-3, 1.0]]), np.array([1e-5, 1e-3, 1e-2])]
    gradients = [[(rng.normal(0.5, 1, s.shape) * s).astype(np.float32).astype(float) for s in sizes] for _ in range(20)]
    gradients[7] = [np.zeros(s.shape) for s in sizes]
    cases = []
    for form, epsilon, decay, beta_2 in (
        ("tensorflow", 1e-5, 0.0, 0.999),
        ("tensorflow", 1e-8, 0.0, 0.999),
        ("torch", 1e-5, 0.0, 0.999),
        ("torch", 1e-8, 0.0, 0.999),
        ("torch", 1e-8, 0.01, 0.95),
        ("torch", 1e-5, 0.1, 0.999),
    ):
        parameters = [p.copy() for p in start]
        if form == "torch":
            optimizer = TorchAdam(parameters, epsilon, decay, beta_2)
        else:
            optimizer = TfAdam(parameters, epsilon, beta_2=beta_2)
        trace = {}
        for step, g in enumerate(gradients):
            optimizer.step(g, linear_rate(step, steps, 0.01))
            if step + 1 in (1, 5, 20):
                trace[str(step + 1)] = [p.copy() for p in parameters]
        cases.append(dict(form=form, epsilon=epsilon, weight_decay=decay, beta_2=beta_2, parameters=trace))

    first = []
    for gradient in (1e-5, 1e-4, 1e-3):
        shares = {}
        for form, kind in (("tensorflow", TfAdam), ("torch", TorchAdam)):
            parameter = [np.zeros([1, 1])]
            kind(parameter, 1e-5).step([np.array([[gradient]])], 1.0)
            shares[form] = -parameter[0].item()
        first.append(dict(gradient=gradient, **shares))
    return {
        "start": start,
        "gradients": gradients,
        "peak": 0.01,
        "cases": cases,
        "first_step": first,
        "rates": {
            "linear": [linear_rate(step, 8, 1e-5) for step in range(8)],
            "linear_with_warmup": [linear_rate(step, 8, 1e-5, 3) for step in range(8)],
            "cosine_with_floor": [cosine_rate(step, 8, 1e-6, 2, 0.1) for step in range(8)],
        },
    }


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


def update(name, rng):
    """Three epochs of two minibatches of a linear policy: logits = W[state], value = v[state]."""
    setting = COMMON | UPDATES[name]
    lengths = [LENGTH] * BATCH if setting["placement"] == "last_position" else LENGTHS
    weights, values_of = grid(rng, [VOCABULARY, VOCABULARY]), grid(rng, [VOCABULARY], 0.5)
    ids = rng.integers(1, VOCABULARY, [BATCH, LENGTH + 2])
    prompt_ids, response_ids, states = ids[:, :2], ids[:, 2:], ids[:, 1:-1]
    mask = mask_of(lengths)
    scaled = weights[states] / setting["temperature"]
    logprobs = np.take_along_axis(
        scaled - np.log(np.exp(scaled).sum(-1, keepdims=True)), response_ids[..., None], axis=-1
    )[..., 0]
    # Some of the old policy's numbers are far from today's, so that every clip cuts from the first step on.
    logprobs = np.round((logprobs + 0.25 * rng.normal(0, 1, mask.shape)) * 1024) / 1024
    rollout = {
        "logprobs": logprobs,
        "ref_logprobs": logprobs + grid(rng, mask.shape, 0.5),
        "values": np.round((values_of[states] + 0.25 * rng.normal(0, 1, mask.shape)) * 64) / 64,
        "scores": grid(rng, [BATCH], 2.0),
    }
    arguments = (setting["kl_coef"], setting["gamma"], setting["gae_lambda"], setting.get("whiten_rewards", False))
    critic_mask = mask
    if setting["placement"] == "last_position":
        advantages, returns = targets_2019(rollout, *arguments)
    elif setting["placement"] == "last_token":
        advantages, returns = targets_last_token(rollout, lengths, *arguments)
    else:
        advantages, returns = targets_after_last(rollout, lengths, *arguments)
        critic_mask = mask_of(np.minimum(np.array(lengths) + 1, LENGTH))
    data = dict(mask=mask, critic_mask=critic_mask, states=states, response_ids=response_ids)
    data |= dict(old_logprobs=logprobs, ref_logprobs=rollout["ref_logprobs"], old_values=rollout["values"])
    data |= dict(advantages=advantages, returns=returns)

    parameters = [weights.copy(), values_of.copy()]
    if setting["form"] == "torch":
        optimizer = TorchAdam(parameters, setting["epsilon"], setting.get("weight_decay", 0.0))
    else:
        optimizer = TfAdam(parameters, setting["epsilon"])
    minibatches = [list(map(int, rows)) for _ in range(3) for rows in rng.permutation(BATCH).reshape(2, -1)]
    history, trace = [], []
    for rows in minibatches:
        if setting.get("whiten_scope") == "minibatch":
            own = {name: numbers[rows] for name, numbers in rollout.items()}
            data["advantages"][rows], data["returns"][rows] = targets_2019(own, *arguments)
        w, v = (tensor(p.copy(), grad=True) for p in parameters)
        loss, statistics = minibatch_loss(w, v, rows, data, setting)
        loss.backward()
        gradients = [w.grad.numpy(), v.grad.numpy()]
        norm = math.sqrt(sum((g**2).sum() for g in gradients))
        limit = setting.get("max_grad_norm", 0.0)
        if limit and norm > limit:
            gradients = [g * limit / norm for g in gradients]
        optimizer.step(gradients, 0.05)
        history.append([*statistics, norm])
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
    """Whole PPO updates in PyTorch float64."""
    return {name: update(name, np.random.default_rng(60 + number)) for number, name in enumerate(UPDATES)}


FILES = {
    "advantages": advantages_file,
    "whitening": whitening_file,
    "kl": kl_file,
    "rewards": rewards_file,
    "losses": losses_file,
    "optimizers": optimizers_file,
    "updates": updates_file,
}


def plain(value):
    """Nested lists of numbers, floats to ten digits."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.10g}") + 0.0  # -0.0 becomes 0.0
    return value


def main(argv):
    if len(argv) > 1:
        raise app.UsageError("this program takes flags only")
    torch.set_num_threads(1)
    folder = Path(OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    for name, compute in FILES.items():
        content = {"made_with": {"numpy": np.__version__, "torch": torch.__version__.partition("+")[0]}, **compute()}
        lines = [f"{json.dumps(key)}:{json.dumps(plain(part), separators=(',', ':'))}" for key, part in content.items()]
        path = folder / f"{name}.json"
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    app.run(main)

"""Adam in NumPy (TensorFlow's form) and in PyTorch, and learning rates over time."""

import math

import numpy as np
import torch

from independent.common import grid


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


def optimizer_of(form, parameters, epsilon, weight_decay=0.0, beta_2=0.999):
    """Adam in TensorFlow's or PyTorch's form, for arrays that it changes in place."""
    if form == "torch":
        return TorchAdam(parameters, epsilon, weight_decay, beta_2)
    return TfAdam(parameters, epsilon, beta_2=beta_2)


def steps_of_all_forms(start, gradients):
    """Parameters after 1, 5 and 20 steps at a falling rate."""
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
        optimizer, trace = optimizer_of(form, parameters, epsilon, decay, beta_2), {}
        for step, g in enumerate(gradients):
            optimizer.step(g, linear_rate(step, len(gradients), 0.01))
            if step + 1 in (1, 5, 20):
                trace[str(step + 1)] = [p.copy() for p in parameters]
        cases.append(dict(form=form, epsilon=epsilon, weight_decay=decay, beta_2=beta_2, parameters=trace))
    return cases


def first_steps():
    """How far the first step goes, as a share of the learning rate."""
    cases = []
    for gradient in (1e-5, 1e-4, 1e-3):
        shares = {}
        for form in ("tensorflow", "torch"):
            parameter = [np.zeros([1, 1])]
            optimizer_of(form, parameter, 1e-5).step([np.array([[gradient]])], 1.0)
            shares[form] = -parameter[0].item()
        cases.append(dict(gradient=gradient, **shares))
    return cases


def optimizers_file():
    """Twenty steps of Adam and AdamW over gradients of all sizes, the first-step table, learning rates."""
    rng = np.random.default_rng(5)
    start = [grid(rng, [2, 2]), grid(rng, [3])]
    # Each parameter has gradients of a size of its own, from 1e-5 to 1, of changing sign, and zeros.
    sizes = [np.array([[1e-5, 1e-4], [1e-3, 1.0]]), np.array([1e-5, 1e-3, 1e-2])]
    gradients = [[(rng.normal(0.5, 1, s.shape) * s).astype(np.float32).astype(float) for s in sizes] for _ in range(20)]
    gradients[7] = [np.zeros(s.shape) for s in sizes]
    return {
        "start": start,
        "gradients": gradients,
        "peak": 0.01,
        "cases": steps_of_all_forms(start, gradients),
        "first_step": first_steps(),
        "rates": {
            "linear": [linear_rate(step, 8, 1e-5) for step in range(8)],
            "linear_with_warmup": [linear_rate(step, 8, 1e-5, 3) for step in range(8)],
            "cosine_with_floor": [cosine_rate(step, 8, 1e-6, 2, 0.1) for step in range(8)],
        },
    }

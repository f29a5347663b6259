"""GRPO on the task `sums` in plain PyTorch, a yardstick for `estimator=grpo`: the same model, prompts and settings.

    python tools/learning_tasks.py --workdir=runs/tasks --tasks=sums --settings=grpo --held_out
    python tools/grpo_in_pytorch.py --workdir=runs/tasks

It starts from the language model that the first command has trained, on the same split of the sums, and has nothing
else of tfppo: a Transformer, a sampler and the loss of Shao et al. 2024 (DeepSeekMath, equations 3 and 4), each as
short as it can be. Needs PyTorch beside tfppo (pip install torch). Prints a line of JSON a seed: the mean score of the
first 512 and of the last 1,280 episodes, the KL to the language model in nats a response, and the score of all held-out
sums.
"""

import importlib.util
import itertools
import json
from pathlib import Path

import numpy as np
from absl import app, flags

from tfppo.errors import UserError
from tfppo.stages.cli import one_line_errors, parse_flags

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs, as of learning_tasks.py.", required=True)
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
flags.register_validator("seeds", lambda seeds: all(map(str.isdigit, seeds)), "they must be whole numbers, as 0,1,2")

EPISODES, BATCH, GROUP, EPOCHS, MINIBATCHES = 10_240, 64, 8, 4, 4
RATE, CLIP, KL, MAX_NORM = 1e-4, 0.2, 0.04, 1.0
RESPONSE, HEADS = 4, 2  # tokens, heads of attention
BEGIN = END = 1  # of a text: one token; a byte b is the token 2 + b


def logits_of(weights, ids):
    """A pre-norm Transformer with tied embeddings (Radford et al. 2019): ids [B, T] to logits [B, T, V].

    Args: weights: embeddings of tokens and positions, twelve arrays a block, the last norm's two.
    """
    from torch.nn import functional

    tokens, positions, *blocks, gain, bias = weights
    width = tokens.shape[1]
    x = tokens[ids] + positions[: ids.shape[1]]
    for i in range(0, len(blocks), 12):
        g1, b1, to_qkv, qkv_bias, to_output, output_bias, g2, b2, up, up_bias, down, down_bias = blocks[i : i + 12]
        h = functional.layer_norm(x, (width,), g1, b1)
        q, k, v = (h @ to_qkv + qkv_bias).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        h = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + h @ to_output + output_bias
        h = functional.layer_norm(x, (width,), g2, b2)
        x = x + functional.gelu(h @ up + up_bias, approximate="tanh") @ down + down_bias
    logits = functional.layer_norm(x, (width,), gain, bias) @ tokens.T
    logits[..., 0] = -1e9  # padding is never drawn
    return logits


def sample(weights, prompts):
    """One response a prompt [B, P]: ids [B, P + R], and which tokens count [B, R], the end of text among them."""
    import torch

    ids, running, counts = prompts, torch.ones(len(prompts), dtype=torch.bool), []
    for _ in range(RESPONSE):
        probabilities = logits_of(weights, ids)[:, -1].softmax(-1)
        drawn = torch.where(running, torch.multinomial(probabilities, 1)[:, 0], 0)
        counts.append(running)
        running = running & (drawn != END)
        ids = torch.cat([ids, drawn[:, None]], 1)
    return ids, torch.stack(counts, 1).float()


def logprobs_of(weights, ids):
    """Of the tokens of the responses: [B, R]."""
    start = ids.shape[1] - RESPONSE
    logprobs = logits_of(weights, ids)[:, start - 1 : -1].log_softmax(-1)
    return logprobs.gather(2, ids[:, start:, None])[..., 0]


def text_of(ids):
    return "".join(chr(token - 2) for token in ids if 2 <= token < 258)


def mean_of_sequences(x, counts):
    return ((x * counts).sum(1) / counts.sum(1)).mean()


def train(start, pairs, held_out, seed):
    """One run. Args: start: the language model's weights; pairs [N, 2], held_out [M, 2]: numbers to be added."""
    import torch

    torch.manual_seed(seed)
    order = np.random.default_rng(seed)
    reference = [torch.tensor(array) for array in start]
    weights = [torch.tensor(array, requires_grad=True) for array in start]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    iterations = EPISODES // BATCH
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, iterations)
    rows: list[int] = []
    scores, divergences = [], []

    def prompts_of(pairs, times):
        ids = [[BEGIN, *(2 + byte for byte in f"{a}+{b}=".encode())] for a, b in pairs]
        return torch.tensor(ids).repeat_interleave(times, 0)

    def scores_of(ids, pairs, times):
        sums = np.repeat(np.sum(pairs, 1), times)
        found = [text_of(row) for row in ids[:, -RESPONSE:].tolist()]
        return torch.tensor([float(text == str(total)) for text, total in zip(found, sums, strict=True)])

    for _ in range(iterations):
        if len(rows) < BATCH // GROUP:
            rows = list(order.permutation(len(pairs)))
        chosen, rows = pairs[rows[: BATCH // GROUP]], rows[BATCH // GROUP :]
        with torch.no_grad():
            ids, counts = sample(weights, prompts_of(chosen, GROUP))
            rewards = scores_of(ids, chosen, GROUP)
            groups = rewards.view(-1, GROUP)
            advantages = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()
            old, expected = logprobs_of(weights, ids), logprobs_of(reference, ids)
        scores.append(rewards.mean().item())
        divergences.append(((old - expected) * counts).sum(1).mean().item())
        for _ in range(EPOCHS):
            for part in torch.randperm(BATCH).view(MINIBATCHES, -1):
                logprobs = logprobs_of(weights, ids[part])
                ratio = (logprobs - old[part]).exp()
                advantage = advantages[part, None]
                surrogate = torch.min(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
                difference = expected[part] - logprobs
                divergence = difference.exp() - 1 - difference
                loss = mean_of_sequences(KL * divergence - surrogate, counts[part])
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(weights, MAX_NORM)
                optimizer.step()
        schedule.step()
    with torch.no_grad():
        ids, _ = sample(weights, prompts_of(held_out, 1))
    return {
        "seed": seed,
        "before": np.mean(scores[: 512 // BATCH]),
        "score": np.mean(scores[-iterations // 8 :]),
        "kl": np.mean(divergences[-iterations // 8 :]),
        "held_out": scores_of(ids, held_out, 1).mean().item(),
    }


def main(argv):
    from tfppo.data.splits import split_of
    from tfppo.models.folder import load_language_model

    folder = Path(WORKDIR.value) / "sums"
    if not (folder / "trained").exists():
        raise UserError(f"--workdir {WORKDIR.value!r} has no language model of sums; run learning_tasks.py first")
    if importlib.util.find_spec("torch") is None:
        raise UserError("PyTorch is not there; pip install torch")
    model, _ = load_language_model(folder / "lm")
    pairs = np.array(list(itertools.product(range(10, 100), repeat=2)))
    splits = np.array([split_of(f"{a}+{b}=") for a, b in pairs])
    start = model.get_weights()
    for seed in map(int, SEEDS.value):
        row = train(start, pairs[splits == "train"], pairs[splits == "test"], seed)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    with one_line_errors():
        app.run(main, flags_parser=parse_flags)

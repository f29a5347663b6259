"""Evaluation of a policy on held-out prompts: reward, distance from the reference, variety, length."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfppo.computation.engine import Engine
from tfppo.config import RewardConfig, SamplingConfig
from tfppo.data.prompts import PromptSet
from tfppo.data.tokenizer import Tokenizer
from tfppo.files import write_text
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.ops.kl import kl_exact
from tfppo.ops.logprobs import token_logprobs
from tfppo.ops.masking import masked_sum
from tfppo.ops.seeds import seed_for
from tfppo.ppo.sampler import Sampler
from tfppo.ppo.scored_part import scored_part
from tfppo.rewards.scoring import Batch, Reward, total_scores
from tfppo.training.progress import shown
from tfppo.training.replicas import check_divides


class Evaluation(NamedTuple):
    """The figures of one evaluation, and the texts that they are of."""

    figures: dict[str, float]
    prompts: list[str]
    responses: list[str]
    scores: np.ndarray  # [N]


def distinct(texts: Sequence[str], n: int) -> float:
    """How many of all n-grams of words are different ones, as a share (Li et al. 2016); 0 if there are none."""
    grams = [gram for words in map(str.split, texts) for gram in zip(*(words[i:] for i in range(n)), strict=False)]
    return len(set(grams)) / len(grams) if grams else 0.0


def evaluate(
    policy: Policy,
    ref_model: LanguageModel,
    prompts: PromptSet,
    sampling: SamplingConfig,
    *,
    engines: Sequence[Engine],
    tokenizer: Tokenizer,
    rewards: Sequence[Reward],
    reward: RewardConfig,
    strategy: tf.distribute.Strategy,
    seed: int,
    batch_size: int,
) -> Evaluation:
    """Samples one response a prompt and measures them.

    The KL is exact: the divergence of the two next-token distributions, summed over the states of a response.
    The reward is what the reward functions give, unshaped; they see what they see in training.
    The perplexity is the reference's, of the responses' tokens.

    Args: engines: that sample; see `Sampler`.
    Raises: UserError where the reward function errs.
    """
    check_divides(strategy, "evaluation.batch_size", batch_size)
    sampler = Sampler(policy, sampling, engines, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id, strategy=strategy)
    temperature = sampling.temperature or 1.0

    @tf.function(autograph=False)
    def measure(*batch):
        ids, mask = batch[2:]
        logits = policy.language_model.response_logits(*batch)
        ref_logits = ref_model.response_logits(*batch)
        kl = masked_sum(kl_exact(logits, ref_logits, temperature), mask, axis=1)
        return kl, masked_sum(-token_logprobs(ref_logits, ids), mask, axis=1), tf.reduce_sum(mask, axis=1)

    texts, responses, scores, measured = [], [], [], []
    batches, total = prompts.batches(batch_size), math.ceil(len(prompts) / batch_size)
    starts = "compiles sampling: some seconds"
    for number, batch in enumerate(shown(batches, total=total, description="evaluation", unit="batch", starts=starts)):
        rows = len(batch.prompt_ids)
        whole = tf.nest.map_structure(lambda tensor, rows=rows: _repeat_rows(tensor, batch_size, rows), batch)
        samples = sampler(whole, seed_for(seed, "evaluate", number))
        figures = measure(*whole, samples.response_ids, samples.response_mask)
        measured.append([values.numpy()[:rows] for values in figures])
        ids, mask = samples.response_ids.numpy()[:rows], samples.response_mask.numpy()[:rows]
        texts += tokenizer.decode_batch(batch.prompt_ids.numpy())
        mask, _ = scored_part(ids, mask, reward, tokenizer.eos_id)
        responses += tokenizer.decode_batch(np.where(mask > 0, ids, tokenizer.pad_id))
        part = Batch(texts[-rows:], responses[-rows:], batch, ids, mask, tokenizer)
        scores.append(total_scores(rewards, reward.weights, part)[0].reshape(rows, -1).sum(axis=1))
    all_scores = np.concatenate(scores)
    kl, nll, length = (np.concatenate(parts) for parts in zip(*measured, strict=True))
    figures = {
        "prompts": len(all_scores),
        "reward": float(all_scores.mean()),
        "reward_standard_error": _standard_error(all_scores),
        "kl": float(kl.mean()),
        "kl_standard_error": _standard_error(kl),
        "distinct_1": distinct(responses, 1),
        "distinct_2": distinct(responses, 2),
        "length": float(length.mean()),
        "reference_perplexity": math.exp(nll.sum() / length.sum()),
    }
    return Evaluation(figures, texts, responses, all_scores)


def _repeat_rows(tensor, size, rows):
    # A last, smaller batch is filled up with copies, so that nothing is traced for its size.
    return tf.gather(tensor, tf.range(size) % rows)


def _standard_error(values):
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def write_evaluation(path: Path | str, figures: dict) -> None:
    """Writes figures as JSON, whole or not at all."""
    write_text(Path(path), json.dumps(figures, indent=2) + "\n")


def format_figures(columns: dict[str, dict[str, float]]) -> str:
    """Figures as a Markdown table, one column for each named evaluation."""
    names = list(next(iter(columns.values())))
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for name in names:
        cells = [f"{figures[name]:.4g}" for figures in columns.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def format_samples(before: Evaluation, after: Evaluation, *, rows: int) -> str:
    """The same prompts continued before and after, as a Markdown table of the first rows."""

    def cell(text):
        return " ".join(text.replace("|", "/").splitlines()).strip()  # Unicode has line breaks besides \n

    lines = ["| prompt | before PPO | score | after PPO | score |", "|---|---|---:|---|---:|"]
    for i in range(min(rows, len(before.prompts))):
        lines.append(
            f"| {cell(before.prompts[i])} | {cell(before.responses[i])} | {before.scores[i]:+.2f} "
            f"| {cell(after.responses[i])} | {after.scores[i]:+.2f} |"
        )
    return "\n".join(lines)

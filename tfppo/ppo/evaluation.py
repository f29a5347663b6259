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
from tfppo.ops.chunks import in_chunks
from tfppo.ops.kl import kl_exact
from tfppo.ops.logprobs import token_logprobs
from tfppo.ops.masking import masked_sum
from tfppo.ops.seeds import seed_for
from tfppo.ops.shapes import repeat_rows
from tfppo.ppo.sampler import Sampler
from tfppo.ppo.scored_part import score_responses
from tfppo.rewards.scoring import Reward
from tfppo.training.progress import shown
from tfppo.training.replicas import check_divides
from tfppo.training.workers import workers_of


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
    `response_perplexity` is that of the responses under the reference, a token.

    Args: engines: that sample; see `Sampler`.
    Raises: UserError where the reward function errs.
    """
    check_divides(strategy, "evaluation.batch_size", batch_size)
    sampler = Sampler(policy, sampling, engines, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id, strategy=strategy)
    temperature, ask = sampling.temperature or 1.0, workers_of(strategy).chief_answers

    @tf.function(autograph=False)
    def measure(*batch):
        ids, mask = batch[2:]
        models = policy.language_model, ref_model
        states = [model.trunk.response_states(*batch) for model in models]

        def of_states(*states_and_ids):
            logits, ref_logits = (model.logits(own) for model, own in zip(models, states_and_ids, strict=False))
            return kl_exact(logits, ref_logits, temperature), token_logprobs(ref_logits, states_and_ids[-1])

        if ref_model.has_many_logits(states[1]):
            columns = ref_model.trunk.sizes["vocabulary_size"]
            kl, logprobs = in_chunks(of_states, *states, ids, num_columns=columns, num_results=2)
        else:
            kl, logprobs = of_states(*states, ids)
        return masked_sum(kl, mask, axis=1), masked_sum(-logprobs, mask, axis=1), tf.reduce_sum(mask, axis=1)

    texts, responses, scores, measured = [], [], [], []
    batches, total = prompts.batches(batch_size), math.ceil(len(prompts) / batch_size)
    starts = "compiles sampling: some seconds"
    parts = shown(batches, total=total, description="evaluation", unit="batch", starts=starts)
    for number, (batch, columns) in enumerate(parts):
        rows = len(batch.prompt_ids)
        # A last, smaller batch is filled up, so that nothing is traced for its size.
        whole = tf.nest.map_structure(lambda tensor: repeat_rows(tensor, batch_size), batch)
        samples = sampler(whole, seed_for(seed, "evaluate", number))
        figures = measure(*whole, samples.response_ids, samples.response_mask)
        measured.append([values.numpy()[:rows] for values in figures])
        ids, mask = samples.response_ids.numpy()[:rows], samples.response_mask.numpy()[:rows]
        seen, part, _, _ = score_responses(
            batch, ids, mask, columns, tokenizer=tokenizer, rewards=rewards, reward=reward, ask=ask
        )
        texts += seen.texts
        responses += seen.responses
        scores.append(part.reshape(rows, -1).sum(axis=1))
    all_scores = np.concatenate(scores)
    kl, nll, length = (np.concatenate(parts) for parts in zip(*measured, strict=True))
    figures = {
        "prompts": len(all_scores),
        **_mean("reward", all_scores),
        **_mean("kl", kl),
        "distinct_1": distinct(responses, 1),
        "distinct_2": distinct(responses, 2),
        "length": float(length.mean()),
        "response_perplexity": math.exp(nll.sum() / length.sum()),
    }
    return Evaluation(figures, texts, responses, all_scores)


def _mean(name, values):
    """The mean of some values, and its standard error where there are two or more."""
    error = {f"{name}_standard_error": float(values.std(ddof=1) / math.sqrt(len(values)))} if len(values) > 1 else {}
    return {name: float(values.mean()), **error}


def write_evaluation(path: Path | str, figures: dict) -> None:
    """Writes figures as JSON, whole or not at all."""
    write_text(Path(path), json.dumps(figures, indent=2) + "\n")


def figure_rows(columns: dict[str, dict[str, float]]) -> list[tuple[str, ...]]:
    """Figures as a table: its head, and a row for each figure with a column for each named evaluation.

    A figure that an evaluation does not have is a dash there.
    """
    names = dict.fromkeys(name for figures in columns.values() for name in figures)
    rows = [
        (name, *(f"{figures[name]:z.4g}" if name in figures else "-" for figures in columns.values())) for name in names
    ]
    return [("figure", *columns), *rows]


def format_figures(columns: dict[str, dict[str, float]]) -> str:
    """Figures as a Markdown table, one column for each named evaluation."""
    head, *rows = figure_rows(columns)
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(["| | " + " | ".join(head[1:]) + " |", "|---|" + "---:|" * len(columns), *lines])


def sample_rows(columns: dict[str, Evaluation], *, rows: int) -> list[tuple[str, ...]]:
    """The same prompts continued in each named evaluation, as a table of the first rows: its head first."""
    evaluations = list(columns.values())
    head = ("prompt", *(title for name in columns for title in (name, "score")))
    table = [head]
    for i in range(min(rows, len(evaluations[0].prompts))):
        cells = (cell for one in evaluations for cell in (one.responses[i], f"{one.scores[i]:+z.2f}"))
        table.append((evaluations[0].prompts[i], *cells))
    return table


def format_samples(columns: dict[str, Evaluation], *, rows: int) -> str:
    """The same prompts continued in each named evaluation, as a Markdown table of the first rows."""

    def line(cells):
        # Unicode has line breaks besides \n.
        return f"| {' | '.join(' '.join(cell.replace('|', '/').splitlines()).strip() for cell in cells)} |"

    head, *samples = sample_rows(columns, rows=rows)
    return "\n".join([line(head), "|---|" + "---|---:|" * len(columns), *map(line, samples)])

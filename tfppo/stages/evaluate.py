"""The stage that measures a model on held-out prompts."""

from pathlib import Path

import tensorflow as tf

from tfppo.config import Config
from tfppo.config.validation import validate_prompt_positions
from tfppo.files import write_text
from tfppo.lm.likelihood import HeldOutLoss
from tfppo.models.folder import load_language_model, load_policy
from tfppo.ppo.evaluation import (
    Evaluation,
    evaluate,
    figure_rows,
    format_figures,
    format_samples,
    sample_rows,
    write_evaluation,
)
from tfppo.stages.engines import engines_that_sample
from tfppo.stages.history import trained_settings
from tfppo.stages.invocation import quote
from tfppo.stages.rewards import load_rewards
from tfppo.stages.texts import load_prompts, load_written
from tfppo.stages.workdir import language_model_folder
from tfppo.training.tensorboard import replace_summaries, table_values
from tfppo.training.workers import workers_of


def measured_rewards(config: Config, folder: Path) -> list[str]:
    """Lines that name the reward functions of an evaluation, and those that the run was trained with, if others."""
    measured = config.reward.functions
    trained = tuple(trained_settings(folder).get("reward.functions", measured))
    lines = [f"reward functions measured: {', '.join(measured)}"]
    if trained != tuple(measured):
        flag = quote(f"--config.reward.functions={trained}")
        lines.append(f"the run was trained with other reward functions: {', '.join(trained)}; to measure those, {flag}")
    return lines


def evaluate_model(
    config: Config, folder: Path, strategy: tf.distribute.Strategy, model_folder: Path | str
) -> Evaluation:
    """Evaluates the model in a folder on held-out prompts, against the language model that PPO starts from.

    `held_out_perplexity` is the model's, a token, on the held-out texts themselves, where the data has any.
    Raises: UserError where a reward function errs or lacks a column; `check_rewards` tells the latter before.
    """
    workers_of(strategy).barrier()  # what the chief has written is there
    config = config.with_ends()
    policy, tokenizer = load_policy(model_folder)
    reference = language_model_folder(config, folder)
    ref_model, _ = load_language_model(reference)
    validate_prompt_positions(config, ref_model.max_sequence_length, folder=reference)
    evaluation = evaluate(
        policy,
        ref_model,
        load_prompts(config, "test", tokenizer, ref_model.max_sequence_length).sample(config.evaluation.num_prompts),
        config.sampling,
        engines=engines_that_sample(config.sampling, policy.language_model),
        tokenizer=tokenizer,
        rewards=load_rewards(config, folder, tokenizer),
        reward=config.reward,
        strategy=strategy,
        seed=config.seed,
        batch_size=config.evaluation.batch_size,
    )
    texts = load_written(config, "test", tokenizer, ref_model.max_sequence_length)
    if texts is not None:
        held_out = HeldOutLoss(policy.language_model, *texts, config.evaluation.batch_size)()
        evaluation.figures["held_out_perplexity"] = held_out["perplexity"]
    return evaluation


def record_evaluations(columns: dict[str, Evaluation], folder: Path, *, num_samples: int) -> str:
    """Writes WORKDIR/evaluation.json and the tables of WORKDIR/samples.md, and the same for TensorBoard.

    Args: columns: named evaluations of the same prompts. Returns: the tables.
    """
    figures = {name: evaluation.figures for name, evaluation in columns.items()}
    write_evaluation(folder / "evaluation.json", figures)
    replace_summaries(
        folder / "evaluation",
        0,
        [
            *table_values("evaluation/figures", figure_rows(figures)),
            *table_values("evaluation/samples", sample_rows(columns, rows=num_samples)),
        ],
    )
    tables = f"{format_samples(columns, rows=num_samples)}\n\n{format_figures(figures)}"
    write_text(folder / "samples.md", f"{tables}\n")
    return tables

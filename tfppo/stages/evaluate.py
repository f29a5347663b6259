"""The stage that measures a model on held-out prompts."""

from pathlib import Path

import tensorflow as tf

from tfppo.config import Config
from tfppo.config.validation import validate_prompt_positions
from tfppo.lm.likelihood import HeldOutLoss
from tfppo.models.folder import load_language_model, load_policy
from tfppo.ppo.evaluation import Evaluation, evaluate
from tfppo.stages.engines import engines_that_sample
from tfppo.stages.rewards import check_rewards, load_rewards
from tfppo.stages.texts import load_packed, load_prompts
from tfppo.stages.workdir import language_model_folder


def evaluate_model(
    config: Config, folder: Path, strategy: tf.distribute.Strategy, model_folder: Path | str
) -> Evaluation:
    """Evaluates the model in a folder on held-out prompts, against the language model that PPO starts from.

    `text_perplexity` is the model's own, a token, on the held-out texts themselves.
    Raises: UserError where a reward function errs or lacks a column, the latter before a model is loaded.
    """
    config = config.with_ends()
    check_rewards(config, folder, "test")
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
    texts = load_packed(config.data, "test", tokenizer, ref_model.max_sequence_length)
    held_out = HeldOutLoss(policy.language_model, *texts, config.evaluation.batch_size)()
    evaluation.figures["text_perplexity"] = held_out["perplexity"]
    return evaluation

"""Checks that the parts of a run fit each other."""

from pathlib import Path

import tensorflow as tf

from tfppo.config import Config
from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError
from tfppo.ppo.minibatches import check_minibatches
from tfppo.training.replicas import check_divides


def check_batches(config: Config, strategy: tf.distribute.Strategy) -> None:
    """Raises UserError where the replicas do not divide a batch of a language model, of PPO or of an evaluation."""
    check_divides(strategy, "lm.batch_size", config.lm.batch_size)
    check_minibatches(config.ppo, strategy)
    check_divides(strategy, "evaluation.batch_size", config.evaluation.batch_size)


def check_tokenizer(setting: str, folder: Path | str, its_tokenizer: Tokenizer, tokenizer: Tokenizer) -> None:
    """Raises UserError where the model in a folder has another tokenizer than the language model."""
    if its_tokenizer.digest() != tokenizer.digest():
        raise UserError(
            f"{setting}, but the model in {str(folder)!r} has another tokenizer than the language model, and scores "
            f"tokens; name one that was trained from this language model"
        )

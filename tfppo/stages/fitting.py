"""Checks that the models of a run fit each other and the settings."""

import operator
from pathlib import Path

from tfppo.config import Config
from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError
from tfppo.models.language_model import LanguageModel
from tfppo.models.reward_model import RewardModel


def check_tokenizer(setting: str, folder: Path | str, its_tokenizer: Tokenizer, tokenizer: Tokenizer) -> None:
    """Raises UserError where the model in a folder has another tokenizer than the language model."""
    if its_tokenizer.digest() != tokenizer.digest():
        raise UserError(
            f"{setting}, but the model in {str(folder)!r} has another tokenizer than the language model, and scores "
            f"tokens; name one that was trained from this language model"
        )


def check_positions(
    config: Config,
    model: LanguageModel | RewardModel,
    folder: Path,
    prompt: str = "data.max_prompt_tokens",
    response: str = "sampling.response_length",
) -> None:
    """Raises UserError where a prompt and a response, as long as two settings allow, exceed a model's positions."""
    prompt_tokens, response_tokens = (operator.attrgetter(name)(config) for name in (prompt, response))
    longest = 1 + prompt_tokens + response_tokens
    if longest > model.max_sequence_length:
        raise UserError(
            f"{response} is {response_tokens}: with a start token and {prompt} {prompt_tokens} that is {longest} "
            f"positions, and the model in {str(folder)!r} has {model.max_sequence_length}; lower one of them"
        )

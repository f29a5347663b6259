"""The reward functions that a configuration names."""

from contextlib import suppress
from functools import cache
from pathlib import Path

from tfppo.computation.devices import resolve_jit_compile
from tfppo.config import Config
from tfppo.config.validation import validate_positions
from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError
from tfppo.files import user_path
from tfppo.models.folder import check_model, load_chat_template
from tfppo.rewards.calling import Patience
from tfppo.rewards.columns import takes_column
from tfppo.rewards.loading import MODEL_REWARDS, ModelReward, load_reward
from tfppo.rewards.remote import RemoteReward, is_url, read_token
from tfppo.rewards.scoring import Reward, TextReward, name_apart
from tfppo.stages.checks import check_tokenizer
from tfppo.stages.texts import load_texts
from tfppo.stages.workdir import language_model_folder


def load_rewards(config: Config, folder: Path, tokenizer: Tokenizer) -> list[Reward]:
    """The reward functions, for the tokens of a tokenizer.

    Raises: UserError where there is none of a name, or a model that scores has another tokenizer or too few positions.
    """
    rewards: list[Reward] = []
    for name in config.reward.functions:
        found = _model_reward(config, folder, name)
        if found is None:
            rewards.append(_remote_reward(config, name) if is_url(name) else _text_reward(config, name))
            continue
        kind, its_folder = found
        model, its_tokenizer = kind.load(its_folder)
        check_tokenizer(f"reward.functions has {name!r}", its_folder, its_tokenizer, tokenizer)
        validate_positions(config, model.max_sequence_length, folder=its_folder)
        rewards.append(kind.make(model, resolve_jit_compile(config.sampling.jit_compile, "float32")))
    name_apart(rewards)
    return rewards


def check_rewards(config: Config, folder: Path, *splits: str) -> None:
    """Raises UserError where a reward function or the model of one is missing, or the data lack a column it takes.

    Nothing is loaded but the functions, and the texts of the splits where a function takes columns.

    Args: splits: of the data, whose texts are scored; all but the first may be missing.
    """
    texts = cache(lambda: _examples(config, folder, splits))  # once, however many functions take columns
    for name in config.reward.functions:
        found = _model_reward(config, folder, name)
        if is_url(name):
            _remote_reward(config, name)
        elif found is None:
            signature = _text_reward(config, name).signature
            if signature.needs_check():
                columns, places = [one.columns for one in texts()], [one.place for one in texts()]
                signature.check(columns, places, f"data.source {config.data.source!r}")
        elif found[1] != folder / "lm":  # which the quickstart has yet to train
            check_model(found[1], found[0].made_by)


def _examples(config, folder, splits):
    template = load_chat_template(language_model_folder(config, folder))
    rewarded = takes_column(config.reward.functions)
    examples = load_texts(config.data, splits[0], template, rewarded)
    for split in splits[1:]:
        with suppress(UserError):  # there is none
            examples = [*examples, *load_texts(config.data, split, template, rewarded)]
    return examples


def _text_reward(config, name):
    patience = Patience(config.reward.retries or 0, config.reward.timeout)
    return TextReward(name.rpartition(":")[2], load_reward(name), patience)


def _remote_reward(config, name):
    return RemoteReward(name, config.reward, read_token(config.reward.url_token_variable))


def _model_reward(config, folder, name) -> tuple[ModelReward, Path] | None:
    """The kind of reward that a model gives and the model's folder; None where a function gives it."""
    kind, _, its_folder = name.partition(":")
    if kind not in MODEL_REWARDS:
        return None
    defaults = {"likelihood": language_model_folder(config, folder), "reward_model": folder / "reward_model"}
    return MODEL_REWARDS[kind], user_path(its_folder) if its_folder else defaults[kind]

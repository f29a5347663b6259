"""Rules for settings. An error names the field, its value and the remedy."""

import math
import operator
import os
from collections.abc import Collection
from typing import TYPE_CHECKING

from tfppo.config.choices import GROUPED
from tfppo.errors import UserError

if TYPE_CHECKING:  # settings.py imports this module
    from tfppo.config.settings import Config


def require(condition: bool, name: str, value: object, remedy: str) -> None:
    """Raises UserError, naming field, value and remedy, unless the condition holds."""
    if not condition:
        raise UserError(f"{name} is {value!r}; {remedy}")


def require_one_of(name: str, value: object, choices: Collection[str]) -> None:
    """Raises UserError unless the value is one of the choices."""
    require(value in choices, name, value, f"choose one of {', '.join(choices)}")


def require_positive(section: str, config: object, *names: str) -> None:
    """Raises UserError unless every named field of a section is above 0."""
    for name in names:
        _require_above_0(f"{section}.{name}", getattr(config, name))


def _require_above_0(name: str, value: float) -> None:
    require(value > 0 and math.isfinite(value), name, value, "it must be above 0 and finite")


def validate_dtype(name: str, dtype: str, auto: bool = False) -> None:
    """Raises UserError for a dtype policy that tfppo does not run in; `auto` may be one."""
    choices = ("auto", "float32", "mixed_bfloat16") if auto else ("float32", "mixed_bfloat16")
    require_one_of(name, dtype, choices)


def validate_sizes(
    *,
    vocabulary_size: int,
    num_layers: int,
    num_heads: int,
    hidden_dim: int,
    intermediate_dim: int,
    max_sequence_length: int,
    dropout: float,
    section: str = "model",
) -> None:
    """Raises UserError for impossible sizes of a Transformer; `section` prefixes the names in the error."""
    sizes = dict(
        vocabulary_size=vocabulary_size,
        num_layers=num_layers,
        num_heads=num_heads,
        hidden_dim=hidden_dim,
        intermediate_dim=intermediate_dim,
        max_sequence_length=max_sequence_length,
    )
    for name, value in sizes.items():
        _require_above_0(f"{section}.{name}", value)
    require(
        hidden_dim % num_heads == 0,
        f"{section}.num_heads",
        num_heads,
        f"it must divide {section}.hidden_dim {hidden_dim}",
    )
    require(0 <= dropout < 1, f"{section}.dropout", dropout, "it must be at least 0 and below 1")


def positions_needed(prompt_tokens: int, response_tokens: int) -> int:
    """The number of positions of an episode: start token, prompt and response."""
    return 1 + prompt_tokens + response_tokens


def validate_positions(
    config: "Config",
    available: int,
    *,
    prompt: str = "data.max_prompt_tokens",
    response: str = "sampling.response_length",
    folder: str | os.PathLike | None = None,
) -> None:
    """Raises UserError where the longest episode that two settings allow needs more positions than a model has.

    Args:
        available: the positions of the model.
        prompt, response: the names of the two settings, as section.field.
        folder: where the model is; None: it is the one that `config.model` describes.
    """
    prompt_tokens, response_tokens = (operator.attrgetter(name)(config) for name in (prompt, response))
    needed = positions_needed(prompt_tokens, response_tokens)
    if needed <= available:
        return
    if folder is None:
        raise UserError(
            f"model.max_sequence_length is {available}; a start token, {prompt} {prompt_tokens} and {response} "
            f"{response_tokens} need {needed} positions"
        )
    raise UserError(
        f"{response} is {response_tokens}: with a start token and {prompt} {prompt_tokens} that is {needed} positions, "
        f"and the model in {str(folder)!r} has {available}; lower one of them"
    )


def validate_prompt_positions(config: "Config", available: int, folder: str | os.PathLike | None = None) -> None:
    """Raises UserError where prompts that settings allow, cut or given, need more positions than a model has."""
    validate_positions(config, available, folder=folder)
    if config.data.max_given_prompt_tokens is not None:
        validate_positions(config, available, prompt="data.max_given_prompt_tokens", folder=folder)


def validate_trainable_blocks(trainable_blocks: int | None, num_layers: int) -> None:
    """Raises UserError where more blocks are to be trained than the `num_layers` of the model."""
    require(
        trainable_blocks is None or trainable_blocks <= num_layers,
        "ppo.trainable_blocks",
        trainable_blocks,
        f"the model has {num_layers} blocks; use at most so many, or None to train everything",
    )


def validate_for_ppo(config: "Config") -> None:
    """Raises UserError for combinations of valid settings that PPO cannot run with."""
    config = config.with_ends()
    sampling, reward, ppo = config.sampling, config.reward, config.ppo
    require(
        sampling.top_k == 0 and sampling.top_p == 1.0,
        "sampling.top_k, sampling.top_p",
        (sampling.top_k, sampling.top_p),
        "PPO needs 0 and 1: with a filter, responses come from another distribution than the one that is trained",
    )
    require(
        ppo.embedding_learning_rate is None or ppo.trainable_blocks is None,
        "ppo.embedding_learning_rate",
        ppo.embedding_learning_rate,
        f"ppo.trainable_blocks {ppo.trainable_blocks} leaves the embeddings as they are; use None for one of the two",
    )
    require(sampling.temperature > 0, "sampling.temperature", sampling.temperature, "PPO needs it above 0")
    require(
        not reward.whiten or ppo.episodes_whitened() >= 8,
        "ppo.rollout_batch_size",
        ppo.rollout_batch_size,
        f"whitening rewards needs at least 8 episodes in a {ppo.whiten_scope}; raise it or set reward.whiten=False",
    )
    require(
        not reward.whiten or ppo.estimator not in GROUPED,
        "reward.whiten",
        reward.whiten,
        f"ppo.estimator {ppo.estimator} compares whole scores, which whitening by token would change; use False",
    )
    require(
        ppo.whiten_scope == "rollout" or ppo.whiten_advantages or reward.whiten,
        "ppo.whiten_scope",
        ppo.whiten_scope,
        "nothing is whitened; use rollout, or set ppo.whiten_advantages or reward.whiten",
    )
    require(
        reward.placement != "last_position" or not sampling.stop_at_eos,
        "reward.placement",
        reward.placement,
        "the last position is padding for a response that stopped; use last_token or sampling.stop_at_eos=False",
    )
    require(
        reward.placement != "after_last" or bool(sampling.stop_at_eos),
        "reward.placement",
        reward.placement,
        "nothing comes after a response that never stops; use last_token or sampling.stop_at_eos=True",
    )
    require(
        reward.placement != "after_last" or ppo.estimator in ("gae", "monte_carlo"),
        "reward.placement",
        reward.placement,
        f"ppo.estimator {ppo.estimator} knows no state after the last token; use last_token",
    )
    require(
        not (reward.truncate_at_eos and sampling.stop_at_eos),
        "reward.truncate_at_eos",
        reward.truncate_at_eos,
        "sampling already stops at EOS; use False, or sampling.stop_at_eos=False",
    )
    require(
        reward.missing_stop_penalty is None or sampling.stop_at_eos or reward.truncate_at_eos,
        "reward.missing_stop_penalty",
        reward.missing_stop_penalty,
        "no response stops; set sampling.stop_at_eos or reward.truncate_at_eos, or use None",
    )
    require(
        ppo.trajectories == "policy" or (ppo.group_size == 1 and not reward.truncate_at_eos),
        "ppo.trajectories",
        ppo.trajectories,
        "texts of the data come one a prompt and as they are; use ppo.group_size=1 and reward.truncate_at_eos=False",
    )

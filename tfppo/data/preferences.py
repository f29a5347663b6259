"""Comparisons for reward models: a prompt, its chosen response, and its rejected responses."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from absl import logging

from tfppo.config import RewardModelConfig
from tfppo.data.prompts import pad_left, pad_right
from tfppo.data.sources import checked_text, read_objects
from tfppo.data.splits import cut_splits
from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError

_FIELDS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True, slots=True)
class Preference:
    """One comparison as texts."""

    prompt: str
    responses: tuple[str, ...]  # the chosen one first


class Comparisons(NamedTuple):
    """N comparisons of K responses each, the chosen one first; each response ends with EOS."""

    prompt_ids: np.ndarray  # [N, P] int32, padded on the left
    prompt_mask: np.ndarray  # [N, P] int32
    response_ids: np.ndarray  # [N, K, R] int32, padded on the right
    response_mask: np.ndarray  # [N, K, R] float32


def load_preferences(source: str) -> dict[str, list[Preference]]:
    """The comparisons of a .jsonl file by split; all comparisons of a prompt are in the same split.

    Each line is an object with the strings `prompt` and `chosen`, and with `rejected`, a string or a list of strings
    of the same length in every line.

    Raises: UserError for a file that is missing or malformed, or has a split without comparisons.
    """
    if not source.endswith(".jsonl"):
        raise UserError(f"reward_model.source is {source!r}; name a .jsonl file of objects with {', '.join(_FIELDS)}")
    preferences: list[Preference] = []
    for where, record in read_objects(source):
        preference = _preference(record, where)
        expected = len((preferences or [preference])[0].responses) - 1
        if len(preference.responses) - 1 != expected:
            raise UserError(
                f"{where}: field 'rejected' has {len(preference.responses) - 1} texts, and that of the first record "
                f"{expected}: give every record as many."
            )
        preferences.append(preference)
    split_by_prompt = cut_splits([preference.prompt for preference in preferences])
    splits: dict[str, list[Preference]] = {"train": [], "validation": [], "test": []}
    for preference in preferences:
        splits[split_by_prompt[preference.prompt]].append(preference)
    empty = [split for split, members in splits.items() if not members]
    if empty:
        raise UserError(
            f"reward_model.source {source!r} has no comparisons for split {empty[0]!r}: give it at least 3 different "
            f"prompts."
        )
    return splits


def _preference(record, where):
    for name in _FIELDS:
        if name not in record:
            raise UserError(f"{where}: no field {name!r}; the fields are {sorted(record)}: write {', '.join(_FIELDS)}.")
    prompt, chosen, rejected = (record[name] for name in _FIELDS)
    rejected = rejected if isinstance(rejected, list) else [rejected]
    if not rejected:
        raise UserError(f"{where}: field 'rejected' is []: give at least one text.")
    named = [(chosen, "chosen"), *((text, "rejected") for text in rejected)]
    return Preference(checked_text(prompt, "prompt", where), tuple(checked_text(*pair, where) for pair in named))


def encode_preferences(preferences: list[Preference], tokenizer: Tokenizer, config: RewardModelConfig) -> Comparisons:
    """Comparisons as tokens: EOS as start token before each prompt, and EOS at the end of each response.

    Comparisons with a longer prompt or response than the configuration allows are left out and counted in the log. They
    are not truncated, since people compared the whole responses. Raises: UserError where none is left.
    """
    prompts = tokenizer.encode_batch([preference.prompt for preference in preferences])
    size = len(preferences[0].responses)
    texts = tokenizer.encode_batch([text for preference in preferences for text in preference.responses])
    responses = [[[*ids, tokenizer.eos_id] for ids in texts[i : i + size]] for i in range(0, len(texts), size)]
    kept = [
        (prompt, group)
        for prompt, group in zip(prompts, responses, strict=True)
        if len(prompt) <= config.max_prompt_tokens and max(map(len, group)) <= config.max_response_tokens
    ]
    limits = (
        f"reward_model.max_prompt_tokens {config.max_prompt_tokens} or reward_model.max_response_tokens "
        f"{config.max_response_tokens}"
    )
    if not kept:
        raise UserError(
            f"reward_model.source {config.source!r}: each of the {len(preferences)} comparisons of a split is longer "
            f"than {limits}; raise them, or shorten the texts"
        )
    if len(kept) < len(preferences):
        logging.warning(
            "%d of %d comparisons are longer than %s, and left out",
            len(preferences) - len(kept),
            len(preferences),
            limits,
        )
    rows = [[tokenizer.eos_id, *prompt] for prompt, _ in kept]
    ids, mask = pad_left(rows, tokenizer.pad_id, max(map(len, rows)))
    rows = [response for _, group in kept for response in group]
    response_ids, response_mask = (
        array.reshape(len(kept), size, -1) for array in pad_right(rows, tokenizer.pad_id, max(map(len, rows)))
    )
    return Comparisons(ids.numpy(), mask.numpy(), response_ids, response_mask)

"""Prompts for PPO and evaluation: cut from texts or taken as given, padded on the left, in a reproducible order."""

import numpy as np
import tensorflow as tf

from tfppo.config import DataConfig
from tfppo.data.sources import Example
from tfppo.errors import UserError
from tfppo.seeds import permutation, stream_indices
from tfppo.types import Prompts


def encode_prompts(examples: list[Example], tokenizer, config: DataConfig, seed: int) -> list[list[int]]:
    """Token ids of the prompts of examples, each behind the start token (EOS, which ends the text before).

    A prompt that the data names is taken whole. From a text without one, the first min_prompt_tokens to
    max_prompt_tokens tokens are taken (how many is drawn for each); texts that are no longer are left out.

    Raises: UserError where a given prompt is longer than max_prompt_tokens, or no prompt is left.
    """
    given = [example.prompt is not None for example in examples]
    encoded = tokenizer.encode_batch(
        [example.text if example.prompt is None else example.prompt for example in examples]
    )
    rng = np.random.default_rng([seed, len(examples)])
    lengths = rng.integers(config.min_prompt_tokens, config.max_prompt_tokens, size=len(examples), endpoint=True)
    prompts = []
    for example, is_given, ids, length in zip(examples, given, encoded, lengths, strict=True):
        if is_given and len(ids) > config.max_prompt_tokens:
            raise UserError(
                f"data.max_prompt_tokens is {config.max_prompt_tokens}, but the prompt {example.prompt!r:.120} has "
                f"{len(ids)} tokens; raise it (and model.max_sequence_length with it) or shorten the prompt"
            )
        if is_given:
            prompts.append([tokenizer.eos_id, *ids])
        elif len(ids) > length:
            prompts.append([tokenizer.eos_id, *ids[:length]])
    if not prompts:
        raise UserError(
            f"data.source {config.source!r} yields no prompt: none of its {len(examples)} texts is longer than "
            f"data.min_prompt_tokens {config.min_prompt_tokens}; lower it or add texts"
        )
    return prompts


def pad_left(rows: list[list[int]], pad_id: int, length: int) -> Prompts:
    """Rows of token ids as Prompts [B, length], padded on the left."""
    ids = np.full([len(rows), length], pad_id, np.int32)
    mask = np.zeros([len(rows), length], np.int32)
    for number, row in enumerate(rows):
        ids[number, length - len(row) :] = row
        mask[number, length - len(row) :] = 1
    return Prompts(tf.constant(ids), tf.constant(mask))


class PromptSet:
    """All prompts of a split, [N, P]; batches of them by position in an endless, reshuffled stream."""

    def __init__(self, prompts: list[list[int]], tokenizer, max_prompt_tokens: int, seed: int):
        self._prompts = prompts
        self._pad_id = tokenizer.pad_id
        self._length = 1 + max_prompt_tokens
        self._seed = seed

    def __len__(self):
        return len(self._prompts)

    def batch(self, step: int, size: int) -> Prompts:
        """The step-th batch [size, P] of the stream; a function of the step alone, so that a resumed run goes on."""
        indices = stream_indices(self._seed, "prompts", step * size, size, len(self))
        return pad_left([self._prompts[i] for i in indices], self._pad_id, self._length)

    def sample(self, count: int) -> "PromptSet":
        """A fixed choice of `count` prompts (all, where there are fewer)."""
        chosen = permutation(self._seed, "held-out", 0, len(self))[:count]
        subset = PromptSet.__new__(PromptSet)
        subset._prompts = [self._prompts[i] for i in chosen]
        subset._pad_id, subset._length, subset._seed = self._pad_id, self._length, self._seed
        return subset

    def batches(self, size: int):
        """All prompts in order, as Prompts of at most `size` rows."""
        for start in range(0, len(self), size):
            yield pad_left(self._prompts[start : start + size], self._pad_id, self._length)

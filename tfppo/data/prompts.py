"""Prompts for PPO and evaluation: given, or cut from texts; padded on the left; in a reproducible order."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfppo.config import DataConfig
from tfppo.data.report import counted, tell
from tfppo.data.shapes import Example
from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError
from tfppo.ops.seeds import permutation, stream_indices


class Prompts(NamedTuple):
    """A batch of prompts, padded on the left to one length."""

    prompt_ids: tf.Tensor  # [B, P] int32
    prompt_mask: tf.Tensor  # [B, P] int32


class Trajectory(NamedTuple):
    """Token ids of a prompt and of its continuation in the dataset, and the fields of their record."""

    prompt: list[int]  # begins with EOS as start token
    continuation: list[int]  # ends with EOS
    columns: Mapping[str, object] = {}


Columns = Mapping[str, Sequence[object]]  # {name: one value a row}, for reward functions


def encode_trajectories(
    examples: list[Example], tokenizer: Tokenizer, config: DataConfig, seed: int, room: int
) -> list[Trajectory]:
    """The prompts of examples and their continuations, as token ids.

    A prompt of the dataset is used whole, where it has at most `room` tokens and data.max_given_prompt_tokens; what
    becomes of a longer one, data.long_prompts says. A text without one is cut after min_prompt_tokens to
    max_prompt_tokens tokens, a number that is drawn for each text; texts that are too short for that are left out. What
    is left out or cut is counted in a line.

    Raises: UserError where a given prompt is too long and is to be refused, or no prompt is left.
    """
    texts = tokenizer.encode_batch([example.text for example in examples])
    prompts = tokenizer.encode_batch([example.prompt or "" for example in examples])
    rng = np.random.default_rng([seed, len(examples)])
    lengths = rng.integers(config.min_prompt_tokens, config.max_prompt_tokens, size=len(examples), endpoint=True)
    eos, trajectories, too_short = tokenizer.eos_id, [], []
    given = _GivenPrompts(config, room)
    for example, prompt, text, length in zip(examples, prompts, texts, lengths, strict=True):
        if example.prompt is None and len(text) <= length:
            too_short.append(example.place)
        elif example.prompt is None:
            trajectories.append(Trajectory([eos, *text[:length]], [*text[length:], eos], example.columns))
        elif (fitted := given.fit(example, prompt)) is not None:
            trajectories.append(Trajectory([eos, *fitted], [*text, eos], example.columns))
    given.tell()
    if too_short:
        tell(f"data: {config.source}: {counted(too_short, 'texts too short to be cut into a prompt and the rest')}")
    if not trajectories:
        raise UserError(f"data.source {config.source!r} yields no prompt: {given.reason(len(examples))}")
    return trajectories


class _GivenPrompts:
    """What becomes of prompts that are too long, by data.long_prompts, and how many there were."""

    def __init__(self, config, room):
        self.config, self.long = config, []
        own = config.max_given_prompt_tokens
        self.limit = room if own is None else min(room, own)
        self.origin = (
            "that model.max_sequence_length leaves beside sampling.response_length"
            if self.limit == room
            else "of data.max_given_prompt_tokens"
        )

    def fit(self, example, ids):
        """The ids that are used; None where the prompt is left out."""
        if len(ids) <= self.limit:
            return ids
        self.long.append(example.place)
        return getattr(self, f"_{self.config.long_prompts}")(example, ids)

    def tell(self):
        done = {"drop": "left out", "cut": "cut from the left"}
        if self.long:
            what = f"prompts of more than the {self.limit} tokens {self.origin}"
            tell(f"data: {self.config.source}: {done[self.config.long_prompts]}: {counted(self.long, what)}")

    def reason(self, num_examples):
        if self.long:
            return (
                f"each of its prompts has more than the {self.limit} tokens {self.origin}; set data.long_prompts=cut, "
                "or raise that"
            )
        return (
            f"none of its {num_examples} texts is longer than data.min_prompt_tokens {self.config.min_prompt_tokens}; "
            "lower it or add texts"
        )

    def _drop(self, example, ids):
        return None

    def _cut(self, example, ids):
        return ids[-self.limit :]

    def _refuse(self, example, ids):
        raise UserError(
            f"{example.place}: the prompt {example.prompt!r:.120} has {len(ids)} tokens, more than the {self.limit} "
            f"{self.origin}; set data.long_prompts to drop or cut, or shorten the prompt"
        )


def padded_length(trajectories: list[Trajectory], examples: list[Example], config: DataConfig) -> int:
    """The length that prompts are padded to: that of the longest given one, or what cut ones may have, if more.

    Start token included. Cut prompts count with the most tokens that may be drawn, so that the length does not depend
    on the draw.
    """
    cut = 1 + config.max_prompt_tokens if any(example.prompt is None for example in examples) else 0
    return max(cut, max(len(trajectory.prompt) for trajectory in trajectories))


def pad_left(rows: list[list[int]], pad_id: int, length: int) -> Prompts:
    """Rows of token ids as Prompts [B, length], padded on the left."""
    ids = np.full([len(rows), length], pad_id, np.int32)
    mask = np.zeros([len(rows), length], np.int32)
    for number, row in enumerate(rows):
        ids[number, length - len(row) :] = row
        mask[number, length - len(row) :] = 1
    return Prompts(tf.constant(ids), tf.constant(mask))


def pad_right(rows: list[list[int]], pad_id: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of token ids as int32 [B, length], padded on the right, and their mask, float32 [B, length]."""
    ids = np.full([len(rows), length], pad_id, np.int32)
    mask = np.zeros([len(rows), length], np.float32)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
        mask[number, : len(row)] = 1.0
    return ids, mask


class PromptSet:
    """The N prompts of a split and their continuations, as batches of an endless stream, reshuffled every epoch.

    `length` is P: what prompts are padded to.
    """

    def __init__(self, trajectories: Sequence[Trajectory], pad_id: int, length: int, seed: int):
        self._trajectories, self._pad_id, self.length, self._seed = trajectories, pad_id, length, seed
        self._column_names = sorted(set().union(*(trajectory.columns for trajectory in trajectories)))

    def __len__(self):
        return len(self._trajectories)

    def digest(self) -> str:
        """A short fingerprint of the prompts, their continuations and their order."""
        content = hashlib.sha256()
        for trajectory in self._trajectories:
            content.update(repr((list(trajectory.prompt), list(trajectory.continuation))).encode())
        return content.hexdigest()[:16]

    def batch(self, step: int, size: int, repeats: int = 1) -> Prompts:
        """The step-th batch [size, P] of the stream. It depends on the step alone, so that a run can be resumed.

        Each prompt is there `repeats` times in a row.
        """
        rows = self._rows(step, size // repeats)
        return pad_left([row.prompt for row in rows for _ in range(repeats)], self._pad_id, self.length)

    def columns(self, step: int, size: int, repeats: int = 1) -> Columns:
        """The columns of the data for each row of `batch(step, size, repeats)`; None where a record lacks one."""
        return self._columns([row for row in self._rows(step, size // repeats) for _ in range(repeats)])

    def continuations(self, step: int, size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `length` tokens of the continuation of each prompt of `batch(step, size)`.

        Returns: response_ids int32 [size, length], padded on the right, and response_mask float32 [size, length].
        """
        rows = [row.continuation[:length] for row in self._rows(step, size)]
        return pad_right(rows, self._pad_id, length)

    def sample(self, count: int) -> "PromptSet":
        """A fixed random choice of `count` prompts; all of them where there are fewer."""
        chosen = permutation(self._seed, "held-out", 0, len(self))[:count]
        return PromptSet([self._trajectories[i] for i in chosen], self._pad_id, self.length, self._seed)

    def padded_to(self, length: int) -> "PromptSet":
        """These prompts, padded to another length, which must be that of the longest one or more."""
        return PromptSet(self._trajectories, self._pad_id, length, self._seed)

    def batches(self, size: int) -> Iterator[tuple[Prompts, Columns]]:
        """All prompts in order, as Prompts of at most `size` rows, each with its columns."""
        for start in range(0, len(self), size):
            rows = self._trajectories[start : start + size]
            yield pad_left([row.prompt for row in rows], self._pad_id, self.length), self._columns(rows)

    def _columns(self, rows):
        return {name: [row.columns.get(name) for row in rows] for name in self._column_names}

    def _rows(self, step, size):
        indices = stream_indices(self._seed, "prompts", step * size, size, len(self))
        return [self._trajectories[i] for i in indices]

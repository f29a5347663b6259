"""Calls reward functions, checks what they return, and adds them up."""

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from tfppo.data.prompts import Prompts
from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError


@dataclass
class Batch:
    """A batch of B responses as reward functions see it: as texts and as tokens."""

    texts: list[str]  # the prompts
    responses: list[str]
    prompts: Prompts
    response_ids: np.ndarray  # [B, R]
    response_mask: np.ndarray  # [B, R]
    tokenizer: Tokenizer

    @cached_property
    def lengths(self) -> np.ndarray:
        """Real tokens of each response, the stop token included: [B]."""
        return self.response_mask.sum(axis=1).astype(int)

    @cached_property
    def tokens(self) -> list[list[str]]:
        """The text of every real token of each response; that of the stop token is empty."""
        rows = zip(self.response_ids, self.lengths, strict=True)
        return [[self.tokenizer.decode([token]) for token in ids[:length]] for ids, length in rows]


class Reward(Protocol):
    """What scores a batch of responses: a Python function or a model."""

    name: str

    def __call__(self, batch: Batch) -> np.ndarray:
        """Scores [B], or dense ones [B, R]."""
        ...


# (prompts, responses, and tokens where it asks for them) -> one number a response, or one list of numbers a response.
RewardFunction = Callable[..., Sequence[float] | Sequence[Sequence[float]]]


class TextReward:
    """A Python function (prompts, responses) -> scores, whose results are checked.

    A function with a parameter `tokens` also gets the text of every token of each response. It may return dense scores:
    for each response a list with one score for each token.
    """

    def __init__(self, name: str, function: RewardFunction):
        self.name, self._function = name, function
        self._wants_tokens = "tokens" in inspect.signature(function).parameters

    def __call__(self, batch: Batch) -> np.ndarray:
        """Scores [B], or dense ones [B, R].

        Raises: UserError where the function does not return one finite number a response, or one a token; it names the
            prompt and the response.
        """
        extra = {"tokens": batch.tokens} if self._wants_tokens else {}
        scores = self._function(batch.texts, batch.responses, **extra)
        try:
            rows = [np.asarray(row, np.float32) for row in scores]
        except (TypeError, ValueError) as error:
            raise UserError(f"reward {self.name} must return a list of numbers, not {scores!r:.200}") from error
        if len(rows) != len(batch.responses):
            raise UserError(
                f"reward {self.name} returned {len(rows)} scores for {len(batch.responses)} responses; "
                f"it must return one a response"
            )
        dense = any(row.ndim for row in rows)
        for row, prompt, response, length in zip(rows, batch.texts, batch.responses, batch.lengths, strict=True):
            if dense and row.shape != (length,):
                raise UserError(
                    f"reward {self.name} returned scores of shape {list(row.shape)} for the response {response!r} of "
                    f"{length} tokens; dense scores are one number a token, for every response"
                )
            if not np.isfinite(row).all():
                raise UserError(
                    f"reward {self.name} is {row} for prompt {prompt!r} and response {response!r}; it must be finite"
                )
        return _pad_right(rows, batch.response_mask.shape[1]) if dense else np.array(rows, np.float32)


def name_apart(rewards: Sequence[Reward]) -> None:
    """Numbers rewards that have the same name, from the second one on, so that each is logged separately."""
    seen: Counter[str] = Counter()
    for reward in rewards:
        name = reward.name
        seen[name] += 1
        if seen[name] > 1:
            reward.name = f"{name}_{seen[name]}"


def total_scores(
    rewards: Sequence[Reward], weights: Sequence[float], batch: Batch
) -> tuple[np.ndarray, dict[str, float]]:
    """The weighted sum of reward functions, and the mean of each.

    Returns: scores float32 [B], or [B, R] where a function gives dense ones (the others then stand at the last token);
        and {"reward/NAME": mean score of a response}.
    Raises: UserError as the functions do.
    """
    parts = [reward(batch) for reward in rewards]
    means = {}
    for reward, scores in zip(rewards, parts, strict=True):
        means[f"reward/{reward.name}"] = float(scores.reshape(len(scores), -1).sum(axis=1).mean())
    if any(scores.ndim == 2 for scores in parts):
        parts = [scores if scores.ndim == 2 else _at_last_token(scores, batch) for scores in parts]
    weighted = (weight * scores for weight, scores in zip(weights, parts, strict=True))
    return sum(weighted, start=np.zeros_like(parts[0])).astype(np.float32), means


def _pad_right(rows, length):
    return np.stack([np.pad(row, (0, length - len(row))) for row in rows])


def _at_last_token(scores, batch):
    dense = np.zeros(batch.response_mask.shape, np.float32)
    dense[np.arange(len(scores)), np.maximum(batch.lengths - 1, 0)] = scores
    return dense

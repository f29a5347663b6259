"""Python functions as rewards, and what several rewards say of one batch together."""

import asyncio
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
from tqdm import tqdm

from tfppo.errors import UserError
from tfppo.rewards.batch import Batch
from tfppo.rewards.calling import Overdue, Patience, persist
from tfppo.rewards.checking import checked_scores
from tfppo.rewards.failures import beginning, definition, place, row_of, told
from tfppo.rewards.signature import Signature


class Reward(Protocol):
    """What scores a batch of responses: a Python function or a model."""

    name: str

    def __call__(self, batch: Batch) -> np.ndarray:
        """Scores [B], or dense ones [B, R]."""
        ...


@runtime_checkable
class WaitingReward(Protocol):
    """A reward that others compute: it can be started, and waited for once everything else is done."""

    def start(self, batch: Batch) -> Callable[[], np.ndarray]:
        """Begins to score a batch. Returns: a function that waits for the scores."""
        ...


# What its parameters ask for (see Signature) -> one number a response, or one list of numbers a response.
RewardFunction = Callable[..., Sequence[float] | Sequence[Sequence[float]]]


class TextReward:
    """A Python function (prompts, responses, ...) -> scores; see `Signature` for what it may ask for.

    It may be an `async def`. It may return dense scores: for each response a list with one score for each token.

    Args: patience: how often it is called again where it fails, and how long it may take.
    Raises: UserError where the function takes no responses.
    """

    def __init__(self, name: str, function: RewardFunction, patience: Patience | None = None):
        self.name, self._function, self._patience = name, function, patience or Patience()
        self.signature = Signature(name, function)

    def __call__(self, batch: Batch) -> np.ndarray:
        """Scores [B], or dense ones [B, R].

        Raises: UserError where the function raises, takes too long or does not return one finite number a response, or
            one a token; it names the prompt and the response.
        """
        self.signature.arguments(batch)  # a column that is missing is not the function's failure

        def call():
            by_position, by_name = self.signature.arguments(batch)  # anew: it may have changed those of an earlier try
            scores: Any = self._function(*by_position, **by_name)
            if inspect.iscoroutine(scores):
                scores = asyncio.run(scores)
            return list(scores) if isinstance(scores, Iterator) else scores  # a generator runs here

        try:
            scores = persist(call, self._patience, announce=self._announce)
        except KeyboardInterrupt:
            raise
        except Overdue as error:
            raise UserError(
                f"reward {self.name} has not returned after reward.timeout {self._patience.timeout:g} s, "
                f"{beginning(batch)}; it is left behind. Raise reward.timeout, or limit what the function waits for"
            ) from error
        except BaseException as error:
            raise UserError(
                f"reward {self.name} raised {told(error)}{place(error, self._function)}, {row_of(error, batch)}; mend "
                f"the function, or let it be called again with reward.retries"
            ) from error
        try:
            return checked_scores(self.name, scores, batch)
        except UserError as error:
            at = definition(self._function)
            raise UserError(f"{error}; the function is at {at}" if at else str(error)) from error

    def _announce(self, error, seconds):
        line = f"reward {self.name}: {told(error)}{place(error, self._function)}; calling it again in {seconds:g} s"
        tqdm.write(line, file=sys.stderr)


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
    waiting: dict[int, Callable[[], np.ndarray]] = {
        number: reward.start(batch) for number, reward in enumerate(rewards) if isinstance(reward, WaitingReward)
    }
    calls: dict[int, Callable[[], np.ndarray]] = {
        number: partial(reward, batch) for number, reward in enumerate(rewards) if number not in waiting
    }
    # Those that compute here first, while the others are waited for.
    found = {number: call() for number, call in (*calls.items(), *waiting.items())}
    parts = [found[number] for number in range(len(rewards))]
    means = {}
    for reward, scores in zip(rewards, parts, strict=True):
        means[f"reward/{reward.name}"] = float(scores.reshape(len(scores), -1).sum(axis=1).mean())
    if any(scores.ndim == 2 for scores in parts):
        parts = [scores if scores.ndim == 2 else _at_last_token(scores, batch) for scores in parts]
    weighted = (weight * scores for weight, scores in zip(weights, parts, strict=True))
    return sum(weighted, start=np.zeros_like(parts[0])).astype(np.float32), means


def _at_last_token(scores, batch):
    dense = np.zeros(batch.response_mask.shape, np.float32)
    dense[np.arange(len(scores)), np.maximum(batch.lengths - 1, 0)] = scores
    return dense

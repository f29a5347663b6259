"""A batch of responses as reward functions see it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from tfppo.data.prompts import Prompts
from tfppo.data.tokenizer import Tokenizer


@dataclass
class Batch:
    """B responses: as texts and as tokens, with the columns of the data."""

    texts: list[str]  # the prompts
    responses: list[str]
    prompts: Prompts
    response_ids: np.ndarray  # [B, R]
    response_mask: np.ndarray  # [B, R]
    tokenizer: Tokenizer
    columns: Mapping[str, Sequence[object]] = field(default_factory=dict)  # {name: one value a response}

    @cached_property
    def lengths(self) -> np.ndarray:
        """Real tokens of each response, the stop token included: [B]."""
        return self.response_mask.sum(axis=1).astype(int)

    @cached_property
    def tokens(self) -> list[list[str]]:
        """The text of every real token of each response; that of the stop token is empty."""
        rows = zip(self.response_ids, self.lengths, strict=True)
        return [[self.tokenizer.decode([token]) for token in ids[:length]] for ids, length in rows]

    def quoted(self, row: int) -> str:
        """Prompt and response of a row for a message, each on one line and cut where it is long."""
        return f"prompt {self.texts[row]!r:.160} and response {self.responses[row]!r:.160}"

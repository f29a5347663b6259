"""A task: demonstrations that a language model learns from, and a reward."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfppo.config import Config, DataConfig, EvaluationConfig, LmConfig, ModelConfig, RewardConfig, SamplingConfig

Record = dict[str, str]  # prompt and response


class Task(NamedTuple):
    """What a user would bring; all other settings are the defaults."""

    name: str
    kind: str  # in a few words, for the table
    reward: str  # module:function
    demonstrations: Callable[[np.random.Generator], Iterable[Record]] | None  # None: the data has its own
    response_length: int
    max_prompt_tokens: int
    model: ModelConfig
    lm: LmConfig
    total_episodes: int

    def write_data(self, folder: Path) -> str:
        """The source of the data; demonstrations are written to a file of the folder, the same ones each time."""
        if self.demonstrations is None:
            return DataConfig().source
        path = folder / f"{self.name}.jsonl"
        records = self.demonstrations(np.random.default_rng(0))
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return str(path)

    def config(self, source: str) -> Config:
        """The settings of a run, those of PPO at their defaults."""
        config = Config(
            data=DataConfig(
                source=source,
                max_prompt_tokens=self.max_prompt_tokens,
                max_given_prompt_tokens=self.max_prompt_tokens,
            ),
            model=self.model,
            lm=self.lm,
            sampling=SamplingConfig(response_length=self.response_length),
            reward=RewardConfig(functions=(self.reward,)),
            evaluation=EvaluationConfig(num_prompts=512, batch_size=128, samples_every=0),
            checkpoint_every=10**6,
        )
        config.ppo.total_episodes = self.total_episodes
        return config


def byte_model(*, positions: int, width: int = 64, num_layers: int = 2) -> ModelConfig:
    """A small Transformer over bytes."""
    return ModelConfig(
        vocabulary_size=258,  # no merges: a character is a token
        num_layers=num_layers,
        num_heads=2,
        hidden_dim=width,
        intermediate_dim=4 * width,
        max_sequence_length=positions,
        dropout=0.0,
    )

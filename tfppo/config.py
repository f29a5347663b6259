"""Every setting of an experiment, typed. Defaults live here and nowhere else; `validate` names what does not fit.

A file in `configs/` returns a `Config`; a binary's `--config.section.field=value` assigns to one of its fields.
"""

import dataclasses
import json
from dataclasses import dataclass, field

from tfppo.errors import UserError


def require(condition: bool, name: str, value, remedy: str):
    """Raises UserError, naming field, value and remedy, unless the condition holds."""
    if not condition:
        raise UserError(f"{name} is {value!r}; {remedy}")


def require_positive(section: str, config, *names: str):
    """Every named field must be above 0."""
    for name in names:
        value = getattr(config, name)
        require(value > 0, f"{section}.{name}", value, "it must be above 0")


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Where texts and prompts come from."""

    source: str = "tfds:movie_snippets"  # tfds:NAME, or the path of a .txt or .jsonl file
    text_feature: str = "text"
    prompt_feature: str = "prompt"
    data_dir: str | None = None  # TFDS's folder; None: TFDS's own default
    min_prompt_tokens: int = 4  # a prompt cut from the start of a text has this many tokens at the least,
    max_prompt_tokens: int = 8  # and this many at the most; no prompt may be longer

    def validate(self):
        """Raises UserError for values that do not fit."""
        require(bool(self.source), "data.source", self.source, "name tfds:NAME or a .txt or .jsonl file")
        require_positive("data", self, "min_prompt_tokens", "max_prompt_tokens")
        require(
            self.min_prompt_tokens <= self.max_prompt_tokens,
            "data.min_prompt_tokens",
            self.min_prompt_tokens,
            f"it must be at most data.max_prompt_tokens {self.max_prompt_tokens}",
        )


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Sizes of the Transformer, in the terms of KerasHub."""

    vocabulary_size: int = 4096  # asked of the tokenizer's training; a small corpus may yield fewer
    num_layers: int = 4
    num_heads: int = 4
    hidden_dim: int = 256
    intermediate_dim: int = 1024
    max_sequence_length: int = 64
    dropout: float = 0.1  # in language-model training only; PPO never drops out

    def validate(self):
        """Raises UserError for sizes that make no Transformer."""
        require(
            self.vocabulary_size >= 258,
            "model.vocabulary_size",
            self.vocabulary_size,
            "it must be at least 258 (256 bytes and 2 special tokens)",
        )
        require_positive(
            "model", self, "num_layers", "num_heads", "hidden_dim", "intermediate_dim", "max_sequence_length"
        )
        require(
            self.hidden_dim % self.num_heads == 0,
            "model.num_heads",
            self.num_heads,
            f"it must divide model.hidden_dim {self.hidden_dim}",
        )
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "it must be at least 0 and below 1")


@dataclass(kw_only=True, slots=True)
class LmConfig:
    """Language-model training: next-token prediction, on responses only where the data has prompts."""

    num_steps: int = 600
    batch_size: int = 32  # sequences of model.max_sequence_length tokens
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    schedule: str = "cosine"  # or "linear"; both end at 0
    weight_decay: float = 0.1
    adam_beta2: float = 0.95
    max_grad_norm: float = 1.0  # 0: no clipping
    eval_every: int = 100  # steps between held-out perplexities
    patience: int = 3  # evaluations without improvement before training stops; 0: never
    dtype: str = "mixed_bfloat16"  # Keras dtype policy of the training run; the weights are float32 in either
    jit_compile: bool = False
    keep_checkpoints: int = 2

    def validate(self):
        """Raises UserError for values that do not fit."""
        require_positive("lm", self, "num_steps", "batch_size", "learning_rate", "eval_every", "keep_checkpoints")
        require(self.warmup_steps >= 0, "lm.warmup_steps", self.warmup_steps, "it must not be negative")
        require(
            self.warmup_steps < self.num_steps,
            "lm.warmup_steps",
            self.warmup_steps,
            f"it must be below lm.num_steps {self.num_steps}",
        )
        require(self.schedule in ("cosine", "linear"), "lm.schedule", self.schedule, "choose cosine or linear")
        require(self.max_grad_norm >= 0, "lm.max_grad_norm", self.max_grad_norm, "it must not be negative")
        require(self.patience >= 0, "lm.patience", self.patience, "it must not be negative")
        require(self.weight_decay >= 0, "lm.weight_decay", self.weight_decay, "it must not be negative")
        require(0 < self.adam_beta2 < 1, "lm.adam_beta2", self.adam_beta2, "it must be between 0 and 1")
        validate_dtype("lm.dtype", self.dtype)


@dataclass(kw_only=True, slots=True)
class SamplingConfig:
    """How responses are drawn."""

    response_length: int = 24
    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    stop_at_eos: bool = False  # whether EOS ends a response
    jit_compile: bool = True  # compile the sampling loop with XLA

    def validate(self):
        """Raises UserError for values that do not fit."""
        require_positive("sampling", self, "response_length")
        require(self.temperature >= 0, "sampling.temperature", self.temperature, "it must not be negative")
        require(self.top_k >= 0, "sampling.top_k", self.top_k, "use 0 for off or a positive number")
        require(0 < self.top_p <= 1, "sampling.top_p", self.top_p, "it must be above 0 and at most 1")


@dataclass(kw_only=True, slots=True)
class PpoConfig:
    """The algorithm (Schulman et al. 2017; Ziegler et al. 2019)."""

    total_episodes: int = 4096
    rollout_batch_size: int = 64  # episodes an iteration, over all replicas
    ppo_epochs: int = 4
    num_minibatches: int = 4
    accumulation_steps: int = 1  # parts that a minibatch is computed in, to save memory
    gamma: float = 1.0
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    value_clip_range: float | None = 0.2  # None: off
    value_coef: float = 0.1
    kl_coef: float = 0.05
    kl_target: float | None = None  # nats a response; None: kl_coef stays fixed
    kl_horizon: int = 10000  # episodes; the larger, the slower the coefficient follows
    whiten_rewards: bool = False
    whiten_advantages: bool = True
    learning_rate: float = 3e-4
    learning_rate_decay: bool = True  # linear to 0 over the run
    adam_epsilon: float = 1e-5
    max_grad_norm: float = 1.0  # 0: no clipping
    separate_critic: bool = False
    dtype: str = "float32"
    jit_compile: bool = True  # compile the gradient computation with XLA
    ratio_tolerance: float | None = None  # at a rollout's first minibatch; None: 1e-4 in float32, 0.2 otherwise

    def validate(self):
        """Raises UserError for values that do not fit."""
        require_positive(
            "ppo", self, "total_episodes", "rollout_batch_size", "ppo_epochs", "num_minibatches", "accumulation_steps"
        )
        require_positive("ppo", self, "learning_rate", "clip_range", "kl_horizon", "adam_epsilon")
        require(
            self.rollout_batch_size % self.num_minibatches == 0,
            "ppo.num_minibatches",
            self.num_minibatches,
            f"it must divide ppo.rollout_batch_size {self.rollout_batch_size}",
        )
        minibatch_size = self.rollout_batch_size // self.num_minibatches
        require(
            minibatch_size % self.accumulation_steps == 0,
            "ppo.accumulation_steps",
            self.accumulation_steps,
            f"it must divide the minibatch size {minibatch_size} (rollout_batch_size / num_minibatches)",
        )
        require(
            self.total_episodes >= self.rollout_batch_size,
            "ppo.total_episodes",
            self.total_episodes,
            f"it must be at least ppo.rollout_batch_size {self.rollout_batch_size}",
        )
        for name in ("gamma", "gae_lambda"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"ppo.{name}", value, "it must be between 0 and 1")
        for name in ("value_coef", "kl_coef", "max_grad_norm"):
            value = getattr(self, name)
            require(value >= 0, f"ppo.{name}", value, "it must not be negative")
        for name in ("value_clip_range", "kl_target", "ratio_tolerance"):
            value = getattr(self, name)
            require(value is None or value > 0, f"ppo.{name}", value, "it must be above 0, or None for off")
        require(
            not self.whiten_advantages or self.rollout_batch_size >= 2,
            "ppo.rollout_batch_size",
            self.rollout_batch_size,
            "whitening needs at least 2 episodes; raise it or set ppo.whiten_advantages=False",
        )
        require(
            not self.whiten_rewards or self.rollout_batch_size >= 8,
            "ppo.rollout_batch_size",
            self.rollout_batch_size,
            "whitening rewards needs at least 8 episodes; raise it or set ppo.whiten_rewards=False",
        )
        validate_dtype("ppo.dtype", self.dtype)


@dataclass(kw_only=True, slots=True)
class EvaluationConfig:
    """Evaluation on held-out prompts, and what a run shows of itself."""

    num_prompts: int = 256
    batch_size: int = 128
    samples_every: int = 16  # PPO iterations between sample tables; 0: none
    num_samples: int = 4  # rows of a sample table

    def validate(self):
        """Raises UserError for values that do not fit."""
        require_positive("evaluation", self, "num_prompts", "batch_size", "num_samples")
        require(self.samples_every >= 0, "evaluation.samples_every", self.samples_every, "it must not be negative")


@dataclass(kw_only=True, slots=True)
class Config:
    """One experiment."""

    seed: int = 0
    language_model: str = ""  # folder of the model that PPO starts from; "": WORKDIR/lm
    reward: str = "tfppo.rewards.vader:vader_sentiment"  # module:function, (prompts, responses) -> scores
    num_replicas: int = 0  # 0: every GPU, or one CPU; N: the first N GPUs, or N logical CPU devices
    checkpoint_every: int = 16  # PPO iterations between checkpoints
    keep_checkpoints: int = 2
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lm: LmConfig = field(default_factory=LmConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    ppo: PpoConfig = field(default_factory=PpoConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def validate(self):
        """Raises UserError, naming field, value and remedy, for anything that cannot work; returns itself."""
        require(0 <= self.seed < 2**31, "seed", self.seed, "it must be between 0 and 2**31 - 1")
        require(":" in self.reward, "reward", self.reward, "write module:function or path/file.py:function")
        require(self.checkpoint_every > 0, "checkpoint_every", self.checkpoint_every, "it must be above 0")
        require(self.num_replicas >= 0, "num_replicas", self.num_replicas, "use 0 for all GPUs or a positive number")
        require(self.keep_checkpoints > 0, "keep_checkpoints", self.keep_checkpoints, "it must be above 0")
        for name in ("data", "model", "lm", "sampling", "ppo", "evaluation"):
            getattr(self, name).validate()
        # The start token takes a position too.
        longest = 1 + self.data.max_prompt_tokens + self.sampling.response_length
        require(
            longest <= self.model.max_sequence_length,
            "model.max_sequence_length",
            self.model.max_sequence_length,
            f"a start token, data.max_prompt_tokens {self.data.max_prompt_tokens} and sampling.response_length "
            f"{self.sampling.response_length} need {longest} positions",
        )
        return self

    def to_json(self) -> str:
        """The whole configuration as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def validate_ppo_sampling(sampling: SamplingConfig):
    """Raises UserError where responses would not be drawn from the distribution that PPO optimises."""
    require(
        sampling.top_k == 0 and sampling.top_p == 1.0,
        "sampling.top_k, sampling.top_p",
        (sampling.top_k, sampling.top_p),
        "PPO needs 0 and 1: with a filter, responses come from another distribution than the one that is trained",
    )
    require(sampling.temperature > 0, "sampling.temperature", sampling.temperature, "PPO needs it above 0")


def validate_dtype(name: str, dtype: str):
    """Raises UserError for a dtype policy that tfppo does not run in."""
    require(dtype in ("float32", "mixed_bfloat16"), name, dtype, "choose float32 or mixed_bfloat16")

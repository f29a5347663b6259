"""Every setting of an experiment, with its type and default. `validate` reports values that do not work.

A file in `configs/` returns a `Config`; a binary's `--config.section.field=value` assigns to one of its fields.

The same command with other settings goes on with the run. Most settings are free to change then. What stands in
`fixed(...)` cannot change: a run keeps it. What stands in `state(...)` is where a run starts; its checkpoints know how
far it has come since, until the setting is changed. docs/runs.md says more.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from tfppo.config.choices import BEST_BY, CROSS_DEVICE_OPS, DEPENDENT, settings_to_let_go
from tfppo.config.data_validation import validate_data
from tfppo.config.ppo_validation import validate_ppo
from tfppo.config.resuming import fixed, state
from tfppo.config.reward_validation import validate_reward
from tfppo.config.validation import (
    require,
    require_one_of,
    require_positive,
    validate_dtype,
    validate_prompt_positions,
    validate_sizes,
)

# The default of settings that follow from `ppo.estimator` or others: they read as DEPENDENT of choices.py says.
DEPENDS: Any = None


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Where texts and prompts come from."""

    # tfds:NAME, or a file, a folder or a pattern of files: .jsonl, .json, .csv, .tsv, .parquet, .txt, also with .gz.
    # docs/data.md says what their records may hold.
    source: str = fixed("tfds:movie_snippets", by_content=True)
    text_feature: str = fixed("text")  # another name than the default is the field of texts (with prompts: responses)
    prompt_feature: str = fixed("prompt")  # another name than the default is the field of prompts
    data_dir: str | None = None  # where TFDS keeps its datasets; None: the default of TFDS
    # How chats become text: chatml, hh, alpaca, or a .json file of your own. "": the template that the model was
    # trained with, which is kept with it; chatml where there is none.
    chat_template: str = fixed("")
    min_prompt_tokens: int = fixed(4)  # fewest tokens of a prompt that is cut from the start of a text
    max_prompt_tokens: int = fixed(8)  # most tokens of a prompt that is cut from the start of a text
    # Most tokens of a prompt that the data gives. None: what the model's positions leave beside the response.
    max_given_prompt_tokens: int | None = fixed(None)
    long_prompts: str = fixed("drop")  # longer given prompts: leave them out, "refuse" them, or "cut" from the left

    def validate(self) -> None:
        """Raises UserError for values that do not fit."""
        validate_data(self)


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Sizes of the Transformer, in the terms of KerasHub."""

    vocabulary_size: int = fixed(4096)  # requested when the tokenizer is trained; a small corpus may yield fewer
    num_layers: int = fixed(4)  # Transformer blocks
    num_heads: int = fixed(4)  # attention heads; a divisor of hidden_dim
    hidden_dim: int = fixed(256)  # width of the residual stream
    intermediate_dim: int = fixed(1024)  # width within an MLP
    max_sequence_length: int = fixed(64)  # positions: start token, prompt and response together
    dropout: float = 0.1  # in language-model training only; PPO uses no dropout

    def validate(self) -> None:
        """Raises UserError for sizes that make no Transformer."""
        require(
            self.vocabulary_size >= 258,
            "model.vocabulary_size",
            self.vocabulary_size,
            "it must be at least 258 (256 bytes and 2 special tokens)",
        )
        validate_sizes(**dataclasses.asdict(self))


@dataclass(kw_only=True, slots=True)
class LmConfig:
    """Language-model training: next-token prediction, on responses only where the data has prompts."""

    num_steps: int = 600  # optimizer steps, at most
    batch_size: int = fixed(32)  # sequences of model.max_sequence_length tokens
    learning_rate: float = 2e-3  # at its peak, after the warm-up
    warmup_steps: int = 50  # steps in which the learning rate rises from 0
    schedule: str = "cosine"  # or "linear"; both decay to 0
    weight_decay: float = 0.1  # a step of AdamW shrinks weights by it times the learning rate
    adam_beta2: float = 0.95  # decay of the second moment
    max_grad_norm: float = 1.0  # 0: no clipping
    eval_every: int = 100  # steps between held-out perplexities
    patience: int = 3  # evaluations without improvement before training stops; 0: never
    dtype: str = "auto"  # Keras dtype policy; auto: mixed_bfloat16 where it is fast, else float32
    jit_compile: bool | None = None  # compile the gradients with XLA; None: on GPUs, there with all of the step
    keep_checkpoints: int = 2  # how many of the newest checkpoints stay

    def validate(self) -> None:
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
        validate_dtype("lm.dtype", self.dtype, auto=True)


@dataclass(kw_only=True, slots=True)
class SamplingConfig:
    """How responses are drawn."""

    response_length: int = 24  # most tokens of a response
    temperature: float = 1.0  # divides the logits; 0: always the likeliest token
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    # Whether EOS ends a response. None: yes, but for recipes that sample on (reward.truncate_at_eos, placement
    # last_position). See `Config.with_ends`.
    stop_at_eos: bool | None = None
    # Compile sampling and the reference model with XLA. None: yes, unless their dtype is faster without XLA; where PPO
    # samples without C++, it times both on the first batch and keeps the faster one.
    jit_compile: bool | None = None
    native: bool | None = None  # sample with C++ built for this CPU; None: where it can be built and is faster

    def for_readers(self) -> Self:
        """The same for text that is shown or served: it ends at its end, unless stop_at_eos says False."""
        return dataclasses.replace(self, stop_at_eos=self.stop_at_eos is not False)

    def validate(self) -> None:
        """Raises UserError for values that do not fit."""
        require_positive("sampling", self, "response_length")
        require(
            0 <= self.temperature < math.inf,
            "sampling.temperature",
            self.temperature,
            "it must be finite and not negative",
        )
        require(self.top_k >= 0, "sampling.top_k", self.top_k, "use 0 for off or a positive number")
        require(0 < self.top_p <= 1, "sampling.top_p", self.top_p, "it must be above 0 and at most 1")


@dataclass(kw_only=True, slots=True)
class RewardConfig:
    """Reward functions, and how their scores become per-token rewards."""

    # module:function or path/file.py:function, each (prompts, responses) -> scores; or likelihood:FOLDER, the summed
    # log-probability of the response under the language model in a folder (likelihood: alone, the reference); or
    # reward_model:FOLDER, the score of the reward model in a folder (reward_model: alone, WORKDIR/reward_model); or
    # https://host/path, a server that scores. See docs/rewards.md.
    functions: tuple[str, ...] = ("tfppo.rewards.vader:vader_sentiment",)
    weights: tuple[float, ...] = (1.0,)  # one for each function
    # How often what failed is called again, after waits of 1, 2, 4, ... up to 60 seconds. None: 0 for a function, 6 for
    # a URL.
    retries: int | None = None
    # Seconds that a call may take; a function then runs in a thread of its own. None: any for a function, 60 for a URL.
    timeout: float | None = None
    url_batch_size: int = 16  # most responses that are posted to a URL together
    url_concurrency: int = 4  # most posts to a URL at once
    url_token_variable: str | None = None  # environment variable with the token for a URL; None: no token
    placement: str = "last_token"  # or "after_last" (TRL), "last_position" (Ziegler et al. 2019)
    missing_stop_penalty: float | None = None  # for responses without EOS; None: no penalty
    missing_stop_mode: str = "subtract"  # subtract the penalty from the score, or "replace" the score by the penalty
    truncate_at_eos: bool = False  # reward functions see a response up to its first EOS, although sampling continues
    truncate_after: int = 0  # truncate_at_eos ignores an EOS among this many first tokens
    clip: float | None = None  # scores are clipped to [-clip, clip]; None: no clipping
    scale: float = 1.0  # factor of the scores
    normalize: bool = False  # scores by the running mean and standard deviation of all scores so far
    whiten: bool = False  # scale per-token rewards (KL penalty included) to variance 1; their mean stays

    def validate(self) -> None:
        """Raises UserError for values that do not fit."""
        validate_reward(self)


@dataclass(kw_only=True, slots=True)
class RewardModelConfig:
    """Training of a reward model on comparisons; the defaults are those of Ziegler et al. 2019."""

    # Files as in data.source, of comparisons: prompt, chosen, and rejected (a text or a list).
    source: str = fixed("", by_content=True)
    max_prompt_tokens: int = fixed(31)  # comparisons with a longer prompt are left out
    max_response_tokens: int = fixed(32)  # comparisons with a longer response, EOS included, are left out
    num_epochs: int = 1  # passes over the comparisons
    batch_size: int = fixed(32)  # comparisons
    learning_rate: float = 5e-5  # decays linearly to 0 over the run
    adam_epsilon: float = 1e-5  # in the TensorFlow form of Adam
    max_grad_norm: float = 0.0  # 0: no clipping
    eval_every: int = 100  # steps between held-out losses and accuracies
    keep_checkpoints: int = 2  # how many of the newest checkpoints stay
    # Which scores are normalised after training. "samples": responses of the language model, to mean 0 and standard
    # deviation 1. "demonstrations": the chosen responses of the data, to mean 0 (Huang et al. 2024). Or "none".
    normalize: str = "samples"
    normalize_samples: int = 256  # responses that "samples" draws

    def validate(self) -> None:
        """Raises UserError for values that do not fit."""
        require_positive("reward_model", self, "max_prompt_tokens", "max_response_tokens", "num_epochs", "batch_size")
        require_positive("reward_model", self, "learning_rate", "adam_epsilon", "eval_every", "keep_checkpoints")
        require(self.max_grad_norm >= 0, "reward_model.max_grad_norm", self.max_grad_norm, "it must not be negative")
        require_one_of("reward_model.normalize", self.normalize, ("samples", "demonstrations", "none"))
        require(
            self.normalize_samples >= 2,
            "reward_model.normalize_samples",
            self.normalize_samples,
            "a deviation needs at least 2",
        )


@dataclass(kw_only=True, slots=True)
class PpoConfig:
    """The algorithm (Schulman et al. 2017; Ziegler et al. 2019) and its variants."""

    total_episodes: int = 4096  # rounded down to whole iterations
    rollout_batch_size: int = fixed(64)  # episodes in an iteration, over all replicas
    trajectories: str = fixed("policy")  # sampled from the policy; or "dataset": texts of the data, teacher-forced
    target_score: float | None = None  # training ends when the mean score of an iteration reaches it; None: never
    ppo_epochs: int = 4  # passes over a rollout
    num_minibatches: int = 4  # optimizer steps in each pass
    accumulation_steps: int = 1  # micro-batches that a minibatch is split into, to save memory
    # Advantages
    # Or "monte_carlo" (return minus value); without a critic: "rloo", "grpo", "reinforce_pp". Comments below give the
    # defaults that belong to one of them; assigning another one resets what was chosen for the one before.
    estimator: str = "gae"
    group_size: int = fixed(DEPENDS)  # responses to each prompt, which rloo (4) and grpo (8) compare; otherwise 1
    gamma: float = 1.0  # discount of rewards, a token; 1: late ones count in full
    gae_lambda: float = 1.0  # from 0, which trusts the critic, to 1, which trusts the rewards alone
    critic_gae_lambda: float | None = None  # lambda for the targets of the critic; None: gae_lambda
    # To mean 0 and variance 1 over the tokens; of rloo and grpo, whose groups have means of their own, the scale alone.
    whiten_advantages: bool = DEPENDS  # True; for rloo and grpo False
    whiten_scope: str = "rollout"  # over which rewards and advantages are whitened; or "minibatch"
    whiten_unbiased: bool = False  # whitening divides the variance by n - 1 (TRL) instead of n
    # Losses
    clip_range: float = 0.2  # probability ratios beyond 1 - it and 1 + it get no gradient
    clip_range_high: float | None = None  # upper clip range; None: clip_range
    dual_clip: float | None = None  # upper bound of the loss where A < 0, in multiples of -A; None: off
    loss_aggregation: str = DEPENDS  # "token_mean", for grpo "sequence_mean"; or "sequence_sum"
    value_clip_range: float | None = 0.2  # None: off
    value_coef: float = DEPENDS  # weight of the critic's loss: 1; 0.1 for a shared one
    entropy_coef: float = 0.0  # weight of a bonus for entropy
    # KL to the reference
    kl_coef: float = state(DEPENDS)  # weight of the KL penalty in the reward: 0.02; for grpo 0
    kl_estimator: str = "k1"  # estimator of that penalty; or "k2", "k3", "abs"
    kl_loss_coef: float = DEPENDS  # weight of a KL term in the loss: 0; for grpo 0.04, if kl_coef is not given
    kl_loss_estimator: str = "k3"  # estimator of that term; or "k2"
    adaptive_kl_target: float | None = None  # target KL of a response, in nats; None: kl_coef stays fixed
    adaptive_kl_horizon: int = 10000  # in episodes; a larger horizon adapts kl_coef more slowly
    target_kl: float | None = None  # the update stops early when approx_kl exceeds it; None: never
    # Optimizer
    optimizer: str = fixed("adamw")  # the PyTorch form of Adam; or "adam": the TensorFlow form, as in the original
    learning_rate: float = DEPENDS  # at its peak: 2e-4; without a critic 1e-4
    critic_learning_rate: float | None = None  # of a separate critic, clipped by itself; None: 10 times learning_rate
    embedding_learning_rate: float | None = None  # of the policy's token and position embeddings; None: the same
    trainable_blocks: int | None = fixed(None)  # train so many top blocks, final norm and value head; None: all
    schedule: str = "linear"  # or "cosine"; both decay over the run; or "constant"
    schedule_floor: float = 0.0  # share of learning_rate at the end of the schedule
    warmup_iterations: int = 0  # iterations in which the learning rate rises from 0
    adam_beta1: float = 0.9  # decay of the first moment
    adam_beta2: float = 0.999  # decay of the second moment
    adam_epsilon: float = 1e-8  # in the denominator of Adam's step
    weight_decay: float = 0.0  # adamw only
    max_grad_norm: float = 1.0  # 0: no clipping
    critic_warmup_iterations: int = 0  # first iterations, in which only the critic learns
    ema_decay: float = fixed(0.0, of=bool)  # moving average of the policy's weights, one step an iteration; 0: off
    # Critic
    critic: str = fixed(DEPENDS)  # "separate": a trunk of its own; or "shared": a head on the policy's, or none
    critic_init: str = fixed("policy")  # a separate critic starts so; or from "scratch", or a reward model's folder
    value_head: str = fixed("linear")  # zero at the start; or "mlp" (trlx): a ReLU layer of twice the width
    # Running
    dtype: str = "float32"  # Keras dtype policy of the models
    # Of sampling and the reference. auto: update_dtype where C++ or a GPU computes them all, else dtype.
    rollout_dtype: str = "auto"
    update_dtype: str = "auto"  # auto: mixed_bfloat16 where it is faster, else dtype; weights are always float32
    jit_compile: bool | None = None  # compile the gradient computation with XLA; None: where it is faster
    # Update with C++ built for this CPU; None: in mixed_bfloat16, where it can be built and jit_compile is not True.
    native: bool | None = None
    gradient_checkpointing: bool = False  # recompute each block in the backward pass: less memory, more time
    # Error of the probability ratio that is allowed at the first minibatch of a rollout. None: what rounding explains,
    # 1e-3 in float32, 0.065 in TensorFloat-32, 0.28 in bfloat16.
    ratio_tolerance: float | None = None

    if not TYPE_CHECKING:  # for which any misspelt name would be a setting

        def __getattribute__(self, name):
            """A setting; one that is not given as DEPENDENT says, from what the others are by now."""
            value = object.__getattribute__(self, name)
            return DEPENDENT[name](self, name) if value is None and name in DEPENDENT else value

        def __setattr__(self, name, value):
            """Assigns a setting; another estimator resets what was chosen for the one before."""
            if name == "estimator":
                let_go = settings_to_let_go(getattr(self, name, value), value)
                for other in dataclasses.fields(self):
                    if other.name in let_go:
                        object.__setattr__(self, other.name, other.default)
            object.__setattr__(self, name, value)

    def given(self, name: str) -> Any:
        """What a setting was given as; None where it was not."""
        return object.__getattribute__(self, name)

    def validate(self) -> None:
        """Raises UserError for values that do not fit."""
        validate_ppo(self)

    def critic_folder(self) -> str | None:
        """The folder of the reward model that the critic starts from; None where it starts otherwise."""
        return None if self.critic_init in ("policy", "scratch") else self.critic_init

    def episodes_whitened(self) -> int:
        """How many episodes are whitened together."""
        return self.rollout_batch_size // (self.num_minibatches if self.whiten_scope == "minibatch" else 1)


@dataclass(kw_only=True, slots=True)
class EvaluationConfig:
    """Evaluation on held-out prompts, during PPO and after it, and sample tables during training."""

    num_prompts: int = 256  # held-out prompts, at most, of the evaluation of a finished model
    batch_size: int = 128  # prompts that are continued at a time
    every: int = 16  # PPO iterations between evaluations in training, which are also at its start and end; 0: none
    # Held-out prompts of an evaluation in training. None: ppo.rollout_batch_size, one batch.
    num_prompts_in_training: int | None = None
    # By which figure of these evaluations the best policy is kept, as WORKDIR/policy_best: "rlhf_reward", the score
    # minus the KL times ppo.kl_coef and ppo.kl_loss_coef, or "score".
    best_by: str = "rlhf_reward"
    samples_every: int = 16  # PPO iterations between sample tables; 0: no tables
    num_samples: int = 4  # rows of a sample table

    def validate(self) -> None:
        """Raises UserError for values that do not fit."""
        require_positive("evaluation", self, "batch_size", "num_samples")
        require(self.num_prompts >= 2, "evaluation.num_prompts", self.num_prompts, "a standard error needs at least 2")
        require(self.every >= 0, "evaluation.every", self.every, "use 0 for off or a positive number of iterations")
        require(
            self.num_prompts_in_training is None or self.num_prompts_in_training > 0,
            "evaluation.num_prompts_in_training",
            self.num_prompts_in_training,
            "it must be above 0; None takes one batch, and evaluation.every=0 switches these evaluations off",
        )
        require_one_of("evaluation.best_by", self.best_by, BEST_BY)
        require(self.samples_every >= 0, "evaluation.samples_every", self.samples_every, "it must not be negative")


@dataclass(kw_only=True, slots=True)
class Config:
    """One experiment."""

    seed: int = fixed(0)  # all randomness follows from it
    # Folder of the model to start from; "": PPO takes WORKDIR/lm, LM training starts from scratch.
    language_model: str = fixed("", by_content=True)
    num_replicas: int = 0  # 0: every GPU, or one CPU, of each machine; N: the first N GPUs, or N logical CPU devices
    cross_device_ops: str = "auto"  # how sums over replicas are made: docs/distributed.md says when to change it
    # float32 products on GPUs in TensorFloat-32: several times as fast, with 10 bits of mantissa in place of 23.
    tensorfloat32: bool = False
    deterministic: bool = False  # on GPUs too the same command gives the same bits, more slowly
    # Programs that XLA has compiled are kept on the disk for the next start. Tried on CPUs only.
    compilation_cache: bool = False
    profile_steps: int = 0  # steps (PPO: iterations) to trace for TensorBoard's profiler, from the second one on
    checkpoint_every: int = 16  # PPO iterations between checkpoints
    keep_checkpoints: int = 2  # how many of the newest checkpoints stay
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lm: LmConfig = field(default_factory=LmConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    reward_model: RewardModelConfig = field(default_factory=RewardModelConfig)
    ppo: PpoConfig = field(default_factory=PpoConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def validate(self) -> Self:
        """Raises UserError, naming field, value and remedy, for anything that cannot work; returns itself."""
        require(0 <= self.seed < 2**31, "seed", self.seed, "it must be between 0 and 2**31 - 1")
        require(self.checkpoint_every > 0, "checkpoint_every", self.checkpoint_every, "it must be above 0")
        require(self.num_replicas >= 0, "num_replicas", self.num_replicas, "use 0 for all GPUs or a positive number")
        require_one_of("cross_device_ops", self.cross_device_ops, CROSS_DEVICE_OPS)
        require(self.keep_checkpoints > 0, "keep_checkpoints", self.keep_checkpoints, "it must be above 0")
        require(self.profile_steps >= 0, "profile_steps", self.profile_steps, "use 0 for none or a positive number")
        for name in ("data", "model", "lm", "sampling", "reward", "reward_model", "ppo", "evaluation"):
            getattr(self, name).validate()
        validate_prompt_positions(self, self.model.max_sequence_length)
        return self

    def with_ends(self) -> Self:
        """The same configuration with sampling.stop_at_eos decided: True or False where it was None."""
        if self.sampling.stop_at_eos is not None:
            return self
        stops = not (self.reward.truncate_at_eos or self.reward.placement == "last_position")
        return dataclasses.replace(self, sampling=dataclasses.replace(self.sampling, stop_at_eos=stops))

    def to_json(self) -> str:
        """The whole configuration as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

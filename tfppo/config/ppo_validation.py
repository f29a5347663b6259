"""Rules for the settings of PPO, for each value and for their combinations."""

from typing import TYPE_CHECKING

from tfppo.config.choices import (
    AGGREGATIONS,
    CRITIC_FREE,
    ESTIMATORS,
    GROUPED,
    KL_ESTIMATORS,
)
from tfppo.config.validation import require, require_one_of, require_positive, validate_dtype

if TYPE_CHECKING:  # settings.py imports this module
    from tfppo.config.settings import PpoConfig

# What None stands for.
_ABOVE_0_OR_NONE = {
    "value_clip_range": "off",
    "clip_range_high": "ppo.clip_range",
    "adaptive_kl_target": "off",
    "target_kl": "off",
    "ratio_tolerance": "what rounding explains",
}


def validate_ppo(ppo: "PpoConfig") -> None:
    """Raises UserError for values of a PpoConfig that do not fit."""
    require_one_of("ppo.estimator", ppo.estimator, ESTIMATORS)
    require_positive(
        "ppo", ppo, "total_episodes", "rollout_batch_size", "ppo_epochs", "num_minibatches", "accumulation_steps"
    )
    require_positive("ppo", ppo, "learning_rate", "clip_range", "adaptive_kl_horizon", "adam_epsilon", "group_size")
    require_one_of("ppo.trajectories", ppo.trajectories, ("policy", "dataset"))
    require_one_of("ppo.whiten_scope", ppo.whiten_scope, ("rollout", "minibatch"))
    require_one_of("ppo.loss_aggregation", ppo.loss_aggregation, AGGREGATIONS)
    require_one_of("ppo.kl_estimator", ppo.kl_estimator, KL_ESTIMATORS)
    require_one_of("ppo.optimizer", ppo.optimizer, ("adam", "adamw"))
    require_one_of("ppo.schedule", ppo.schedule, ("linear", "cosine", "constant"))
    require_one_of("ppo.critic", ppo.critic, ("shared", "separate"))
    require_one_of("ppo.value_head", ppo.value_head, ("linear", "mlp"))
    require(
        ppo.kl_loss_estimator in ("k2", "k3"),
        "ppo.kl_loss_estimator",
        ppo.kl_loss_estimator,
        "choose k2 or k3: the expected gradient of k1 is zero, and that of abs is not the KL's",
    )
    _validate_batches(ppo)
    _validate_ranges(ppo)
    _validate_combinations(ppo)
    validate_dtype("ppo.dtype", ppo.dtype)
    validate_dtype("ppo.rollout_dtype", ppo.rollout_dtype, auto=True)
    validate_dtype("ppo.update_dtype", ppo.update_dtype, auto=True)
    if ppo.native:
        required = dict(update_dtype="mixed_bfloat16", trainable_blocks=None, gradient_checkpointing=False)
        for name, value in required.items():
            require(
                getattr(ppo, name) == value,
                f"ppo.{name}",
                getattr(ppo, name),
                f"ppo.native is True, which needs {value}; set it so, or ppo.native to None",
            )
        require(
            not ppo.jit_compile,
            "ppo.jit_compile",
            ppo.jit_compile,
            "XLA cannot compile what ppo.native insists on; use None or False, or set ppo.native to None",
        )


def _validate_batches(ppo: "PpoConfig") -> None:
    require(
        ppo.rollout_batch_size % ppo.num_minibatches == 0,
        "ppo.num_minibatches",
        ppo.num_minibatches,
        f"it must divide ppo.rollout_batch_size {ppo.rollout_batch_size}",
    )
    minibatch_size = ppo.rollout_batch_size // ppo.num_minibatches
    require(
        minibatch_size % ppo.accumulation_steps == 0,
        "ppo.accumulation_steps",
        ppo.accumulation_steps,
        f"it must divide the minibatch size {minibatch_size} (rollout_batch_size / num_minibatches)",
    )
    require(
        ppo.total_episodes >= ppo.rollout_batch_size,
        "ppo.total_episodes",
        ppo.total_episodes,
        f"it must be at least ppo.rollout_batch_size {ppo.rollout_batch_size}",
    )
    require(
        ppo.rollout_batch_size % ppo.group_size == 0,
        "ppo.group_size",
        ppo.group_size,
        f"it must divide ppo.rollout_batch_size {ppo.rollout_batch_size}",
    )
    require(
        not ppo.whiten_advantages or ppo.episodes_whitened() >= 2,
        "ppo.rollout_batch_size",
        ppo.rollout_batch_size,
        f"whitening needs at least 2 episodes in a {ppo.whiten_scope}; raise it or set ppo.whiten_advantages=False",
    )
    require(
        ppo.whiten_scope == "rollout" or ppo.group_size == 1,
        "ppo.whiten_scope",
        ppo.whiten_scope,
        f"a minibatch has no whole groups of ppo.group_size {ppo.group_size}; use rollout",
    )


def _validate_ranges(ppo: "PpoConfig") -> None:
    for name in ("gamma", "gae_lambda", "critic_gae_lambda", "schedule_floor"):
        value = getattr(ppo, name)
        require(value is None or 0 <= value <= 1, f"ppo.{name}", value, "it must be between 0 and 1")
    for name in ("adam_beta1", "adam_beta2", "ema_decay"):
        value = getattr(ppo, name)
        require(0 <= value < 1, f"ppo.{name}", value, "it must be at least 0 and below 1")
    for name in (
        "value_coef",
        "entropy_coef",
        "kl_coef",
        "kl_loss_coef",
        "max_grad_norm",
        "weight_decay",
        "warmup_iterations",
        "critic_warmup_iterations",
    ):
        value = getattr(ppo, name)
        require(value >= 0, f"ppo.{name}", value, "it must not be negative")
    for name, without in _ABOVE_0_OR_NONE.items():
        value = getattr(ppo, name)
        require(value is None or value > 0, f"ppo.{name}", value, f"it must be above 0, or None for {without}")
    require(
        ppo.trainable_blocks is None or ppo.trainable_blocks >= 1,
        "ppo.trainable_blocks",
        ppo.trainable_blocks,
        "it must be at least 1, or None to train everything",
    )
    require(
        ppo.clip_range_high is None or ppo.clip_range_high >= ppo.clip_range,
        "ppo.clip_range_high",
        ppo.clip_range_high,
        f"it must be at least ppo.clip_range {ppo.clip_range}",
    )
    require(
        ppo.dual_clip is None or ppo.dual_clip > 1 + ppo.clip_range,
        "ppo.dual_clip",
        ppo.dual_clip,
        f"it must be above 1 + ppo.clip_range {ppo.clip_range}, or None for off",
    )


def _validate_combinations(ppo: "PpoConfig") -> None:
    critic_free = ppo.estimator in CRITIC_FREE
    require(
        ppo.estimator not in GROUPED or ppo.group_size >= 2,
        "ppo.group_size",
        ppo.group_size,
        f"ppo.estimator {ppo.estimator} compares the responses to one prompt; leave it out, or use at least 2",
    )
    require(
        not critic_free or ppo.value_coef == 0,
        "ppo.value_coef",
        ppo.value_coef,
        f"ppo.estimator {ppo.estimator} has no critic; leave it out, or use 0",
    )
    require(
        not critic_free or ppo.critic == "shared",
        "ppo.critic",
        ppo.critic,
        f"ppo.estimator {ppo.estimator} has no critic; use shared",
    )
    require(
        not critic_free or ppo.value_head == "linear",
        "ppo.value_head",
        ppo.value_head,
        f"ppo.estimator {ppo.estimator} has no critic; use linear",
    )
    require(
        not critic_free or ppo.critic_warmup_iterations == 0,
        "ppo.critic_warmup_iterations",
        ppo.critic_warmup_iterations,
        f"ppo.estimator {ppo.estimator} has no critic; use 0",
    )
    require(
        ppo.critic_warmup_iterations == 0 or ppo.value_coef > 0,
        "ppo.value_coef",
        ppo.value_coef,
        "critic warm-up trains nothing with 0; raise it or set ppo.critic_warmup_iterations=0",
    )
    require(
        ppo.estimator != "reinforce_pp" or ppo.whiten_advantages,
        "ppo.whiten_advantages",
        ppo.whiten_advantages,
        "reinforce_pp is whitened returns; use True",
    )
    require(
        ppo.critic_gae_lambda is None or ppo.estimator == "gae",
        "ppo.critic_gae_lambda",
        ppo.critic_gae_lambda,
        f"ppo.estimator {ppo.estimator} has no lambda; use None",
    )
    require(
        ppo.weight_decay == 0 or ppo.optimizer == "adamw",
        "ppo.weight_decay",
        ppo.weight_decay,
        f"ppo.optimizer {ppo.optimizer} has none; use 0 or ppo.optimizer=adamw",
    )
    require(
        ppo.adaptive_kl_target is None or ppo.kl_coef > 0,
        "ppo.kl_coef",
        ppo.kl_coef,
        "an adaptive coefficient is multiplied, and 0 stays 0; start above 0",
    )
    require(
        ppo.critic_learning_rate is None or (ppo.critic_learning_rate > 0 and ppo.critic == "separate"),
        "ppo.critic_learning_rate",
        ppo.critic_learning_rate,
        "it must be above 0, and only a critic of its own (ppo.critic=separate) can have one",
    )
    require(
        ppo.embedding_learning_rate is None or ppo.embedding_learning_rate >= 0,
        "ppo.embedding_learning_rate",
        ppo.embedding_learning_rate,
        "it must not be negative; use 0 to keep the embeddings as they are, or None for ppo.learning_rate",
    )
    require(
        ppo.critic_init == "policy" or ppo.critic == "separate",
        "ppo.critic_init",
        ppo.critic_init,
        "a critic on the policy's trunk starts from that trunk; use policy or ppo.critic=separate",
    )
    require(
        ppo.critic_folder() is None or ppo.value_head == "linear",
        "ppo.value_head",
        ppo.value_head,
        f"the reward model of ppo.critic_init {ppo.critic_init} has a linear head; use linear, or "
        f"ppo.critic_init=policy",
    )
    require(
        critic_free or ppo.value_coef > 0 or (ppo.value_head == "linear" and ppo.critic_init != "scratch"),
        "ppo.value_coef",
        ppo.value_coef,
        f"with 0 a critic of ppo.value_head {ppo.value_head} and ppo.critic_init {ppo.critic_init} never learns, and "
        f"its first values are noise; raise it",
    )
    require(
        ppo.critic_init != "scratch" or ppo.trainable_blocks is None,
        "ppo.trainable_blocks",
        ppo.trainable_blocks,
        "the lower blocks of a critic from scratch would never learn; use None, or ppo.critic_init=policy",
    )

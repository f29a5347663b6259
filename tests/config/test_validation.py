"""Every rule of the configuration names field, value and remedy."""

import dataclasses
import math

import pytest
from config_cases import configured

from tfppo.config import Config
from tfppo.config.validation import validate_for_ppo, validate_positions, validate_sizes
from tfppo.errors import UserError


def test_defaults_are_valid():
    validate_for_ppo(Config().validate())


CRITIC_FREE = {"ppo__estimator": "reinforce_pp", "ppo__value_coef": 0.0}
SHARED = {"ppo__critic": "shared"}
NATIVE_UPDATE = {"ppo__native": True, "ppo__update_dtype": "mixed_bfloat16"}
# settings, the field that is named, its value as shown, and a word of the remedy
BAD = [
    ({"seed": -1}, "seed", "-1", "between 0 and"),
    ({"seed": 2**31}, "seed", "2147483648", "between 0 and"),
    ({"reward__functions": ()}, "reward.functions", "()", "at least one"),
    ({"reward__functions": ("vader",)}, "reward.functions", "'vader'", "module:function"),
    ({"reward__weights": (1.0, 2.0)}, "reward.weights", "(1.0, 2.0)", "one weight for each of the 1 functions"),
    ({"reward__weights": ("a",)}, "reward.weights", "('a',)", "each must be a finite number"),
    ({"reward__weights": (None,)}, "reward.weights", "(None,)", "each must be a finite number"),
    ({"reward__weights": (math.inf,)}, "reward.weights", "(inf,)", "each must be a finite number"),
    ({"reward__scale": math.inf}, "reward.scale", "inf", "finite"),
    ({"reward__missing_stop_penalty": math.nan}, "reward.missing_stop_penalty", "nan", "finite, or None"),
    ({"sampling__temperature": math.inf}, "sampling.temperature", "inf", "finite"),
    ({"reward__functions": ("a:b", "c:d")}, "reward.weights", "(1.0,)", "one weight for each of the 2 functions"),
    ({"reward__functions": ("https:///score",)}, "reward.functions", "'https:///score'", "write https://host/path"),
    ({"reward__functions": ("http://host:x/",)}, "reward.functions", "'http://host:x/'", "write https://host/path"),
    (
        {"reward__functions": ("http://host/score",), "reward__url_token_variable": "TOKEN"},
        "reward.functions",
        "'http://host/score'",
        "over https only",
    ),
    ({"reward__url_batch_size": 0}, "reward.url_batch_size", "0", "above 0"),
    ({"reward__url_concurrency": 0}, "reward.url_concurrency", "0", "above 0"),
    ({"reward__retries": -1}, "reward.retries", "-1", "negative"),
    ({"reward__timeout": 0.0}, "reward.timeout", "0.0", "above 0"),
    ({"reward__timeout": math.inf}, "reward.timeout", "inf", "below a million seconds"),
    ({"reward__timeout": math.nan}, "reward.timeout", "nan", "below a million seconds"),
    ({"reward__placement": "first"}, "reward.placement", "'first'", "last_token, after_last, last_position"),
    ({"reward__missing_stop_mode": "add"}, "reward.missing_stop_mode", "'add'", "subtract, replace"),
    ({"reward__clip": 0.0}, "reward.clip", "0.0", "above 0, or None for off"),
    ({"reward__scale": 0.0}, "reward.scale", "0.0", "above 0"),
    ({"reward__truncate_after": -1}, "reward.truncate_after", "-1", "negative"),
    ({"reward__truncate_after": 3}, "reward.truncate_after", "3", "set that or use 0"),
    ({"reward_model__max_prompt_tokens": 0}, "reward_model.max_prompt_tokens", "0", "above 0"),
    ({"reward_model__max_response_tokens": 0}, "reward_model.max_response_tokens", "0", "above 0"),
    ({"reward_model__num_epochs": 0}, "reward_model.num_epochs", "0", "above 0"),
    ({"reward_model__batch_size": 0}, "reward_model.batch_size", "0", "above 0"),
    ({"reward_model__learning_rate": 0.0}, "reward_model.learning_rate", "0.0", "above 0"),
    ({"reward_model__adam_epsilon": 0.0}, "reward_model.adam_epsilon", "0.0", "above 0"),
    ({"reward_model__max_grad_norm": -1.0}, "reward_model.max_grad_norm", "-1.0", "negative"),
    ({"reward_model__eval_every": 0}, "reward_model.eval_every", "0", "above 0"),
    ({"reward_model__keep_checkpoints": 0}, "reward_model.keep_checkpoints", "0", "above 0"),
    ({"reward_model__normalize": "all"}, "reward_model.normalize", "'all'", "samples, demonstrations, none"),
    ({"reward_model__normalize_samples": 1}, "reward_model.normalize_samples", "1", "at least 2"),
    ({"checkpoint_every": 0}, "checkpoint_every", "0", "above 0"),
    ({"keep_checkpoints": 0}, "keep_checkpoints", "0", "above 0"),
    ({"num_replicas": -1}, "num_replicas", "-1", "positive number"),
    ({"cross_device_ops": "ring"}, "cross_device_ops", "'ring'", "hierarchical_copy"),
    ({"profile_steps": -1}, "profile_steps", "-1", "0 for none"),
    ({"data__source": ""}, "data.source", "''", ".jsonl"),
    ({"data__min_prompt_tokens": 0}, "data.min_prompt_tokens", "0", "above 0"),
    ({"data__max_prompt_tokens": 0}, "data.max_prompt_tokens", "0", "above 0"),
    ({"data__max_given_prompt_tokens": 0}, "data.max_given_prompt_tokens", "0", "above 0, or None"),
    ({"data__max_given_prompt_tokens": 60}, "model.max_sequence_length", "64", "data.max_given_prompt_tokens 60 and"),
    ({"data__long_prompts": "shorten"}, "data.long_prompts", "'shorten'", "choose one of refuse, drop, cut"),
    ({"data__chat_template": "llama"}, "data.chat_template", "'llama'", "choose one of chatml, hh, alpaca, or name"),
    ({"data__min_prompt_tokens": 9}, "data.min_prompt_tokens", "9", "at most data.max_prompt_tokens 8"),
    ({"model__vocabulary_size": 257}, "model.vocabulary_size", "257", "at least 258"),
    ({"model__num_layers": 0}, "model.num_layers", "0", "above 0"),
    ({"model__num_heads": 0}, "model.num_heads", "0", "above 0"),
    ({"model__num_heads": 3}, "model.num_heads", "3", "divide model.hidden_dim 256"),
    ({"model__hidden_dim": 0}, "model.hidden_dim", "0", "above 0"),
    ({"model__intermediate_dim": 0}, "model.intermediate_dim", "0", "above 0"),
    ({"model__max_sequence_length": 0}, "model.max_sequence_length", "0", "above 0"),
    ({"model__dropout": 1.0}, "model.dropout", "1.0", "below 1"),
    ({"model__dropout": -0.1}, "model.dropout", "-0.1", "at least 0"),
    ({"lm__num_steps": 0}, "lm.num_steps", "0", "above 0"),
    ({"lm__batch_size": 0}, "lm.batch_size", "0", "above 0"),
    ({"lm__learning_rate": 0.0}, "lm.learning_rate", "0.0", "above 0"),
    ({"lm__learning_rate": math.nan}, "lm.learning_rate", "nan", "above 0"),
    ({"lm__eval_every": 0}, "lm.eval_every", "0", "above 0"),
    ({"lm__keep_checkpoints": 0}, "lm.keep_checkpoints", "0", "above 0"),
    ({"lm__warmup_steps": -1}, "lm.warmup_steps", "-1", "negative"),
    ({"lm__warmup_steps": 600}, "lm.warmup_steps", "600", "below lm.num_steps 600"),
    ({"lm__schedule": "step"}, "lm.schedule", "'step'", "cosine or linear"),
    ({"lm__max_grad_norm": -1.0}, "lm.max_grad_norm", "-1.0", "negative"),
    ({"lm__patience": -1}, "lm.patience", "-1", "negative"),
    ({"lm__weight_decay": -0.1}, "lm.weight_decay", "-0.1", "negative"),
    ({"lm__adam_beta2": 1.0}, "lm.adam_beta2", "1.0", "between 0 and 1"),
    ({"lm__dtype": "float16"}, "lm.dtype", "'float16'", "float32, mixed_bfloat16"),
    ({"sampling__response_length": 0}, "sampling.response_length", "0", "above 0"),
    ({"sampling__temperature": -1.0}, "sampling.temperature", "-1.0", "negative"),
    ({"sampling__top_k": -1}, "sampling.top_k", "-1", "0 for off"),
    ({"sampling__top_p": 0.0}, "sampling.top_p", "0.0", "above 0"),
    ({"sampling__top_p": 1.5}, "sampling.top_p", "1.5", "at most 1"),
    ({"ppo__total_episodes": 63}, "ppo.total_episodes", "63", "at least ppo.rollout_batch_size 64"),
    ({"ppo__rollout_batch_size": 0}, "ppo.rollout_batch_size", "0", "above 0"),
    ({"ppo__ppo_epochs": 0}, "ppo.ppo_epochs", "0", "above 0"),
    ({"ppo__num_minibatches": 0}, "ppo.num_minibatches", "0", "above 0"),
    ({"ppo__num_minibatches": 5}, "ppo.num_minibatches", "5", "divide ppo.rollout_batch_size 64"),
    ({"ppo__accumulation_steps": 0}, "ppo.accumulation_steps", "0", "above 0"),
    ({"ppo__accumulation_steps": 3}, "ppo.accumulation_steps", "3", "divide the minibatch size 16"),
    ({"ppo__learning_rate": 0.0}, "ppo.learning_rate", "0.0", "above 0"),
    ({"ppo__clip_range": 0.0}, "ppo.clip_range", "0.0", "above 0"),
    ({"ppo__adaptive_kl_horizon": 0}, "ppo.adaptive_kl_horizon", "0", "above 0"),
    ({"ppo__group_size": 0}, "ppo.group_size", "0", "above 0"),
    ({"ppo__group_size": 3}, "ppo.group_size", "3", "divide ppo.rollout_batch_size 64"),
    ({"ppo__trajectories": "both"}, "ppo.trajectories", "'both'", "policy, dataset"),
    ({"ppo__estimator": "td"}, "ppo.estimator", "'td'", "gae, monte_carlo, rloo, grpo, reinforce_pp"),
    ({"ppo__whiten_scope": "replica"}, "ppo.whiten_scope", "'replica'", "rollout, minibatch"),
    (
        {"ppo__whiten_scope": "minibatch", "ppo__group_size": 2},
        "ppo.whiten_scope",
        "'minibatch'",
        "no whole groups of ppo.group_size 2; use rollout",
    ),
    (
        {"ppo__whiten_scope": "minibatch", "ppo__num_minibatches": 64},
        "ppo.rollout_batch_size",
        "64",
        "at least 2 episodes in a minibatch",
    ),
    ({"ppo__loss_aggregation": "mean"}, "ppo.loss_aggregation", "'mean'", "token_mean, sequence_mean, sequence_sum"),
    ({"ppo__kl_estimator": "k4"}, "ppo.kl_estimator", "'k4'", "k1, k2, k3, abs"),
    ({"ppo__kl_loss_estimator": "k1"}, "ppo.kl_loss_estimator", "'k1'", "choose k2 or k3"),
    ({"ppo__kl_loss_estimator": "abs"}, "ppo.kl_loss_estimator", "'abs'", "choose k2 or k3"),
    ({"ppo__optimizer": "sgd"}, "ppo.optimizer", "'sgd'", "adam, adamw"),
    ({"ppo__schedule": "step"}, "ppo.schedule", "'step'", "linear, cosine, constant"),
    ({"ppo__critic": "none"}, "ppo.critic", "'none'", "shared, separate"),
    ({"ppo__critic_gae_lambda": 1.1}, "ppo.critic_gae_lambda", "1.1", "between 0 and 1"),
    ({"ppo__schedule_floor": 1.1}, "ppo.schedule_floor", "1.1", "between 0 and 1"),
    ({"ppo__adam_beta1": 1.0}, "ppo.adam_beta1", "1.0", "below 1"),
    ({"ppo__adam_beta2": -0.1}, "ppo.adam_beta2", "-0.1", "below 1"),
    ({"ppo__ema_decay": 1.0}, "ppo.ema_decay", "1.0", "below 1"),
    ({"ppo__entropy_coef": -0.1}, "ppo.entropy_coef", "-0.1", "negative"),
    ({"ppo__kl_loss_coef": -0.1}, "ppo.kl_loss_coef", "-0.1", "negative"),
    ({"ppo__weight_decay": -0.1}, "ppo.weight_decay", "-0.1", "negative"),
    ({"ppo__warmup_iterations": -1}, "ppo.warmup_iterations", "-1", "negative"),
    ({"ppo__critic_warmup_iterations": -1}, "ppo.critic_warmup_iterations", "-1", "negative"),
    ({"ppo__clip_range_high": 0.0}, "ppo.clip_range_high", "0.0", "None for ppo.clip_range"),
    ({"ppo__clip_range_high": 0.1}, "ppo.clip_range_high", "0.1", "at least ppo.clip_range 0.2"),
    ({"ppo__dual_clip": 1.2}, "ppo.dual_clip", "1.2", "above 1 + ppo.clip_range 0.2"),
    ({"ppo__target_kl": 0.0}, "ppo.target_kl", "0.0", "None for off"),
    ({"ppo__estimator": "rloo", "ppo__group_size": 1}, "ppo.group_size", "1", "leave it out, or use at least 2"),
    ({"ppo__estimator": "grpo", "ppo__group_size": 1}, "ppo.group_size", "1", "leave it out, or use at least 2"),
    ({"ppo__estimator": "grpo", "ppo__value_coef": 0.1}, "ppo.value_coef", "0.1", "no critic; leave it out, or use 0"),
    ({**CRITIC_FREE, "ppo__critic": "separate"}, "ppo.critic", "'separate'", "has no critic; use shared"),
    ({**CRITIC_FREE, "ppo__critic_warmup_iterations": 1}, "ppo.critic_warmup_iterations", "1", "no critic; use 0"),
    ({**CRITIC_FREE, "ppo__whiten_advantages": False}, "ppo.whiten_advantages", "False", "use True"),
    ({**CRITIC_FREE, "ppo__critic_gae_lambda": 0.5}, "ppo.critic_gae_lambda", "0.5", "no lambda; use None"),
    (
        {"ppo__estimator": "monte_carlo", "ppo__critic_gae_lambda": 0.5},
        "ppo.critic_gae_lambda",
        "0.5",
        "ppo.estimator monte_carlo has no lambda; use None",
    ),
    ({"ppo__critic_warmup_iterations": 1, "ppo__value_coef": 0.0}, "ppo.value_coef", "0.0", "critic warm-up trains"),
    ({"ppo__optimizer": "adam", "ppo__weight_decay": 0.1}, "ppo.weight_decay", "0.1", "use 0 or ppo.optimizer=adamw"),
    ({"ppo__adaptive_kl_target": 1.0, "ppo__kl_coef": 0.0}, "ppo.kl_coef", "0.0", "start above 0"),
    ({**SHARED, "ppo__critic_learning_rate": 1e-3}, "ppo.critic_learning_rate", "0.001", "ppo.critic=separate"),
    (
        {"ppo__critic_learning_rate": 0.0, "ppo__critic": "separate"},
        "ppo.critic_learning_rate",
        "0.0",
        "it must be above 0",
    ),
    ({"ppo__embedding_learning_rate": -1e-3}, "ppo.embedding_learning_rate", "-0.001", "use 0 to keep"),
    ({**SHARED, "ppo__critic_init": "runs/rm"}, "ppo.critic_init", "'runs/rm'", "use policy or ppo.critic=separate"),
    (
        {"ppo__critic_init": "runs/rm", "ppo__critic": "separate", "ppo__value_head": "mlp"},
        "ppo.value_head",
        "'mlp'",
        "ppo.critic_init runs/rm has a linear head; use linear, or ppo.critic_init=policy",
    ),
    ({"ppo__value_head": "deep"}, "ppo.value_head", "'deep'", "choose one of linear, mlp"),
    ({**CRITIC_FREE, "ppo__value_head": "mlp"}, "ppo.value_head", "'mlp'", "reinforce_pp has no critic; use linear"),
    ({"ppo__trainable_blocks": 0}, "ppo.trainable_blocks", "0", "at least 1, or None to train everything"),
    ({"ppo__trainable_blocks": -2}, "ppo.trainable_blocks", "-2", "at least 1, or None to train everything"),
    (
        {"ppo__critic_init": "scratch", "ppo__critic": "separate", "ppo__trainable_blocks": 1},
        "ppo.trainable_blocks",
        "1",
        "would never learn; use None",
    ),
    ({"ppo__value_head": "mlp", "ppo__value_coef": 0.0}, "ppo.value_coef", "0.0", "never learns"),
    (
        {"ppo__critic_init": "scratch", "ppo__critic": "separate", "ppo__value_coef": 0.0},
        "ppo.value_coef",
        "0.0",
        "never learns",
    ),
    ({"ppo__adam_epsilon": 0.0}, "ppo.adam_epsilon", "0.0", "above 0"),
    ({"ppo__gamma": 1.1}, "ppo.gamma", "1.1", "between 0 and 1"),
    ({"ppo__gae_lambda": -0.1}, "ppo.gae_lambda", "-0.1", "between 0 and 1"),
    ({"ppo__value_coef": -0.1}, "ppo.value_coef", "-0.1", "negative"),
    ({"ppo__kl_coef": -0.1}, "ppo.kl_coef", "-0.1", "negative"),
    ({"ppo__kl_coef": math.nan}, "ppo.kl_coef", "nan", "negative"),
    ({"ppo__max_grad_norm": -0.1}, "ppo.max_grad_norm", "-0.1", "negative"),
    ({"ppo__value_clip_range": 0.0}, "ppo.value_clip_range", "0.0", "None for off"),
    ({"ppo__adaptive_kl_target": 0.0}, "ppo.adaptive_kl_target", "0.0", "None for off"),
    ({"ppo__ratio_tolerance": -1.0}, "ppo.ratio_tolerance", "-1.0", "None for what rounding explains"),
    ({"ppo__rollout_batch_size": 1, "ppo__num_minibatches": 1}, "ppo.rollout_batch_size", "1", "at least 2 episodes"),
    ({"ppo__dtype": "bfloat16"}, "ppo.dtype", "'bfloat16'", "float32, mixed_bfloat16"),
    ({"ppo__rollout_dtype": "half"}, "ppo.rollout_dtype", "'half'", "auto, float32, mixed_bfloat16"),
    ({"ppo__update_dtype": "bfloat16"}, "ppo.update_dtype", "'bfloat16'", "auto, float32, mixed_bfloat16"),
    ({"ppo__native": True}, "ppo.update_dtype", "'auto'", "ppo.native"),
    ({**NATIVE_UPDATE, "ppo__trainable_blocks": 1}, "ppo.trainable_blocks", "1", "ppo.native"),
    ({**NATIVE_UPDATE, "ppo__gradient_checkpointing": True}, "ppo.gradient_checkpointing", "True", "ppo.native"),
    ({**NATIVE_UPDATE, "ppo__jit_compile": True}, "ppo.jit_compile", "True", "use None or False, or set ppo.native"),
    ({"evaluation__num_prompts": 1}, "evaluation.num_prompts", "1", "at least 2"),
    ({"evaluation__batch_size": 0}, "evaluation.batch_size", "0", "above 0"),
    ({"evaluation__num_samples": 0}, "evaluation.num_samples", "0", "above 0"),
    ({"evaluation__every": -1}, "evaluation.every", "-1", "0 for off"),
    ({"evaluation__num_prompts_in_training": 0}, "evaluation.num_prompts_in_training", "0", "evaluation.every=0"),
    ({"evaluation__best_by": "kl"}, "evaluation.best_by", "'kl'", "rlhf_reward, score"),
    ({"evaluation__samples_every": -1}, "evaluation.samples_every", "-1", "negative"),
    # One start token, 8 of the prompt, 56 of the response: 65 positions.
    ({"sampling__response_length": 56}, "model.max_sequence_length", "64", "need 65 positions"),
]


@pytest.mark.parametrize(("settings", "field", "value", "remedy"), BAD, ids=lambda item: str(item)[:60])
def test_bad_value(settings, field, value, remedy):
    with pytest.raises(UserError) as error:
        configured(**settings).validate()
    message = str(error.value)
    assert message.startswith(f"{field} is {value}; ")
    assert remedy in message.partition("; ")[2]
    assert "\n" not in message


@pytest.mark.parametrize(
    "settings",
    [
        {"sampling__response_length": 55},  # just fits
        {"model__num_heads": 8},
        {"ppo__num_minibatches": 64},
        {"ppo__rollout_batch_size": 1, "ppo__num_minibatches": 1, "ppo__whiten_advantages": False},
        {"ppo__value_clip_range": None},
        {"ppo__adaptive_kl_target": 6.0},
        {"ppo__clip_range_high": 0.2},
        {"ppo__dual_clip": 1.3},
        {"ppo__group_size": 64},
        {"ppo__estimator": "rloo", "ppo__group_size": 2, "ppo__value_coef": 0.0},
        *({"ppo__estimator": name} for name in ("monte_carlo", "rloo", "grpo", "reinforce_pp")),
        {
            "ppo__estimator": "grpo",
            "ppo__kl_coef": 0.05,
            "ppo__adaptive_kl_target": 6.0,
            "ppo__whiten_advantages": True,
        },
        CRITIC_FREE,
        {"ppo__estimator": "monte_carlo", "ppo__critic": "separate", "ppo__critic_init": "runs/rm"},
        {"ppo__critic": "separate", "ppo__critic_init": "scratch", "ppo__value_head": "mlp"},
        {"ppo__critic": "separate", "ppo__critic_learning_rate": 1e-3, "ppo__critic_warmup_iterations": 2},
        {"ppo__optimizer": "adamw", "ppo__weight_decay": 0.1, "ppo__critic_warmup_iterations": 1},
        {"ppo__trainable_blocks": 1, "ppo__critic": "separate", "ppo__value_head": "mlp"},
        NATIVE_UPDATE,
        {**NATIVE_UPDATE, "ppo__jit_compile": False},
        {"reward__truncate_after": 3, "reward__truncate_at_eos": True},
        {"reward__functions": ("a:b", "likelihood:"), "reward__weights": (1.0, -2.0)},
        {"reward__functions": ("https://host/score",), "reward__url_token_variable": "TOKEN"},
        {"reward__functions": ("http://localhost:8000/score",), "reward__url_token_variable": "TOKEN"},
        {"reward__retries": 0, "reward__timeout": 0.5},
        {"sampling__temperature": 0.0},
        {"lm__warmup_steps": 0},
        {"lm__schedule": "linear"},
        {"seed": 2**31 - 1},
    ],
    ids=str,
)
def test_value_at_the_edge_is_good(settings):
    configured(**settings).validate()


STOPS, SAMPLES_ON = ({"sampling__stop_at_eos": stops} for stops in (True, False))
TRUNCATES = {"reward__truncate_at_eos": True}
# Each right by itself; the same columns as BAD.
BAD_TOGETHER = [
    ({"sampling__top_k": 5}, "sampling.top_k, sampling.top_p", "(5, 1.0)", "PPO needs 0 and 1"),
    ({"sampling__top_p": 0.9}, "sampling.top_k, sampling.top_p", "(0, 0.9)", "PPO needs 0 and 1"),
    ({"sampling__temperature": 0.0}, "sampling.temperature", "0.0", "PPO needs it above 0"),
    (
        {"ppo__trainable_blocks": 2, "ppo__embedding_learning_rate": 0.0},
        "ppo.embedding_learning_rate",
        "0.0",
        "ppo.trainable_blocks 2 leaves the embeddings as they are; use None",
    ),
    (
        {"ppo__rollout_batch_size": 4, "reward__whiten": True},
        "ppo.rollout_batch_size",
        "4",
        "at least 8 episodes in a rollout; raise it or set reward.whiten=False",
    ),
    ({"ppo__estimator": "grpo", "reward__whiten": True}, "reward.whiten", "True", "compares whole scores"),
    (
        {"ppo__whiten_scope": "minibatch", "ppo__whiten_advantages": False},
        "ppo.whiten_scope",
        "'minibatch'",
        "nothing is whitened; use rollout",
    ),
    ({"reward__placement": "last_position", **STOPS}, "reward.placement", "'last_position'", "use last_token or"),
    (
        {"reward__placement": "after_last", **SAMPLES_ON},
        "reward.placement",
        "'after_last'",
        "sampling.stop_at_eos=True",
    ),
    (
        {"reward__placement": "after_last", **STOPS, **CRITIC_FREE},
        "reward.placement",
        "'after_last'",
        "reinforce_pp knows no state after the last token; use last_token",
    ),
    ({**STOPS, **TRUNCATES}, "reward.truncate_at_eos", "True", "use False, or sampling.stop_at_eos=False"),
    ({"reward__missing_stop_penalty": 1.0, **SAMPLES_ON}, "reward.missing_stop_penalty", "1.0", "or use None"),
    ({"ppo__trajectories": "dataset", "ppo__group_size": 2}, "ppo.trajectories", "'dataset'", "ppo.group_size=1"),
    ({"ppo__trajectories": "dataset", **TRUNCATES}, "ppo.trajectories", "'dataset'", "truncate_at_eos=False"),
]


@pytest.mark.parametrize(("settings", "field", "value", "remedy"), BAD_TOGETHER, ids=lambda item: str(item)[:60])
def test_what_ppo_cannot_run_with(settings, field, value, remedy):
    config = configured(**settings).validate()
    with pytest.raises(UserError) as error:
        validate_for_ppo(config)
    message = str(error.value)
    assert message.startswith(f"{field} is {value}; ") and "\n" not in message
    assert remedy in message.partition("; ")[2]


@pytest.mark.parametrize(
    "settings",
    [
        {"ppo__rollout_batch_size": 8, "reward__whiten": True},
        {"reward__placement": "last_position", **TRUNCATES, "reward__missing_stop_penalty": -1.0},
        {"reward__placement": "after_last", "reward__missing_stop_penalty": -1.0, **STOPS},
        {"reward__placement": "after_last", "ppo__estimator": "monte_carlo", **STOPS},
        {"ppo__trajectories": "dataset", **STOPS},
        {"sampling__native": True, "ppo__dtype": "mixed_bfloat16"},
    ],
    ids=str,
)
def test_what_ppo_can_run_with(settings):
    validate_for_ppo(configured(**settings).validate())


def test_sizes_are_named_in_the_section_that_they_stand_in():
    sizes = dataclasses.asdict(Config().model)
    with pytest.raises(UserError, match=r"^critic\.num_heads is 3; it must divide critic\.hidden_dim 256$"):
        validate_sizes(**{**sizes, "num_heads": 3}, section="critic")
    with pytest.raises(UserError, match=r"^critic\.hidden_dim is -4; it must be above 0 and finite$"):
        validate_sizes(**{**sizes, "hidden_dim": -4}, section="critic")


def test_positions_of_the_model_in_a_folder():
    # One start token, 8 of the prompt, 24 of the response: 33 positions.
    config = configured(sampling__response_length=24)
    validate_positions(config, 33, folder="runs/lm")
    with pytest.raises(UserError) as error:
        validate_positions(config, 32, folder="runs/lm")
    assert str(error.value) == (
        "sampling.response_length is 24: with a start token and data.max_prompt_tokens 8 that is 33 positions, and the "
        "model in 'runs/lm' has 32; lower one of them"
    )
    settings = {"prompt": "reward_model.max_prompt_tokens", "response": "reward_model.max_response_tokens"}
    with pytest.raises(
        UserError, match=r"^reward_model\.max_response_tokens is 32: .*max_prompt_tokens 31 that is 64 "
    ):
        validate_positions(config, 63, folder="runs/lm", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"reward__functions": ("https://me:secret@host/",)},
            "reward.functions has a URL of 'host' with a password, .*; put a token into an environment variable "
            "and name that in reward.url_token_variable",
        ),
        (
            {"reward__url_token_variable": "secret-123"},
            "reward.url_token_variable is no name of an environment variable; put the token into one",
        ),
    ],
)
def test_a_password_or_token_in_a_setting_is_not_shown(settings, message):
    with pytest.raises(UserError, match=message) as error:
        configured(**settings).validate()
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "stops"),
    [
        ({}, True),
        ({"sampling__stop_at_eos": False}, False),
        ({"sampling__stop_at_eos": True}, True),
        ({"reward__truncate_at_eos": True}, False),
        ({"reward__placement": "last_position"}, False),
        ({"reward__placement": "after_last"}, True),
    ],
)
def test_where_responses_stop(settings, stops):
    config = configured(**settings)
    decided = config.with_ends()
    assert decided.sampling.stop_at_eos is stops
    validate_for_ppo(config)
    validate_for_ppo(decided)
    assert config.sampling.for_readers().stop_at_eos is (config.sampling.stop_at_eos is not False)

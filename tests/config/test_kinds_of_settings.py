"""What may change when a run is resumed: every setting has a kind, and each kind its rule."""

import pytest
from config_cases import configured

from tfppo.config import Config
from tfppo.config.resuming import LANGUAGE_MODEL, PPO, REWARD_MODEL, Kind, changes, marks, refuse_fixed
from tfppo.errors import UserError

# The decision for every setting. A new one is entered here when it is made: may a run go on with another value?
FIXED = """
    seed language_model
    data.source data.text_feature data.prompt_feature data.chat_template data.min_prompt_tokens data.max_prompt_tokens
    data.max_given_prompt_tokens data.long_prompts
    model.vocabulary_size model.num_layers model.num_heads model.hidden_dim model.intermediate_dim
    model.max_sequence_length lm.batch_size
    reward_model.source reward_model.max_prompt_tokens reward_model.max_response_tokens reward_model.batch_size
    ppo.rollout_batch_size ppo.trajectories ppo.group_size ppo.optimizer ppo.trainable_blocks ppo.ema_decay
    ppo.critic ppo.critic_init ppo.value_head
"""
STATE = "ppo.kl_coef"
FREE = """
    num_replicas cross_device_ops tensorfloat32 deterministic compilation_cache profile_steps checkpoint_every
    keep_checkpoints data.data_dir model.dropout
    lm.num_steps lm.learning_rate lm.warmup_steps lm.schedule lm.weight_decay lm.adam_beta2 lm.max_grad_norm
    lm.eval_every lm.patience lm.dtype lm.jit_compile lm.keep_checkpoints
    sampling.response_length sampling.temperature sampling.top_k sampling.top_p sampling.stop_at_eos
    sampling.jit_compile sampling.native
    reward.functions reward.weights reward.placement reward.missing_stop_penalty reward.missing_stop_mode
    reward.truncate_at_eos reward.truncate_after reward.clip reward.scale reward.normalize reward.whiten
    reward.retries reward.timeout reward.url_batch_size reward.url_concurrency reward.url_token_variable
    reward_model.num_epochs reward_model.learning_rate reward_model.adam_epsilon reward_model.max_grad_norm
    reward_model.eval_every reward_model.keep_checkpoints reward_model.normalize reward_model.normalize_samples
    ppo.total_episodes ppo.target_score ppo.ppo_epochs ppo.num_minibatches ppo.accumulation_steps ppo.estimator
    ppo.gamma ppo.gae_lambda ppo.critic_gae_lambda ppo.whiten_advantages ppo.whiten_scope ppo.whiten_unbiased
    ppo.clip_range ppo.clip_range_high ppo.dual_clip ppo.loss_aggregation ppo.value_clip_range ppo.value_coef
    ppo.entropy_coef ppo.kl_estimator ppo.kl_loss_coef ppo.kl_loss_estimator ppo.adaptive_kl_target
    ppo.adaptive_kl_horizon ppo.target_kl ppo.learning_rate ppo.critic_learning_rate ppo.embedding_learning_rate
    ppo.schedule ppo.schedule_floor ppo.warmup_iterations ppo.adam_beta1 ppo.adam_beta2 ppo.adam_epsilon
    ppo.weight_decay ppo.max_grad_norm ppo.critic_warmup_iterations ppo.dtype ppo.rollout_dtype ppo.update_dtype
    ppo.jit_compile ppo.native ppo.gradient_checkpointing ppo.ratio_tolerance
    evaluation.num_prompts evaluation.batch_size evaluation.samples_every evaluation.num_samples
    evaluation.every evaluation.num_prompts_in_training evaluation.best_by
"""
KINDS = {Kind.FIXED: FIXED, Kind.STATE: STATE, Kind.FREE: FREE}


def test_every_setting_has_a_kind():
    decided = {name: kind for kind, names in KINDS.items() for name in names.split()}
    assert len(decided) == sum(len(names.split()) for names in KINDS.values())  # none is there twice
    assert {name: mark.kind for name, mark in marks(Config).items()} == decided


def compare(stage, before, now, same_content=None):
    old, new = stage.settings(configured(**before)), stage.settings(configured(**now))
    return {change.name: change.kind for change in changes(Config, old, new, same_content)}


@pytest.mark.parametrize(
    ("stage", "now", "expected"),
    [
        (PPO, dict(ppo__gamma=0.9), {"ppo.gamma": Kind.FREE}),
        # The critic's rate follows the policy's, and that is said too.
        (
            PPO,
            dict(ppo__learning_rate=1e-5),
            dict.fromkeys(["ppo.learning_rate", "ppo.critic_learning_rate"], Kind.FREE),
        ),
        (PPO, dict(ppo__kl_coef=0.3, seed=1), {"ppo.kl_coef": Kind.STATE, "seed": Kind.FIXED}),
        (PPO, dict(reward__functions=("a:b",)), {"reward.functions": Kind.FREE}),
        (PPO, dict(ppo__ema_decay=0.5), {"ppo.ema_decay": Kind.FIXED}),
        # A stage knows nothing of what another one is trained with.
        (LANGUAGE_MODEL, dict(ppo__critic="separate", reward__scale=2.0, data__max_prompt_tokens=9), {}),
        # PPO alone leaves prompts out, and may ask for another way after the language model is there.
        (LANGUAGE_MODEL, dict(data__long_prompts="cut", data__max_given_prompt_tokens=9), {}),
        (PPO, dict(data__long_prompts="cut"), {"data.long_prompts": Kind.FIXED}),
        # Of the evaluation of a finished model: it takes them whether anything is left to train or not.
        (PPO, dict(evaluation__num_prompts=9, evaluation__batch_size=8), {}),
        (PPO, dict(evaluation__every=9), {"evaluation.every": Kind.FREE}),
        (PPO, dict(lm__learning_rate=1.0, model__num_heads=8, reward_model__batch_size=3), {}),
        (REWARD_MODEL, dict(data__source="x", model__num_heads=8, ppo__kl_coef=1.0), {}),
        (REWARD_MODEL, dict(reward_model__batch_size=3), {"reward_model.batch_size": Kind.FIXED}),
        (LANGUAGE_MODEL, dict(model__num_heads=8), {"model.num_heads": Kind.FIXED}),
    ],
)
def test_kinds_of_changes(stage, now, expected):
    assert compare(stage, {}, now) == expected
    assert compare(stage, now, now) == {}


def test_what_is_fixed_of_a_moving_average_is_whether_there_is_one():
    assert compare(PPO, dict(ppo__ema_decay=0.5), dict(ppo__ema_decay=0.9)) == {"ppo.ema_decay": Kind.FREE}
    assert compare(PPO, dict(ppo__ema_decay=0.5), dict(ppo__ema_decay=0.0)) == {"ppo.ema_decay": Kind.FIXED}


def test_a_file_may_move_but_not_change():
    moved = dict(data__source="b.txt")
    assert compare(PPO, dict(data__source="a.txt"), moved, lambda name: True) == {"data.source": Kind.FREE}
    assert compare(PPO, dict(data__source="a.txt"), moved, lambda name: False) == {"data.source": Kind.FIXED}


def test_a_model_that_is_trained_on_brings_its_sizes():
    start = dict(language_model="lm")
    assert compare(LANGUAGE_MODEL, start, {**start, "model__num_heads": 8}) == {}


def test_settings_of_another_version_are_left_out():
    now = PPO.settings(Config())
    before = {**now, "ppo.forgotten": 3, "seed": 7}
    del before["ppo.gamma"]
    assert [change.name for change in changes(Config, before, now)] == ["seed"]


def test_a_fixed_one_is_refused_with_both_values_and_the_way_on():
    before, now = dict(seed=3, data__source="my texts.txt"), dict(ppo__gamma=0.9)
    before, now = (PPO.settings(configured(**settings)) for settings in (before, now))
    found = changes(Config, before, now, lambda name: False)
    with pytest.raises(UserError) as error:
        refuse_fixed(found, "PPO in 'runs/a'")
    assert str(error.value) == (
        "PPO in 'runs/a' was started with other settings, which are fixed: seed is 0, not 3; data.source is "
        "tfds:movie_snippets, not my texts.txt; go on with --config.seed=3 --config.data.source='my texts.txt', or use "
        "another --workdir"
    )
    refuse_fixed([change for change in found if change.kind is Kind.FREE], "")


@pytest.mark.parametrize(
    ("estimator", "differences", "flags"),
    [
        (
            "grpo",
            "ppo.estimator is grpo, not gae; ppo.group_size is 8, not 1; ppo.critic is shared, not separate",
            "--config.ppo.estimator=gae --config.ppo.group_size=1 --config.ppo.critic=separate",
        ),
        (
            "reinforce_pp",
            "ppo.estimator is reinforce_pp, not gae; ppo.critic is shared, not separate",
            "--config.ppo.estimator=gae --config.ppo.critic=separate",
        ),
    ],
)
def test_an_estimator_that_brings_what_is_fixed_is_refused_by_its_name(estimator, differences, flags):
    before, now = (PPO.settings(configured(**settings)) for settings in ({}, dict(ppo__estimator=estimator)))
    with pytest.raises(UserError) as error:
        refuse_fixed(changes(Config, before, now), "PPO in 'runs/a'")
    assert str(error.value) == (
        f"PPO in 'runs/a' was started with other settings, which are fixed: {differences}; go on with {flags}, or use "
        "another --workdir"
    )
    # The flags fit one another, in the order in which they are assigned.
    given = [flag.removeprefix("--config.").split("=") for flag in flags.split()]
    values = {name.replace(".", "__"): int(value) if value.isdigit() else value for name, value in given}
    configured(**values).validate()


def test_an_estimator_that_brings_nothing_fixed_is_free():
    assert compare(PPO, {}, dict(ppo__estimator="monte_carlo")) == {"ppo.estimator": Kind.FREE}
    before, now = (PPO.settings(configured(ppo__estimator=name)) for name in ("gae", "monte_carlo"))
    with pytest.raises(UserError, match="which are fixed: seed is 1, not 0; go on"):
        refuse_fixed(changes(Config, before, {**now, "seed": 1}), "a")

"""Every file of configs/ is valid, and the recipes have the published values."""

import importlib.util

import pytest
from binaries import ROOT

from tfppo.config import Config
from tfppo.config.presets import PRESETS
from tfppo.config.validation import validate_for_ppo

FILES = sorted((ROOT / "configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_configs():
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_config_file(path):
    module = load(path)
    config = module.get_config()
    assert type(config) is Config
    assert config.validate() is config
    validate_for_ppo(config)
    assert f"--config={path.stem}" in module.__doc__ or "tfppo quickstart" in module.__doc__
    assert module.get_config() is not config  # overrides assign: they must not reach the next one


# Table 1 of a comparison of the systems' own defaults, and what their code does besides.
ZIEGLER = {
    "sampling": dict(response_length=24, temperature=0.7, top_k=0, top_p=1.0, stop_at_eos=False),
    "reward": dict(
        placement="last_position",
        truncate_at_eos=True,
        truncate_after=16,
        missing_stop_penalty=-1.0,
        missing_stop_mode="replace",
        whiten=True,
        clip=None,
    ),
    "ppo": dict(
        learning_rate=1e-5,
        optimizer="adam",
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-5,
        weight_decay=0.0,
        schedule="linear",
        schedule_floor=0.0,
        warmup_iterations=0,
        ppo_epochs=4,
        num_minibatches=1,
        rollout_batch_size=512,
        total_episodes=1_000_000,
        estimator="gae",
        gamma=1.0,
        gae_lambda=0.95,
        whiten_advantages=True,
        whiten_scope="minibatch",
        whiten_unbiased=False,
        clip_range=0.2,
        clip_range_high=None,
        value_clip_range=0.2,
        value_coef=0.1,
        entropy_coef=0.0,
        kl_coef=0.15,
        kl_estimator="k1",
        kl_loss_coef=0.0,
        adaptive_kl_target=6.0,
        adaptive_kl_horizon=10_000,
        max_grad_norm=0.0,
        critic="shared",
    ),
}
N_PLUS = {
    "sampling": {**ZIEGLER["sampling"], "response_length": 53, "stop_at_eos": True},
    "reward": {
        **ZIEGLER["reward"],
        "placement": "after_last",
        "truncate_at_eos": False,
        "truncate_after": 0,
        "whiten": False,
    },
    "ppo": {
        **ZIEGLER["ppo"],
        "whiten_scope": "rollout",
        "learning_rate": 3e-6,
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "kl_coef": 0.05,
        "adaptive_kl_target": None,
        "critic": "separate",
        "critic_learning_rate": 3e-6,
    },
}
TRL = {
    **N_PLUS,
    "reward": {**N_PLUS["reward"], "missing_stop_penalty": None, "missing_stop_mode": "subtract"},
    "ppo": {
        **N_PLUS["ppo"],
        "adam_epsilon": 1e-8,
        "weight_decay": 0.0,
        "whiten_unbiased": True,
        "rollout_batch_size": 64,
    },
}
OPENRLHF = {
    "sampling": {**N_PLUS["sampling"], "response_length": 24, "temperature": 1.0},
    "reward": dict(placement="last_token", clip=10.0, missing_stop_penalty=None, whiten=False, truncate_at_eos=False),
    "ppo": {
        **N_PLUS["ppo"],
        "learning_rate": 1e-6,
        "critic_learning_rate": 9e-6,
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-8,
        "weight_decay": 0.0,
        "schedule": "cosine",
        "schedule_floor": 0.1,
        "warmup_iterations": 30,  # .03 of 1,000
        "ppo_epochs": 1,
        "num_minibatches": 8,
        "rollout_batch_size": 1024,
        "total_episodes": 1_024_000,
        "gae_lambda": 1.0,
        "value_clip_range": 0.5,
        "value_coef": 1.0,
        "kl_coef": 0.01,
        "max_grad_norm": 1.0,
    },
}
RECIPES = {"openai_2019": ZIEGLER, "openai_tldr_n_plus": N_PLUS, "trl": TRL, "openrlhf": OPENRLHF}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_has_the_published_values(name):
    config = PRESETS[name]()
    for section, values in RECIPES[name].items():
        actual = getattr(config, section)
        assert {field: getattr(actual, field) for field in values} == values
    assert load(ROOT / "configs" / f"{name}.py").get_config() == config


def test_every_recipe_is_checked():
    assert set(PRESETS) == set(RECIPES)
    lengths = {name: preset().data.max_prompt_tokens for name, preset in PRESETS.items()}
    assert lengths == {"openai_2019": 64, "openai_tldr_n_plus": 512, "trl": 512, "openrlhf": 8}


def test_the_quickstart_keeps_its_values_whatever_the_defaults():
    """Its figures in README and docs were measured with these."""
    ppo = load(ROOT / "configs" / "movie_snippets.py").get_config().ppo
    values = dict(
        total_episodes=4096,
        rollout_batch_size=64,
        ppo_epochs=2,
        num_minibatches=4,
        gae_lambda=1.0,
        whiten_advantages=True,
        clip_range=0.2,
        value_clip_range=0.2,
        value_coef=1.0,
        kl_coef=0.038,
        kl_loss_coef=0.0,
        optimizer="adamw",
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        weight_decay=0.0,
        learning_rate=1e-4,
        critic_learning_rate=1e-3,
        embedding_learning_rate=4e-4,
        schedule="linear",
        warmup_iterations=0,
        max_grad_norm=1.0,
        critic="separate",
    )
    assert {name: getattr(ppo, name) for name in values} == values

"""What belongs to an estimator: defaults, what wins over them, and what another estimator lets go of."""

import dataclasses
import json

import pytest

from tfppo.config import Config, PpoConfig
from tfppo.config.choices import ESTIMATORS
from tfppo.config.presets import openrlhf

NAMES = ("value_coef", "group_size", "whiten_advantages", "loss_aggregation", "kl_coef", "kl_loss_coef", "critic")
DEFAULTS = {
    "gae": (1.0, 1, True, "token_mean", 0.02, 0.0, "separate"),
    "monte_carlo": (1.0, 1, True, "token_mean", 0.02, 0.0, "separate"),
    "rloo": (0.0, 4, False, "token_mean", 0.02, 0.0, "shared"),
    "grpo": (0.0, 8, False, "sequence_mean", 0.0, 0.04, "shared"),
    "reinforce_pp": (0.0, 1, True, "token_mean", 0.02, 0.0, "shared"),
}


def values(ppo):
    return tuple(getattr(ppo, name) for name in NAMES)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_defaults_follow_the_estimator_whenever_it_is_assigned(estimator):
    assert values(PpoConfig(estimator=estimator)) == DEFAULTS[estimator]
    config = Config()
    for other in (*ESTIMATORS, estimator):
        config.ppo.estimator = other
    assert values(config.validate().ppo) == DEFAULTS[estimator]
    assert values(PpoConfig(**json.loads(config.to_json())["ppo"])) == DEFAULTS[estimator]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_what_is_given_wins(estimator):
    given = dict(group_size=16, whiten_advantages=not DEFAULTS[estimator][2], loss_aggregation="sequence_sum")
    ppo = PpoConfig(estimator=estimator, **given, kl_coef=0.3, kl_loss_coef=0.2)
    assert values(ppo) == (DEFAULTS[estimator][0], *given.values(), 0.3, 0.2, DEFAULTS[estimator][-1])


@pytest.mark.parametrize(("kl_coef", "expected"), [(0.1, (0.1, 0.0)), (0.0, (0.0, 0.0)), (None, (0.0, 0.04))])
def test_whoever_gives_a_kl_coefficient_has_said_where_the_kl_acts(kl_coef, expected):
    ppo = PpoConfig(estimator="grpo", kl_coef=kl_coef)
    assert (ppo.kl_coef, ppo.kl_loss_coef) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("separate", 1.0, 2e-3)),
        ({"learning_rate": 1e-5}, ("separate", 1.0, 1e-4)),
        ({"critic": "shared"}, ("shared", 0.1, None)),
        ({"critic_learning_rate": 1e-4, "value_coef": 0.5}, ("separate", 0.5, 1e-4)),
        ({"estimator": "grpo"}, ("shared", 0.0, None)),
    ],
)
def test_weight_and_rate_of_the_critic_follow_from_its_kind(given, expected):
    ppo = PpoConfig(**given)
    ppo.validate()
    assert (ppo.critic, ppo.value_coef, ppo.critic_learning_rate) == (*expected[:2], pytest.approx(expected[2]))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_learning_rate_follows_the_critic_and_one_that_is_given_stays(estimator):
    expected = 2e-4 if DEFAULTS[estimator][-1] == "separate" else 1e-4
    assert PpoConfig(estimator=estimator).learning_rate == expected
    ppo = PpoConfig(learning_rate=3e-6)
    ppo.estimator = estimator
    assert ppo.learning_rate == 3e-6


def test_an_estimator_without_a_critic_lets_go_of_the_critic():
    ppo = openrlhf().ppo
    assert (ppo.critic, ppo.value_coef, ppo.critic_learning_rate, ppo.kl_coef) == ("separate", 1.0, 9e-6, 0.01)
    ppo.estimator = "rloo"
    ppo.validate()
    assert (ppo.critic, ppo.value_coef, ppo.critic_learning_rate) == ("shared", 0.0, None)
    assert (ppo.kl_coef, ppo.learning_rate) == (0.01, 1e-6)  # which mean the same as before
    ppo = openrlhf().ppo
    ppo.estimator = "grpo"
    ppo.validate()
    assert values(ppo) == DEFAULTS["grpo"]


def test_the_same_estimator_or_one_of_its_kind_lets_go_of_nothing():
    ppo, before = openrlhf().ppo, dataclasses.asdict(openrlhf().ppo)
    for estimator in ("gae", "monte_carlo"):
        ppo.estimator = estimator
        assert dataclasses.asdict(ppo) == {**before, "estimator": estimator}


def test_a_misspelt_setting_is_still_none():
    with pytest.raises(AttributeError):
        _ = PpoConfig().group_sise
    with pytest.raises(AttributeError):
        PpoConfig().group_sise = 1

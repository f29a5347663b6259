"""The names that settings choose from, and which settings belong to an estimator.

They are not in `ops`, so that reading a config does not import TensorFlow.
"""

from collections.abc import Callable
from typing import Any

ESTIMATORS = ("gae", "monte_carlo", "rloo", "grpo", "reinforce_pp")
CRITIC_FREE = ("rloo", "grpo", "reinforce_pp")
GROUPED = ("rloo", "grpo")
KL_ESTIMATORS = ("k1", "k2", "k3", "abs")
AGGREGATIONS = ("token_mean", "sequence_mean", "sequence_sum")
PLACEMENTS = ("last_token", "after_last", "last_position")
BEST_BY = ("rlhf_reward", "score")
CROSS_DEVICE_OPS = ("auto", "nccl", "hierarchical_copy", "reduction_to_one_device")
LONG_PROMPTS = ("refuse", "drop", "cut")
CHAT_TEMPLATES = ("chatml", "hh", "alpaca")

_WITH_CRITIC: dict[str, Any] = {
    "critic": "separate",
    "group_size": 1,
    "whiten_advantages": True,
    "loss_aggregation": "token_mean",
    "kl_coef": 0.02,
    "kl_loss_coef": 0.0,
}
_NO_CRITIC = {**_WITH_CRITIC, "critic": "shared"}
# What settings of PpoConfig are where they are None, by estimator. docs/algorithm.md says from where.
ESTIMATOR_SETTINGS: dict[str, dict[str, Any]] = {
    "gae": _WITH_CRITIC,
    "monte_carlo": _WITH_CRITIC,
    "rloo": {**_NO_CRITIC, "group_size": 4, "whiten_advantages": False},
    "grpo": {
        **_NO_CRITIC,
        "group_size": 8,
        "whiten_advantages": False,
        "loss_aggregation": "sequence_mean",
        "kl_coef": 0.0,
        "kl_loss_coef": 0.04,
    },
    "reinforce_pp": _NO_CRITIC,
}
# value_coef by critic: a trunk that the policy shares must not be pulled much by the critic's error.
_VALUE_COEFS = {"separate": 1.0, "shared": 0.1}
_LEARNING_RATE, _LEARNING_RATE_WITHOUT_CRITIC = 2e-4, 1e-4
# In multiples of ppo.learning_rate.
_CRITIC_RATE = 10.0
# Settings of a critic, which an estimator without one has no use for.
CRITIC_SETTINGS = (
    "critic",
    "critic_init",
    "critic_learning_rate",
    "critic_gae_lambda",
    "critic_warmup_iterations",
    "value_coef",
    "value_head",
)


def of_estimator(ppo: Any, name: str) -> Any:
    """What a setting is where only the estimator decides; unknown estimators, which validation refuses, are as gae."""
    return ESTIMATOR_SETTINGS.get(ppo.estimator, ESTIMATOR_SETTINGS["gae"])[name]


def _value_coef(ppo, name):
    return 0.0 if ppo.estimator in CRITIC_FREE else _VALUE_COEFS.get(ppo.critic, 0.0)


def _kl_loss_coef(ppo, name):
    # Whoever gives kl_coef has said where the KL acts.
    return of_estimator(ppo, name) if ppo.given("kl_coef") is None else 0.0


def _learning_rate(ppo, name):
    return _LEARNING_RATE_WITHOUT_CRITIC if ppo.estimator in CRITIC_FREE else _LEARNING_RATE


def _critic_learning_rate(ppo, name):
    return _CRITIC_RATE * ppo.learning_rate if ppo.critic == "separate" else None


# (ppo, name) -> what a setting of PpoConfig is where it is None, from other settings.
DEPENDENT: dict[str, Callable[[Any, str], Any]] = {
    **dict.fromkeys(_WITH_CRITIC, of_estimator),
    "value_coef": _value_coef,
    "kl_loss_coef": _kl_loss_coef,
    "learning_rate": _learning_rate,
    "critic_learning_rate": _critic_learning_rate,
}


def settings_to_let_go(before: str, after: str) -> tuple[str, ...]:
    """The settings that were chosen for one estimator, and say nothing about another.

    They are those of ESTIMATOR_SETTINGS that the two do not share and, where one of them alone has a critic, the
    critic's.
    Args: before, after: estimators; unknown ones, which validation refuses, share everything with all.
    """
    old, new = (ESTIMATOR_SETTINGS.get(name) for name in (before, after))
    if old is None or new is None:
        return ()
    own = tuple(name for name in new if old[name] != new[name])
    return own + (CRITIC_SETTINGS if (before in CRITIC_FREE) != (after in CRITIC_FREE) else ())

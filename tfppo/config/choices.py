"""The names that settings choose from, and which settings belong to an estimator.

They are not in `ops`, so that reading a config does not import TensorFlow.
"""

from typing import Any

ESTIMATORS = ("gae", "monte_carlo", "rloo", "grpo", "reinforce_pp")
CRITIC_FREE = ("rloo", "grpo", "reinforce_pp")
GROUPED = ("rloo", "grpo")
KL_ESTIMATORS = ("k1", "k2", "k3", "abs")
AGGREGATIONS = ("token_mean", "sequence_mean", "sequence_sum")
PLACEMENTS = ("last_token", "after_last", "last_position")

_WITH_CRITIC: dict[str, Any] = {
    "value_coef": 0.1,
    "group_size": 1,
    "whiten_advantages": True,
    "loss_aggregation": "token_mean",
    "kl_coef": 0.05,
    "kl_loss_coef": 0.0,
}
_NO_CRITIC = {**_WITH_CRITIC, "value_coef": 0.0}
# What settings of PpoConfig are where they are None, by estimator. docs/algorithm.md says from which paper.
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
# Settings of a critic, which an estimator without one has no use for.
CRITIC_SETTINGS = (
    "critic",
    "critic_init",
    "critic_learning_rate",
    "critic_gae_lambda",
    "critic_warmup_iterations",
    "value_head",
)


def settings_to_let_go(before: str, after: str) -> tuple[str, ...]:
    """The settings that were chosen for one estimator, and say nothing about another.

    They are those of ESTIMATOR_SETTINGS that the two do not share and, where the other has no critic, the critic's.
    Args: before, after: estimators; unknown ones, which validation refuses, share everything with all.
    """
    old, new = (ESTIMATOR_SETTINGS.get(name) for name in (before, after))
    if old is None or new is None:
        return ()
    own = tuple(name for name in new if old[name] != new[name])
    return own + (CRITIC_SETTINGS if after in CRITIC_FREE else ())

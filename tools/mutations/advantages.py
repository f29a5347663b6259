"""Advantages and whitening."""

from mutations.mutation import Mutation
from mutations.operators import assign, drop_operand, negate, replace, return_early, set_argument, unwrap

ADVANTAGE = "tests/parity/test_advantage_parity.py"
UPDATE = "tests/parity/test_update_parity.py"
GROUPS = "tests/ops/test_advantages.py"
TARGETS = "tests/ppo/test_targets.py"

MUTATIONS = [
    Mutation("whitening_flag_inverted", "ops/masking.py", "whiten", [negate("shift_mean")], ADVANTAGE),
    Mutation("biased_and_unbiased_swapped", "ops/masking.py", "whiten", [negate("unbiased")], ADVANTAGE),
    Mutation(
        "whitened_over_the_rollout_not_the_minibatch",
        "ppo/learner.py",
        "Learner._targets_of_step",
        [replace('self.config.whiten_scope == "rollout"', "True")],
        UPDATE,
    ),
    Mutation(
        "bootstrap_past_the_end",
        "ops/advantages.py",
        "gae",
        [replace("(nothing, nothing)", "(nothing, values[:, -1])")],
        ADVANTAGE,
    ),
    Mutation(
        "bootstrap_from_the_padding", "ops/advantages.py", "gae.step", [unwrap("tf.where", 1, "next_value")], ADVANTAGE
    ),
    Mutation("gamma_dropped", "ops/advantages.py", "gae.step", [drop_operand("gamma", beside="next_value")], ADVANTAGE),
    Mutation("lambda_dropped", "ops/advantages.py", "gae.step", [drop_operand("gae_lambda")], ADVANTAGE),
    Mutation(
        "advantage_of_a_gap",
        "ops/advantages.py",
        "gae.step",
        [set_argument("tf.where", 2, "0.0 * next_advantage", having="next_advantage")],
        ADVANTAGE,
    ),
    Mutation(
        "rloo_includes_itself",
        "ops/advantages.py",
        "rloo",
        [assign("others", "tf.reduce_mean(groups, axis=1, keepdims=True)")],
        ADVANTAGE,
    ),
    Mutation(
        "equal_totals_with_rounding",
        "ops/advantages.py",
        "_groups_from_zero",
        [return_early("tf.reshape(totals, [-1, group_size])")],
        GROUPS,
    ),
    Mutation(
        "kl_inside_the_spread_of_grpo",
        "ops/advantages.py",
        "estimate_advantages",
        [assign("scored", "rewards - (0.0 if penalty is None else penalty)")],
        GROUPS,
    ),
    Mutation(
        "no_kl_in_grpo",
        "ops/advantages.py",
        "estimate_advantages",
        [replace("discounted_returns(penalty, states, gamma)", "0.0")],
        GROUPS,
    ),
    Mutation(
        "groups_shifted_by_whitening",
        "ppo/targets.py",
        "prepare_targets",
        [replace("ppo.estimator in GROUPED", "False")],
        TARGETS,
    ),
    Mutation("grpo_without_std", "ops/advantages.py", "grpo", [drop_operand("deviation + 1e-6")], ADVANTAGE),
]

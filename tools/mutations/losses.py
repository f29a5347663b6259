"""Losses of the policy, the critic and the reward model."""

from mutations.mutation import Mutation
from mutations.operators import drop_operand, replace, set_argument, swap_operator, unwrap

LOSS = "tests/parity/test_loss_parity.py"
UPDATE = "tests/parity/test_update_parity.py"
REWARD_MODEL = "tests/parity/test_reward_model_parity.py"

MUTATIONS = [
    Mutation(
        "clip_bounds_swapped",
        "ops/losses.py",
        "clipped_surrogate_loss",
        [replace("1.0 - clip_range", "1.0 - high"), replace("1.0 + high", "1.0 + clip_range")],
        LOSS,
    ),
    Mutation(
        "surrogate_min_for_max",
        "ops/losses.py",
        "clipped_surrogate_loss",
        [replace("tf.maximum", "tf.minimum")],
        LOSS,
    ),
    Mutation("value_clip_removed", "ops/losses.py", "clipped_value_loss", [unwrap("tf.maximum")], LOSS),
    Mutation(
        "sequence_mean_is_a_sum",
        "ops/losses.py",
        "token_weights",
        [drop_operand("num_sequences", beside="tf.math.divide_no_nan")],
        LOSS,
    ),
    Mutation("entropy_sign", "ppo/loss.py", "ppo_loss", [swap_operator("-", "+", beside="objective")], UPDATE),
    Mutation(
        "preference_loss_sign",
        "ops/losses.py",
        "preference_loss",
        [set_argument("tf.nn.softplus", 0, "scores[:, 0] - tf.reduce_logsumexp(scores[:, 1:], axis=1)")],
        REWARD_MODEL,
    ),
]

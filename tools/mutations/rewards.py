"""Rewards: the KL penalty and its coefficient, and where the score goes."""

from mutations.mutation import Mutation
from mutations.operators import replace, set_argument, swap_operator, unwrap

REWARD = "tests/parity/test_reward_parity.py"

MUTATIONS = [
    Mutation(
        "padding_in_the_kl",
        "ppo/targets.py",
        "prepare_targets",
        [unwrap("zero_padding", having="rollout.logprobs - rollout.ref_logprobs")],
        REWARD,
    ),
    Mutation(
        "kl_penalty_rewarded", "ppo/targets.py", "prepare_targets", [swap_operator("-", "+", beside="penalty")], REWARD
    ),
    Mutation(
        "whitened_before_the_returns",
        "ppo/targets.py",
        "prepare_targets",
        [set_argument("Targets", "returns", "advantages + zero_padding(rollout.values, critic_mask)")],
        REWARD,
    ),
    Mutation(
        "score_at_the_first_token",
        "ops/shaping.py",
        "place_scores",
        [replace("last_token_one_hot(mask)", "tf.one_hot(0, tf.shape(mask)[1])")],
        REWARD,
    ),
    Mutation(
        "score_after_last_at_the_last_token", "ops/shaping.py", "place_scores", [unwrap("mask_after_last")], REWARD
    ),
    Mutation(
        "k3_sign",
        "ops/kl.py",
        "kl_estimate",
        [replace("-bounded", "bounded"), swap_operator("+", "-", beside="bounded")],
        REWARD,
    ),
    Mutation("adaptive_kl_unclipped", "ops/kl.py", "adaptive_kl_coef", [unwrap("min"), unwrap("max")], REWARD),
]

"""Initial weights, which of them learn, and reading and normalising a reward model."""

from mutations.mutation import Mutation
from mutations.operators import assign, replace, set_argument, set_index

ARCHITECTURE = "tests/parity/test_architecture_parity.py"
REWARD_MODEL = "tests/parity/test_reward_model_parity.py"

MUTATIONS = [
    Mutation(
        "one_block_too_many_learns",
        "models/transformer.py",
        "Transformer.variables_below",
        [set_index("self.blocks", ": -num_blocks - 1")],
        ARCHITECTURE,
    ),
    Mutation(
        "value_head_too_large",
        "models/policy.py",
        "uniform_of_fan_in",
        [assign("bound", "3**0.5 * fan_in**-0.5")],
        ARCHITECTURE,
    ),
    Mutation(
        "reward_head_too_small",
        "models/reward_model.py",
        "RewardModel.__init__",
        [set_argument("keras.initializers.RandomNormal", "stddev", "1 / (hidden_dim + 1)")],
        ARCHITECTURE,
    ),
    Mutation(
        "reward_read_before_the_last_token",
        "models/reward_model.py",
        "RewardModel.response_scores",
        [set_argument("tf.gather", 1, "tf.maximum(lengths - 1, 0)")],
        REWARD_MODEL,
    ),
    Mutation(
        "normalising_bias_without_the_gain",
        "reward_model/normalization.py",
        "gain_and_bias",
        [replace("-gain", "-1.0")],
        REWARD_MODEL,
    ),
]

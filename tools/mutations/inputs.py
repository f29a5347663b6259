"""Temperature, dtypes, positions and masks: what the models are given, and what is read of them."""

from mutations.mutation import Mutation
from mutations.operators import drop_argument, drop_operand, replace, return_early, set_argument, set_index

SAMPLING = "tests/parity/test_sampling_parity.py"
ADVANTAGE = "tests/parity/test_advantage_parity.py"
UPDATE = "tests/parity/test_update_parity.py"
ROLLOUT = "tests/ppo/test_rollout.py"

MUTATIONS = [
    Mutation(
        "temperature_dropped_in_the_loss",
        "computation/engine.py",
        "Loss.figures_of",
        [drop_argument("token_logprobs", 2)],
        UPDATE,
    ),
    Mutation(
        "temperature_dropped_in_the_sampler",
        "ppo/drawing.py",
        "draw_tokens",
        [drop_operand("temperature or 1.0")],
        SAMPLING,
    ),
    Mutation(
        "temperature_dropped_in_the_reference",
        "computation/graph.py",
        "GraphEngine.token_logprobs.of_logits",
        [drop_argument("token_logprobs", 2)],
        SAMPLING,
    ),
    Mutation(
        "rollouts_sampled_in_float32",
        "computation/graph.py",
        "GraphEngine.decoder",
        [set_argument("_Decoder", 1, "None")],
        ROLLOUT,
    ),
    Mutation(
        "reference_computed_in_float32",
        "ppo/rollout.py",
        "RolloutCollector.__init__",
        [set_argument("TeacherForcing", 2, 'type(computation.scoring.engine)("float32", False)')],
        ROLLOUT,
    ),
    Mutation(
        "value_slice_shifted",
        "ops/sequences.py",
        "teacher_forced",
        [
            set_argument(
                "tf.concat", 0, "[prompt_ids[:, 1:], response_ids]", having="[prompt_ids, response_ids[:, :-1]]"
            )
        ],
        SAMPLING,
    ),
    Mutation(
        "last_block_masked_as_at_the_beginning",
        "ops/attention.py",
        "WholeAttention.__call__",
        [set_index("self._mask", ":, :, : tf.shape(query)[1]")],
        SAMPLING,
    ),
    Mutation(
        "positions_shifted_by_padding",
        "ops/masking.py",
        "positions_from_mask",
        [return_early("tf.cumsum(tf.ones_like(mask, tf.int32), axis=1) - 1")],
        SAMPLING,
    ),
    Mutation(
        "pad_logit_unmasked",
        "models/language_model.py",
        "LanguageModel.logits",
        [replace("MASKED_SCORE", "0.0")],
        SAMPLING,
    ),
    Mutation(
        "stop_token_outside_the_mask",
        "ppo/sampling.py",
        "_Loop.with_token",
        [
            set_argument(
                "tf.cast", 0, "alive & (tokens != (-1 if self.stop_id is None else self.stop_id))", having="alive"
            )
        ],
        SAMPLING,
    ),
    Mutation(
        "mask_forgotten_in_a_mean",
        "ops/masking.py",
        "masked_mean",
        [set_argument("tf.reduce_sum", 0, "tf.ones_like(mask)")],
        ADVANTAGE,
    ),
]

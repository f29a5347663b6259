"""The optimizers' forms, and clipping."""

from mutations.mutation import Mutation
from mutations.operators import assign, drop_operand, replace, return_early

OPTIMIZER = "tests/parity/test_optimizer_parity.py"
UPDATE = "tests/parity/test_update_parity.py"

MUTATIONS = [
    Mutation(
        "adam_epsilon_outside_the_correction",
        "training/optimization.py",
        "_FusedAdam._kernel_epsilon",
        [return_early("self.epsilon * tf.sqrt(correction)")],
        OPTIMIZER,
    ),
    Mutation(
        "adamw_epsilon_of_tensorflow",
        "training/optimization.py",
        "AdamW._kernel_epsilon",
        [drop_operand("tf.sqrt", beside="self.epsilon")],
        OPTIMIZER,
    ),
    Mutation(
        "gradient_not_clipped", "training/optimization.py", "clipping_scales", [assign("scales[i]", "None")], OPTIMIZER
    ),
    Mutation(
        "clipping_left_out_on_one_replica",
        "training/optimization.py",
        "optimize.apply",
        [
            replace("optimizer.apply_scaled", "optimizer.apply"),
            replace("(gradients, scales)", "(gradients,)"),
        ],
        UPDATE,
    ),
]

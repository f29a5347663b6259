"""The optimizers' forms, and clipping."""

from mutations.mutation import Mutation
from mutations.operators import assign, drop_operand, replace, return_early

OPTIMIZER = "tests/parity/test_optimizer_parity.py"
UPDATE = "tests/parity/test_update_parity.py"
STEPS = "tests/training/test_optimization.py"
CRITIC = "tests/ppo/test_critic_rates.py"
TRAINER = "tests/ppo/test_trainer.py"
PROGRAM = "tests/ppo/test_update_in_one_program.py"

MUTATIONS = [
    Mutation(
        "adam_epsilon_outside_the_correction",
        "training/adam.py",
        "_FusedAdam._kernel_epsilon",
        [return_early("self.epsilon * tf.sqrt(correction)")],
        OPTIMIZER,
    ),
    Mutation(
        "adamw_epsilon_of_tensorflow",
        "training/adam.py",
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
        "_step_in_a_branch.apply",
        [
            replace("optimizer.apply_scaled", "optimizer.apply"),
            replace("(gradients, scales)", "(gradients,)"),
        ],
        UPDATE,
    ),
    Mutation(
        "steps_at_rest_are_counted",
        "training/adam.py",
        "_FusedAdam._step_by",
        [replace("rest is None", "True")],
        CRITIC,
    ),
    Mutation(
        "decay_at_rest",
        "training/adam.py",
        "_FusedAdam._numbers_of",
        [replace("tf.where(rest.now, 0.0, rate)", "rate")],
        STEPS,
    ),
    Mutation(
        "moments_change_at_rest",
        "training/adam.py",
        "_FusedAdam._numbers_of",
        [replace("tf.where(rest.now, 1.0, beta)", "tf.constant(beta)")],
        STEPS,
    ),
    Mutation(
        "native_steps_at_rest",
        "training/adam.py",
        "_FusedAdam._backend_update_step",
        [replace("tf.cond(rest.now, lambda: tf.constant(0), step_others)", "step_others()")],
        STEPS,
    ),
    Mutation(
        "idle_steps_are_not_passed_on",
        "ppo/trainer.py",
        "PpoTrainer.improve",
        [replace("tf.constant(self.idle_steps)", "tf.constant(0)")],
        TRAINER,
    ),
    Mutation(
        "a_program_steps_where_no_gradient_is_finite",
        "training/adam.py",
        "_FusedAdam._stepped",
        [replace("tf.where(taken, *pair)", "pair[0]")],
        PROGRAM,
    ),
    Mutation(
        "a_program_forgets_the_moments",
        "training/adam.py",
        "_FusedAdam.assign_stack",
        [replace("self._kept(stack.variables)", "[stack.variables] * 3")],
        PROGRAM,
    ),
    Mutation(
        "blocks_backward_in_the_wrong_order",
        "models/stacking.py",
        "_Loop._backward.one",
        [assign("number", "done")],
        "tests/models/test_stacking.py",
    ),
]

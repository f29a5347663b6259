"""What varies over iterations, steps, epochs, parts and replicas, and is taken from one of them alone."""

from mutations.mutation import Mutation
from mutations.operators import assign, replace, set_argument

TRAINER = "tests/ppo/test_trainer.py"
LM = "tests/lm/test_lm_trainer.py"
REWARD_MODEL = "tests/reward_model/test_reward_trainer.py"
UPDATE = "tests/ppo/test_update.py"
OPTIMIZER = "tests/training/test_optimization.py"
REPLICAS = "tests/training/test_replicas.py"

MUTATIONS = [
    Mutation(
        "one_seed_for_every_rollout",
        "ppo/trainer.py",
        "PpoTrainer.collect",
        [set_argument("seed_for", 2, "0")],
        TRAINER,
    ),
    Mutation(
        "one_order_for_every_update",
        "ppo/trainer.py",
        "PpoTrainer.improve",
        [set_argument("seed_for", 2, "0")],
        TRAINER,
    ),
    Mutation(
        "the_same_prompts_in_every_iteration",
        "ppo/trainer.py",
        "PpoTrainer.collect",
        [set_argument("self.prompts.batch", 0, "0")],
        TRAINER,
    ),
    Mutation(
        "first_rate_in_every_update",
        "ppo/trainer.py",
        "PpoTrainer.improve",
        [set_argument("self.learning_rate", 0, "0")],
        TRAINER,
    ),
    Mutation(
        "one_order_for_every_epoch",
        "ppo/minibatches.py",
        "shuffled_minibatches",
        [replace("[0, epoch]", "[0, 0]")],
        UPDATE,
    ),
    Mutation(
        "figures_of_the_last_step",
        "ppo/learner.py",
        "Learner._update",
        [replace("tf.reduce_mean(history[:steps], axis=0)", "history[steps - 1]")],
        UPDATE,
    ),
    Mutation(
        "ratio_of_the_last_part",
        "training/optimization.py",
        "sum_over_parts",
        [replace("tf.maximum(error, more_error)", "more_error")],
        OPTIMIZER,
    ),
    Mutation(
        "figures_of_the_last_part",
        "training/optimization.py",
        "sum_over_parts",
        [replace("sums + more_sums", "more_sums")],
        OPTIMIZER,
    ),
    Mutation(
        "ratio_of_the_first_replica",
        "ppo/learner.py",
        "Learner._run_epochs.learn",
        [replace("tf.reduce_max(ratio_errors)", "ratio_errors[0]")],
        REPLICAS,
    ),
    Mutation(
        "gradients_of_one_replica",
        "training/optimization.py",
        "_summed",
        [replace("sum_in_buckets(sum_over_replicas, [*gradients, *figures])", "[*gradients, *figures]")],
        REPLICAS,
    ),
    Mutation(
        "a_bucket_that_is_never_full",
        "training/buckets.py",
        "layout_of",
        [replace("filled + size > limit", "False")],
        "tests/training/test_buckets.py",
    ),
    Mutation(
        "rows_of_one_worker",
        "training/replicas.py",
        "_gather_over_workers.of_replica.placed",
        [replace("index * rows", "0 * rows")],
        "tests/stages/test_several_workers.py",
    ),
    Mutation(
        "a_signal_to_one_worker_alone",
        "training/interrupt.py",
        "StopRequest.agreed",
        [replace("self._anywhere(self.requested)", "self.requested")],
        "tests/stages/test_several_workers.py",
    ),
    Mutation(
        "one_dropout_for_every_step",
        "lm/trainer.py",
        "LmTrainer.train",
        [set_argument("seed_for", 2, "0")],
        LM,
    ),
    Mutation(
        "one_dropout_for_every_replica",
        "lm/trainer.py",
        "LmTrainer._replica_gradients",
        [assign("seed", "dropout_seed")],
        LM,
    ),
    Mutation(
        "first_rate_in_every_step_of_a_language_model",
        "lm/trainer.py",
        "LmTrainer.train",
        [set_argument("scheduled_rate", 0, "0")],
        LM,
    ),
    Mutation(
        "the_same_sequences_in_every_step",
        "lm/trainer.py",
        "LmTrainer.batch",
        [set_argument("stream_indices", 2, "0")],
        LM,
    ),
    Mutation(
        "the_same_comparisons_in_every_step",
        "reward_model/trainer.py",
        "RewardTrainer.batch",
        [set_argument("stream_indices", 2, "0")],
        REWARD_MODEL,
    ),
    Mutation(
        "first_rate_in_every_step_of_a_reward_model",
        "reward_model/trainer.py",
        "RewardTrainer.learning_rate",
        [set_argument("scheduled_rate", 0, "0")],
        REWARD_MODEL,
    ),
    Mutation(
        "one_seed_for_all_samples_of_a_normalisation",
        "reward_model/normalization.py",
        "sample_responses",
        [set_argument("seed_for", 2, "0")],
        REWARD_MODEL,
    ),
    Mutation(
        "one_seed_for_every_batch_of_an_evaluation",
        "ppo/evaluation.py",
        "evaluate",
        [set_argument("seed_for", 2, "0")],
        "tests/ppo/test_evaluation.py",
    ),
]

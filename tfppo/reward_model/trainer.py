"""Training of a reward model: the chosen response should score higher than the rejected ones."""

import math
import time
from contextlib import closing
from pathlib import Path

import tensorflow as tf

from tfppo.computation.memory import device_figures, restart_device_peak
from tfppo.config import RewardModelConfig
from tfppo.data.preferences import Comparisons
from tfppo.data.tokenizer import Tokenizer
from tfppo.models.reward_model import RewardModel
from tfppo.ops.losses import preference_loss
from tfppo.ops.seeds import stream_indices
from tfppo.reward_model.comparison import ComparisonScorer, comparison_scores, held_out_figures, ranks_chosen_first
from tfppo.training.checkpoint import CheckpointKeeper, digest, weights_digest
from tfppo.training.divergence import DivergenceWatch
from tfppo.training.interrupt import Interrupted, StopRequest
from tfppo.training.metrics import MetricsWriter, open_metrics
from tfppo.training.optimization import gradients_of, make_optimizer
from tfppo.training.profiling import Profiler
from tfppo.training.programs import compilation, optimizer_step
from tfppo.training.progress import Progress
from tfppo.training.replicas import check_divides, share_of_replica
from tfppo.training.schedules import scheduled_rate
from tfppo.training.workers import restore_together, workers_of


class RewardTrainer:
    """Trains a reward model on comparisons.

    The constructor restores the last checkpoint, where there is one.

    Args:
        model: built in the scope of the strategy, on the trunk of a language model.
        folder: the folder of the run, for checkpoints and metrics.

    Raises: UserError where the checkpoint belongs to another model, tokenizer or set of comparisons.
    """

    def __init__(
        self,
        config: RewardModelConfig,
        seed: int,
        model: RewardModel,
        tokenizer: Tokenizer,
        train: Comparisons,
        validation: Comparisons,
        strategy: tf.distribute.Strategy,
        folder: Path,
    ):
        check_divides(strategy, "reward_model.batch_size", config.batch_size)
        self.config, self.seed, self.model = config, seed, model
        self.train_data, self.validation, self.strategy, self.folder = train, validation, strategy, folder
        self.num_steps = math.ceil(config.num_epochs * len(train.prompt_ids) / config.batch_size)
        compiled = compilation()
        with strategy.scope():
            self.optimizer = make_optimizer(
                "adam",
                model.trainable_variables,
                learning_rate=config.learning_rate,
                beta_1=0.9,
                beta_2=0.999,
                epsilon=config.adam_epsilon,
                weight_decay=0.0,
                at_once=compiled.step,
            )
        self._arithmetic = compiled.arithmetic_of(model.trunk, model.trainable_variables)
        self._step = optimizer_step(
            strategy, self.optimizer, self._replica_gradients, max_grad_norm=config.max_grad_norm
        )
        self._gradients = tf.function(self._gradients_of_share, jit_compile=compiled.gradients, autograph=False)
        self._update = tf.function(self._optimizer_step, autograph=False)
        self._held_out_scores = ComparisonScorer(model, config.batch_size)
        self.workers = workers_of(strategy)
        self.keeper = CheckpointKeeper(
            folder / "reward_checkpoints",
            model=model,
            optimizer=self.optimizer,
            scalars={},
            keep=config.keep_checkpoints,
            identity={
                "tokenizer": tokenizer.digest(),
                "language model": weights_digest(model.trunk),
                "set of comparisons": digest(*(array.tobytes() for array in train)),
            },
            log=folder / "reward_training.jsonl",
            save_every=config.eval_every,
        )
        self.done = restore_together(self.keeper, model, self.workers)

    def train(self, profile_steps: int = 0) -> None:
        """Trains from the last checkpoint to the last step.

        Args: profile_steps: how many steps to record for TensorBoard's profiler, from the second one on.
        Raises: Interrupted after a request to stop, once the state is saved; UserError where training diverges, before
            anything of that is saved.
        """
        metrics = open_metrics(self.folder / "reward_training", resume_step=self.done)
        chance = math.log(self.train_data.response_ids.shape[1])
        watch = DivergenceWatch(chance, "reward_model.learning_rate", self.config.learning_rate)
        bar = Progress(
            total=self.num_steps,
            done=self.done,
            description="reward model",
            starts="compiles the update: some seconds",
        )
        profiler = Profiler(self.folder / "reward_training", profile_steps)
        with StopRequest(self.workers.any_of) as stop, profiler, closing(metrics), bar:
            while self.done < self.num_steps:
                stop.begins(f"step {self.done + 1}")
                restart_device_peak()
                profiler.begins()
                started = time.perf_counter()
                learning_rate = self.learning_rate(self.done)
                self.optimizer.learning_rate.assign(learning_rate)
                batch = self.batch(self.done)
                (loss, accuracy), norm = self._update(batch)
                scalars = {
                    "reward_model/loss": float(loss),
                    "reward_model/accuracy": float(accuracy),
                    "reward_model/gradient_norm": float(norm),
                    "reward_model/learning_rate": learning_rate,
                    "time/tokens_per_second": num_tokens(batch) / (time.perf_counter() - started),
                }
                watch.check_step(self.done + 1, scalars["reward_model/loss"], scalars["reward_model/gradient_norm"])
                self.done += 1
                due = self.done % self.config.eval_every == 0 or self.done == self.num_steps
                stopping = stop.agreed()
                if due:
                    figures = self.workers.chief_answers(
                        lambda: held_out_figures(self._held_out_scores(self.validation))
                    )
                    scalars.update({f"reward_model/held_out_{name}": float(value) for name, value in figures.items()})
                if due or stopping:
                    watch.check_before_saving(self.done, scalars.get("reward_model/held_out_loss"))
                scalars |= device_figures()
                self.report(metrics, bar, scalars)
                if due or stopping:
                    metrics.flush()
                    self.keeper.save(self.done)
                if stopping:
                    self.workers.barrier()  # a scheduler may end the chief as soon as another worker has ended
                    raise Interrupted(f"saved after {self.done} of {self.num_steps} steps")

    def learning_rate(self, step: int) -> float:
        """The learning rate after `step` updates: linear decay to 0."""
        return scheduled_rate(step, self.num_steps, peak=self.config.learning_rate, schedule="linear")

    def batch(self, step: int) -> Comparisons:
        """The step-th batch of an endless stream of comparisons, in a new order each epoch."""
        size = self.config.batch_size
        indices = stream_indices(self.seed, "reward model", step * size, size, len(self.train_data.prompt_ids))
        return Comparisons(*(array[indices] for array in self.train_data))

    def report(self, metrics: MetricsWriter, bar: Progress, scalars: dict[str, float]) -> None:
        """Writes the metrics of one step and shows the progress."""
        metrics.write(self.done, scalars)
        if "reward_model/held_out_loss" in scalars:
            bar.write(
                f"step {self.done}: held-out loss {scalars['reward_model/held_out_loss']:.3f}, "
                f"accuracy {scalars['reward_model/held_out_accuracy']:.3f}"
            )
        bar.advance(loss=f"{scalars['reward_model/loss']:.3f}", accuracy=f"{scalars['reward_model/accuracy']:.2f}")

    def _optimizer_step(self, batch):
        statistics, norm, _, _ = self._step(batch)
        return statistics, norm

    def _replica_gradients(self, batch):
        return self._gradients(share_of_replica(batch))

    def _gradients_of_share(self, batch):
        """Gradients of the rows of one replica, divided by the size of the whole batch: replicas sum up to its mean."""
        variables = [variable.value for variable in self.model.trainable_variables]

        def loss_fn():
            scores = comparison_scores(self.model, batch, self._arithmetic)
            loss = tf.reduce_sum(preference_loss(scores)) / self.config.batch_size
            hits = tf.reduce_sum(tf.cast(ranks_chosen_first(scores), tf.float32)) / self.config.batch_size
            return loss, (loss, hits)

        return gradients_of(loss_fn, variables)


def num_tokens(batch: Comparisons) -> int:
    """The number of real tokens that the model reads for a batch: each response with its prompt."""
    return int(batch.prompt_mask.sum() * batch.response_ids.shape[1] + batch.response_mask.sum())

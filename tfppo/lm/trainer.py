"""Language-model training: next-token prediction over packed sequences, until held-out perplexity stops falling."""

import math
import time
from contextlib import closing
from pathlib import Path

import tensorflow as tf

from tfppo.computation.memory import device_figures, restart_device_peak
from tfppo.config import LmConfig
from tfppo.data.packing import PackedSequences
from tfppo.data.tokenizer import Tokenizer
from tfppo.lm.likelihood import HeldOutLoss, negative_log_likelihood
from tfppo.models.folder import model_exists, save_model
from tfppo.models.language_model import LanguageModel
from tfppo.ops.seeds import seed_for, stream_indices
from tfppo.training.checkpoint import CheckpointKeeper, digest
from tfppo.training.divergence import DivergenceWatch
from tfppo.training.interrupt import Interrupted, StopRequest
from tfppo.training.metrics import MetricsWriter, open_metrics, shown_perplexity
from tfppo.training.optimization import gradients_of, make_optimizer
from tfppo.training.profiling import Profiler
from tfppo.training.programs import compilation, optimizer_step
from tfppo.training.progress import Progress
from tfppo.training.replicas import check_divides, share_of_replica
from tfppo.training.schedules import scheduled_rate
from tfppo.training.workers import restore_together, workers_of


class LmTrainer:
    """Trains a language model and keeps the best one, by held-out loss, in a model folder.

    The constructor restores the last checkpoint, where there is one.

    Args:
        model: built in the scope of the strategy.
        num_words: number of words in the held-out texts, for the perplexity a word.
        folder: the folder of the run, for checkpoints, metrics, and `lm`, the best model with its tokenizer.

    Raises: UserError where the checkpoint belongs to another model, tokenizer or set of texts.
    """

    def __init__(
        self,
        config: LmConfig,
        seed: int,
        model: LanguageModel,
        tokenizer: Tokenizer,
        train: PackedSequences,
        validation: PackedSequences,
        num_words: int,
        strategy: tf.distribute.Strategy,
        folder: Path,
    ):
        check_divides(strategy, "lm.batch_size", config.batch_size)
        self.config, self.seed, self.model, self.tokenizer = config, seed, model, tokenizer
        self.train_data, self.strategy, self.folder = train, strategy, folder
        compiled = compilation(config.jit_compile)
        with strategy.scope():
            self.optimizer = make_optimizer(
                "adamw",
                model.trainable_variables,
                learning_rate=config.learning_rate,
                beta_1=0.9,
                beta_2=config.adam_beta2,
                epsilon=1e-8,
                weight_decay=config.weight_decay,
                at_once=compiled.step,
            )
        self._arithmetic = compiled.arithmetic_of(model.trunk, model.trainable_variables)
        self._gradients = tf.function(self._gradients_of_share, jit_compile=compiled.gradients, autograph=False)
        self._step = optimizer_step(
            strategy, self.optimizer, self._replica_gradients, max_grad_norm=config.max_grad_norm
        )
        self._update = tf.function(self._optimizer_step, autograph=False)
        self.held_out = HeldOutLoss(model, validation, num_words, 4 * config.batch_size)
        self.workers = workers_of(strategy)
        self.keeper = CheckpointKeeper(
            folder / "lm_checkpoints",
            model=model,
            optimizer=self.optimizer,
            scalars={"best_loss": math.inf, "evaluations_without_improvement": 0},
            keep=config.keep_checkpoints,
            identity={"tokenizer": tokenizer.digest(), "set of texts": digest(*(array.data for array in train))},
            log=folder / "lm_training.jsonl",
            save_every=config.eval_every,
        )
        self.done = restore_together(self.keeper, model, self.workers)

    def train(self, profile_steps: int = 0) -> None:
        """Trains from the last checkpoint to the last step, or until the held-out loss stops falling.

        Args: profile_steps: how many steps to record for TensorBoard's profiler, from the second one on.
        Raises: Interrupted after a request to stop, once the state is saved; UserError where training diverges, before
            anything of that is saved.
        """
        config = self.config
        done = self.done
        watch = DivergenceWatch(math.log(self.tokenizer.vocabulary_size), "lm.learning_rate", self.config.learning_rate)
        best, waited = self.keeper.scalars["best_loss"], int(self.keeper.scalars["evaluations_without_improvement"])
        metrics = open_metrics(self.folder / "lm_training", resume_step=done)
        bar = Progress(
            total=config.num_steps, done=done, description="language model", starts="compiles the update: some seconds"
        )
        profiler = Profiler(self.folder / "lm_training", profile_steps)
        with StopRequest(self.workers.any_of) as stop, profiler, closing(metrics), bar:
            for step in range(done, config.num_steps):
                if config.patience and waited >= config.patience:
                    bar.write(f"stopped after {step} steps: no better held-out loss in {waited} evaluations")
                    break
                stop.begins(f"step {step + 1}")
                restart_device_peak()
                profiler.begins()
                started = time.perf_counter()
                learning_rate = scheduled_rate(
                    step,
                    config.num_steps,
                    peak=config.learning_rate,
                    schedule=config.schedule,
                    warmup=config.warmup_steps,
                )
                self.optimizer.learning_rate.assign(learning_rate)
                batch = self.batch(step)
                loss, norm = self._update(batch, seed_for(self.seed, "dropout", step))
                scalars = {
                    "lm/loss": float(loss),
                    "lm/gradient_norm": float(norm),
                    "lm/learning_rate": learning_rate,
                    "time/tokens_per_second": (batch.segment_ids > 0).sum() / (time.perf_counter() - started),
                }
                finished = step + 1
                watch.check_step(finished, scalars["lm/loss"], scalars["lm/gradient_norm"])
                due = finished % config.eval_every == 0 or finished == config.num_steps
                stopping = stop.agreed()
                if due:
                    figures = self.workers.chief_answers(self.held_out)
                    scalars.update({f"lm/held_out_{name}": float(value) for name, value in figures.items()})
                if due or stopping:
                    watch.check_before_saving(finished, scalars.get("lm/held_out_loss"))
                if due:
                    waited = 0 if scalars["lm/held_out_loss"] < best else waited + 1
                    if not waited:
                        best = scalars["lm/held_out_loss"]
                        save_model(self.model, self.tokenizer, self.folder / "lm")
                scalars |= device_figures()
                self.report(metrics, bar, finished, scalars)
                if due or stopping:
                    metrics.flush()
                    self.keeper.save(finished, best_loss=best, evaluations_without_improvement=waited)
                if stopping:
                    self.workers.barrier()  # a scheduler may end the chief as soon as another worker has ended
                    raise Interrupted(f"saved after {finished} of {config.num_steps} steps")
        self.complete()

    def complete(self) -> None:
        """Writes the model where it is missing although training is over, from the last checkpoint."""
        folder = self.folder / "lm"
        if model_exists(folder):
            return
        best = "" if not self.keeper.scalars["evaluations_without_improvement"] else ", which is not the best one"
        save_model(self.model, self.tokenizer, folder)
        print(f"{str(folder)!r} was missing, and is written again from the last checkpoint{best}", flush=True)

    def has_ended(self) -> bool:
        """Whether nothing is left to train from the last checkpoint."""
        waited = self.keeper.scalars["evaluations_without_improvement"]
        return self.done >= self.config.num_steps or bool(self.config.patience and waited >= self.config.patience)

    def batch(self, step: int) -> PackedSequences:
        """The step-th batch of an endless stream of sequences, in a new order each epoch."""
        size = self.config.batch_size
        indices = stream_indices(self.seed, "lm", step * size, size, len(self.train_data.inputs))
        return PackedSequences(*(array[indices] for array in self.train_data))

    def report(self, metrics: MetricsWriter, bar: Progress, finished: int, scalars: dict[str, float]) -> None:
        """Writes the metrics of one step and shows the progress."""
        metrics.write(finished, scalars)
        if "lm/held_out_perplexity" in scalars:
            bar.write(
                f"step {finished}: held-out perplexity {scalars['lm/held_out_perplexity']:.1f} a token, "
                f"{shown_perplexity(scalars['lm/held_out_word_perplexity'])} a word"
            )
        bar.advance(loss=f"{scalars['lm/loss']:.2f}", tok_s=f"{scalars['time/tokens_per_second']:.0f}")

    def _optimizer_step(self, batch, dropout_seed):
        num_tokens = tf.maximum(tf.reduce_sum(batch.weights), 1.0)
        loss, norm, _, _ = self._step(batch, num_tokens, dropout_seed)
        return loss, norm

    def _replica_gradients(self, batch, num_tokens, dropout_seed):
        # Each replica has its own dropout mask.
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        seed = dropout_seed + tf.stack([tf.cast(replica, tf.int32), 0])
        return self._gradients(share_of_replica(batch), num_tokens, seed)

    def _gradients_of_share(self, batch, num_tokens, dropout_seed):
        variables = [variable.value for variable in self.model.trainable_variables]

        def loss_fn():
            loss = negative_log_likelihood(self.model, batch, dropout_seed, self._arithmetic) / num_tokens
            return loss, loss

        return gradients_of(loss_fn, variables)

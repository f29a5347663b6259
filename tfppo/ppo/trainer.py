"""The outer loop of PPO: collect a rollout, improve the policy, adapt the KL coefficient, report, save."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfppo.computation.memory import device_figures, restart_device_peak
from tfppo.config import Config
from tfppo.config.choices import CRITIC_FREE
from tfppo.data.prompts import PromptSet
from tfppo.errors import UserError
from tfppo.models.policy import Policy
from tfppo.ops.kl import adaptive_kl_coef
from tfppo.ops.seeds import seed_for
from tfppo.ppo.dashboard import LAYOUT, OVERVIEW
from tfppo.ppo.diagnostics import Diagnostics
from tfppo.ppo.held_out import HeldOut
from tfppo.ppo.learner import Learner
from tfppo.ppo.rollout import Collected, RolloutCollector
from tfppo.ppo.types import Rollout
from tfppo.rewards.failures import told
from tfppo.training.checkpoint import CheckpointKeeper, weights_digest
from tfppo.training.interrupt import Interrupted, StopRequest
from tfppo.training.metrics import MetricsWriter, open_metrics, read_metrics
from tfppo.training.profiling import Profiler
from tfppo.training.progress import Progress
from tfppo.training.schedules import scheduled_rate
from tfppo.training.workers import restore_together


class PpoTrainer:
    """Trains a policy with PPO.

    The constructor restores the last checkpoint if there is one. Raises: UserError if that does not fit.
    A checkpoint holds policy, optimizer, moving average, iterations done, optimizer steps of the critic alone, KL
    coefficient, running moments of the scores, the best evaluation, and which engine samples, if that was measured.

    Args:
        ratio_tolerance: how far the first probability ratio of a rollout may be from 1.
        ema: the moving average.
        held_out_prompts: to evaluate the policy on in between; None: it is not.
    """

    def __init__(
        self,
        config: Config,
        collector: RolloutCollector,
        learner: Learner,
        prompts: PromptSet,
        folder: Path,
        *,
        ratio_tolerance: float,
        ema: Policy | None = None,
        held_out_prompts: PromptSet | None = None,
    ):
        self.config, self.collector, self.learner, self.prompts = config, collector, learner, prompts
        self.folder, self.ratio_tolerance, self.ema = folder, ratio_tolerance, ema
        self.num_iterations = config.ppo.total_episodes // config.ppo.rollout_batch_size
        self.diagnostics = Diagnostics(
            has_critic=config.ppo.estimator not in CRITIC_FREE, can_stop=bool(config.sampling.stop_at_eos)
        )
        self.held_out = HeldOut(
            config.evaluation,
            collector,
            held_out_prompts,
            folder,
            batch_size=config.ppo.rollout_batch_size,
            kl_coef=config.ppo.kl_coef + config.ppo.kl_loss_coef,
            seed=config.seed,
        )
        self.keeper = CheckpointKeeper(
            folder / "checkpoints",
            model=learner.policy,
            optimizer=learner.optimizer,
            extras={"ema": ema} if ema else {},
            scalars={
                "kl_coef": config.ppo.kl_coef,
                "finished": 0.0,
                "idle_steps": math.nan,  # not counted yet
                **self.state,
            },
            keep=config.keep_checkpoints,
            identity={
                "tokenizer": collector.tokenizer.digest(),
                "reference": weights_digest(collector.ref_model),
                "models of reward.functions": [
                    weights_digest(reward.model) for reward in collector.rewards if hasattr(reward, "model")
                ],
                "set of prompts": prompts.digest(),
                "ppo.trainable_blocks": config.ppo.trainable_blocks,
            },
            log=folder / "ppo.jsonl",
            save_every=config.checkpoint_every,
        )
        self.workers = learner.workers
        # iterations; of the last checkpoint
        self.done = self.saved = restore_together(self.keeper, learner.policy, self.workers)
        self.collector.state = self.keeper.scalars
        self.idle_steps = self._idle_steps(self.keeper.scalars["idle_steps"])
        self._sampled_by = collector.sampler.engine  # None until it is measured

    def train(self, profile_steps: int = 0) -> None:
        """Runs to the end, from the last checkpoint where there is one.

        Args: profile_steps: how many steps to record for TensorBoard's profiler, from the second one on.
        Raises: Interrupted after a request to stop, with everything saved; UserError where the ratio check fails, or
            where a reward function errs, with everything saved.
        """
        done, kl_coef, finished = self.restored()
        metrics = open_metrics(self.folder / "ppo", resume_step=done, overview=OVERVIEW, layout=LAYOUT)
        bar = Progress(
            total=self.num_iterations,
            done=done,
            description="PPO",
            unit="iteration",
            starts="compiles sampling and the update: up to a minute",
            every=0.0,
        )
        self.held_out.open(done, self.keeper.scalars)
        profiler = Profiler(self.folder / "ppo", profile_steps)
        with StopRequest(self.workers.any_of) as stop, profiler, closing(metrics), closing(self.held_out), bar:
            self.evaluate(bar, done, finished)
            while not finished:
                stop.begins(f"iteration {done + 1}")
                restart_device_peak()
                profiler.begins()
                clock = [time.perf_counter()]
                with self.saved_first(done, kl_coef, metrics):
                    collected = self.collect(done)
                clock.append(time.perf_counter())

                statistics = self.improve(collected.rollout, done, kl_coef)
                clock.append(time.perf_counter())
                self.check(statistics)
                self.average()

                scalars = {**statistics, **self.figures(done, collected, clock), **device_figures()}
                self.report(metrics, bar, done, scalars, collected)
                kl_coef = self.next_kl_coef(kl_coef, scalars["objective/kl"])
                done += 1
                finished = self.is_finished(done, scalars["objective/score"])
                with self.saved_first(done, kl_coef, metrics, finished):
                    self.evaluate(bar, done, finished)
                if done % self.config.checkpoint_every == 0 or finished or stop.agreed():
                    metrics.flush()
                    self.save(done, kl_coef, finished)
                    if stop.agreed():  # asked again, but only where all is saved
                        raise Interrupted(f"saved after {done} of {self.num_iterations} iterations")

    @contextmanager
    def saved_first(self, done: int, kl_coef: float, metrics: MetricsWriter, finished: bool = False) -> Iterator[None]:
        """A context for calls of rewards: whatever ends it (one that errs, a second Ctrl-C), the run is saved first.

        Neither collecting nor evaluating changes weights, and the moments of the scores go back: the state is that
        after `done` iterations.
        """
        moments = self.collector.shaper.state
        try:
            yield
        except BaseException as error:
            self.collector.shaper.state = moments
            if done > self.saved:
                with _told_after(error):
                    metrics.flush()
                    self.save(done, kl_coef, finished)
            if not isinstance(error, UserError) or not done:
                raise
            raise UserError(
                f"{error}; saved after {done} of {self.num_iterations} iterations: run the same command again to go on"
            ) from error

    def save(self, done: int, kl_coef: float, finished: bool) -> None:
        """Saves the state after `done` iterations."""
        own = {"kl_coef": kl_coef, "finished": finished, "idle_steps": self.idle_steps}
        self.keeper.save(done, **own, **self.state)
        self.saved = done

    @property
    def state(self) -> dict[str, float]:
        """What a checkpoint holds of rollouts and evaluations."""
        return {**self.collector.state, **self.held_out.state}

    def restored(self) -> tuple[int, float, bool]:
        """From the last checkpoint: iterations done, KL coefficient, and whether the run has ended."""
        scalars = self.keeper.scalars
        return self.done, scalars["kl_coef"], self.has_ended()

    def has_ended(self) -> bool:
        """Whether the last checkpoint is at the end of the run, as the settings now have it: they may have moved it."""
        if self.done >= self.num_iterations or not self.keeper.scalars["finished"]:
            return self.done >= self.num_iterations
        rows = read_metrics(self.folder / "ppo.jsonl")
        return any(self.is_finished(self.done, row["objective/score"]) for row in rows if row["step"] == self.done)

    def collect(self, step: int) -> Collected:
        """The rollout of an iteration: sampled from the policy, or the data's own texts."""
        ppo, sampling = self.config.ppo, self.config.sampling
        rows = step, ppo.rollout_batch_size, ppo.group_size
        prompts, columns = self.prompts.batch(*rows), self.prompts.columns(*rows)
        if ppo.trajectories == "dataset":
            responses = self.prompts.continuations(step, ppo.rollout_batch_size, sampling.response_length)
            return self.collector.replay(prompts, *responses, columns)
        return self.collector.collect(prompts, seed_for(self.config.seed, "sample", step), columns)

    def improve(self, rollout: Rollout, step: int, kl_coef: float) -> dict[str, float]:
        """Improves the policy by a rollout. Returns: the statistics of the update, as numbers."""
        self.learner.optimizer.learning_rate.assign(self.learning_rate(step))
        seed = seed_for(self.config.seed, "shuffle", step)
        # As tensors: a Python number would be traced anew whenever it changes.
        coefs = tf.constant(kl_coef, tf.float32), tf.constant(self.policy_coef(step))
        before = self.learner.optimizer.iterations.numpy()
        statistics = self.learner.update(rollout, seed, *coefs, tf.constant(self.idle_steps))
        if not self.policy_coef(step):
            self.idle_steps += int(self.learner.optimizer.iterations.numpy() - before)
        return {tag: float(value) for tag, value in statistics.items()}

    def learning_rate(self, step: int) -> float:
        """The rate of the update after `step` updates."""
        ppo = self.config.ppo
        return scheduled_rate(
            step,
            self.num_iterations,
            peak=ppo.learning_rate,
            schedule=ppo.schedule,
            warmup=ppo.warmup_iterations,
            floor=ppo.schedule_floor,
        )

    def policy_coef(self, step: int) -> float:
        """0 while the critic alone learns, then 1."""
        return 0.0 if step < self.config.ppo.critic_warmup_iterations else 1.0

    def evaluate(self, bar: Progress, done: int, finished: bool) -> None:
        """Measures the policy on held-out prompts where that is due, and keeps it where it is the best so far."""
        for line in self.held_out(done, finished=finished):
            bar.write(line)

    def _idle_steps(self, saved: float) -> int:
        """Optimizer steps so far in which the critic alone learnt: what is saved, if it was counted then.

        Checkpoints did not always hold it. What they hold else is the same, so that the settings tell the number.
        """
        ppo = self.config.ppo
        if math.isnan(saved):
            return min(self.done, ppo.critic_warmup_iterations) * ppo.ppo_epochs * ppo.num_minibatches
        return int(saved)

    def average(self) -> None:
        """Moves the moving average of the policy's weights by one iteration."""
        if self.ema is not None:
            update_average(self.ema, self.learner.policy, self.config.ppo.ema_decay)

    def is_finished(self, done: int, score: float) -> bool:
        """Whether the run is at its end: the last iteration, or the target score."""
        target = self.config.ppo.target_score
        return done >= self.num_iterations or (target is not None and score >= target)

    def next_kl_coef(self, kl_coef: float, kl: float) -> float:
        """The KL coefficient of the next rollout: adapted to the KL of this one where there is a target."""
        ppo = self.config.ppo
        if ppo.adaptive_kl_target is None:
            return kl_coef
        return adaptive_kl_coef(
            kl_coef,
            kl,
            target=ppo.adaptive_kl_target,
            horizon=ppo.adaptive_kl_horizon,
            num_episodes=ppo.rollout_batch_size,
        )

    def check(self, scalars: Mapping[str, float]) -> None:
        """Raises UserError where the update cannot be trusted: a first ratio away from 1, or no finite gradient."""
        ppo = self.config.ppo
        error = scalars["policy/first_ratio_error"]
        if not error <= self.ratio_tolerance:
            raise UserError(
                f"the probability ratio on the first minibatch is off by {error:.2g}, more than ppo.ratio_tolerance "
                f"{self.ratio_tolerance:g}: sampling and training disagree about the log-probabilities. Look for "
                f"weights that changed between the two, diverged weights, or a precision too low for the model "
                f"(ppo.dtype, ppo.update_dtype)"
            )
        if not math.isfinite(scalars["policy/gradient_norm"]):
            raise UserError(
                "an optimizer step of this update had a gradient that was not finite, and was left out; lower "
                f"ppo.learning_rate {ppo.learning_rate:g} or look at the rewards; the last checkpoint is intact"
            )

    def figures(self, step: int, collected: Collected, clock: Sequence[float]) -> dict[str, float]:
        """Figures of an iteration beside the update's statistics. The score is the raw one, before shaping."""
        started, sampled, updated = clock
        num_tokens = response_lengths(collected).sum()
        return {
            "objective/score": float(collected.raw_scores.mean()),
            "policy/learning_rate": self.learning_rate(step),
            "time/rollout": sampled - started,
            "time/update": updated - sampled,
            "time/reward": collected.reward_seconds,
            "time/reward_share": collected.reward_seconds / (updated - started),
            "time/tokens_per_second": num_tokens / (updated - started),
        }

    def measured(self) -> list[str]:
        """A line about what samples from now on, once it has been measured."""
        engine, known = self.collector.sampler.engine, self._sampled_by
        self._sampled_by = engine
        if known is not None or engine is None:
            return []
        return [f"sampling: {engine.name} in {engine.dtype} (the faster one by the first batch)"]

    def report(
        self, metrics: MetricsWriter, bar: Progress, step: int, scalars: dict[str, float], collected: Collected
    ) -> None:
        """Writes one iteration's figures, and now and then a table of samples."""
        every = self.config.evaluation.samples_every
        shown = {}
        if every and step % every == 0:
            rows = list(zip(collected.prompts, collected.responses, collected.raw_scores, strict=True))
            rows = rows[: self.config.evaluation.num_samples]
            bar.write(format_samples(step + 1, rows))
            shown["samples"] = [("prompt", "response", "score"), *rows]
        for line in [*self.measured(), *self.diagnostics.update(scalars)]:
            bar.write(line)
        histograms = {"rewards": collected.raw_scores, "response_lengths": response_lengths(collected)}
        metrics.write(step + 1, {**scalars, **collected.reward_means}, histograms, shown)
        bar.advance(
            score=f"{scalars['objective/score']:z.3f}",
            kl=f"{scalars['objective/kl']:z.2f}",
            tok_s=f"{scalars['time/tokens_per_second']:.0f}",
        )


@contextmanager
def _told_after(error: BaseException) -> Iterator[None]:
    """A context for a save after an error: where that fails too, both are told."""
    try:
        yield
    except UserError as failure:
        first = str(error) if isinstance(error, UserError) else told(error)
        raise UserError(f"{first}; after that, {failure}") from error


def response_lengths(collected: Collected) -> np.ndarray:
    """Real tokens of each response: [B]."""
    return collected.rollout.response_mask.numpy().sum(axis=1)


@tf.function(autograph=False)
def update_average(average: Policy, policy: Policy, decay: float) -> None:
    """average = decay * average + (1 - decay) * policy, weight by weight."""
    for mean, variable in zip(average.variables, policy.variables, strict=True):
        # As a difference: so a weight that does not learn keeps its last bit.
        old = tf.convert_to_tensor(mean)
        mean.assign(old + (1.0 - decay) * (tf.convert_to_tensor(variable) - old))


def format_samples(iteration: int, rows: Sequence[tuple[str, str, float]]) -> str:
    """Rows of (prompt, response, score) as lines for a terminal."""
    lines = [f"  {score:+z.2f}  {prompt}|{response}".replace("\n", " ") for prompt, response, score in rows]
    return "\n".join([f"samples of iteration {iteration} (score, prompt|response):", *lines])

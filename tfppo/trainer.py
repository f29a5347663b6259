"""The outer loop of PPO: collect a rollout, improve the policy, adapt the KL coefficient, say so, save."""

import time
from contextlib import closing

from tfppo.checkpoint import CheckpointKeeper
from tfppo.config import Config
from tfppo.data.prompts import PromptSet
from tfppo.errors import UserError
from tfppo.interrupt import Interrupted, StopRequest
from tfppo.learner import Learner
from tfppo.metrics import MetricsWriter
from tfppo.ops.kl import adaptive_kl_coef
from tfppo.progress import progress_bar
from tfppo.rollout import RolloutCollector
from tfppo.seeds import seed_for


class PpoTrainer:
    """Trains a policy with PPO; its state is the policy, the optimizer, the step and the KL coefficient."""

    def __init__(self, config: Config, collector: RolloutCollector, learner: Learner, prompts: PromptSet, folder):
        self.config, self.collector, self.learner, self.prompts = config, collector, learner, prompts
        self.folder = folder
        self.num_iterations = config.ppo.total_episodes // config.ppo.rollout_batch_size
        self.keeper = CheckpointKeeper(
            folder / "checkpoints",
            model=learner.policy,
            optimizer=learner.optimizer,
            scalars={"kl_coef": config.ppo.kl_coef},
            keep=config.keep_checkpoints,
        )

    def train(self):
        """Runs to the end, from the last checkpoint where there is one.

        Raises: Interrupted after a request to stop, with everything saved; UserError where the ratio check fails or the
        reward function errs.
        """
        seed, batch_size = self.config.seed, self.config.ppo.rollout_batch_size
        done = self.keeper.restore()
        kl_coef = self.keeper.scalars["kl_coef"]
        metrics = MetricsWriter(self.folder / "ppo", resume_step=done)
        bar = progress_bar(total=self.num_iterations, done=done, description="PPO")
        with StopRequest() as stop, closing(metrics), bar:
            for step in range(done, self.num_iterations):
                clock = [time.perf_counter()]
                prompts = self.prompts.batch(step, batch_size)
                rollout, texts = self.collector.collect(prompts, seed_for(seed, "sample", step))
                clock.append(time.perf_counter())

                self.learner.optimizer.learning_rate.assign(self.learning_rate(step))
                statistics = self.learner.update(rollout, seed_for(seed, "shuffle", step), kl_coef)
                scalars = {tag: float(value) for tag, value in statistics.items()}
                clock.append(time.perf_counter())
                self.check(scalars)

                self.report(metrics, bar, step, scalars, rollout, texts, clock)
                kl_coef = self.next_kl_coef(kl_coef, scalars["objective/kl"])
                finished = step + 1
                if finished % self.config.checkpoint_every == 0 or finished == self.num_iterations or stop.requested:
                    metrics.flush()
                    self.keeper.save(finished, kl_coef=kl_coef)
                if stop.requested and finished < self.num_iterations:
                    raise Interrupted(f"saved after {finished} of {self.num_iterations} iterations")

    def learning_rate(self, step):
        """The rate of the update after `step` updates: the full one first, linearly towards 0 if it decays."""
        ppo = self.config.ppo
        return ppo.learning_rate * (1.0 - step / self.num_iterations if ppo.learning_rate_decay else 1.0)

    def next_kl_coef(self, kl_coef, kl):
        """The KL coefficient of the next rollout: adapted to the KL of this one where there is a target."""
        ppo = self.config.ppo
        if ppo.kl_target is None:
            return kl_coef
        episodes = ppo.rollout_batch_size
        return float(adaptive_kl_coef(kl_coef, kl, target=ppo.kl_target, horizon=ppo.kl_horizon, num_episodes=episodes))

    def check(self, scalars):
        """Raises UserError where the update cannot be trusted: a first ratio away from 1, or no finite gradient."""
        ppo = self.config.ppo
        tolerance = ppo.ratio_tolerance or (1e-4 if ppo.dtype == "float32" else 0.2)
        error = scalars["policy/first_ratio_error"]
        if not error <= tolerance:
            raise UserError(
                f"the probability ratio on the first minibatch is off by {error:.2g}, more than ppo.ratio_tolerance "
                f"{tolerance:g}: sampling and training disagree about the log-probabilities. Look for weights that "
                f"changed between the two, a precision too low for the model (ppo.dtype), or diverged weights"
            )
        if scalars["policy/steps_taken"] == 0.0:
            raise UserError(
                "no optimizer step of this update had a finite gradient; lower ppo.learning_rate "
                f"{ppo.learning_rate:g} or look at the rewards; the last checkpoint is intact"
            )

    def report(self, metrics, bar, step, scalars, rollout, texts, clock):
        """Writes one iteration's figures, and now and then a table of samples."""
        started, collected, updated = clock
        scalars["policy/learning_rate"] = self.learning_rate(step)
        scalars["time/rollout"], scalars["time/update"] = collected - started, updated - collected
        num_tokens = float(rollout.response_mask.numpy().sum())
        scalars["time/tokens_per_second"] = num_tokens / (updated - started)
        histograms = {
            "rewards": rollout.scores.numpy(),
            "response_lengths": rollout.response_mask.numpy().sum(axis=1),
        }
        every = self.config.evaluation.samples_every
        shown = {}
        if every and step % every == 0:
            rows = list(zip(texts.prompts, texts.responses, rollout.scores.numpy(), strict=True))
            rows = rows[: self.config.evaluation.num_samples]
            bar.write(format_samples(step + 1, rows))
            shown["samples"] = [("prompt", "response", "score"), *rows]
        metrics.write(step + 1, scalars, histograms, shown)
        bar.update()
        bar.set_postfix(
            reward=f"{scalars['objective/score']:.3f}",
            kl=f"{scalars['objective/kl']:.2f}",
            tok_s=f"{scalars['time/tokens_per_second']:.0f}",
        )


def format_samples(iteration, rows):
    """Rows of (prompt, response, score) as lines for a terminal."""
    lines = [f"  {score:+.2f}  {prompt}|{response}".replace("\n", " ") for prompt, response, score in rows]
    return "\n".join([f"samples of iteration {iteration} (score, prompt|response):", *lines])

"""Evaluation while PPO trains: the policy on held-out prompts now and then, and the best policy kept.

It samples, looks the reference up and scores by the collector that training uses, in batches of the same shape, so that
nothing is compiled for it. Prompts and random numbers are the same each time, and none of training's are used.
"""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfppo.config import EvaluationConfig
from tfppo.data.prompts import PromptSet
from tfppo.data.report import tell
from tfppo.models.folder import read_about, save_model
from tfppo.ops.seeds import seed_for
from tfppo.ops.shapes import repeat_rows
from tfppo.ppo.dashboard import OVERVIEW_OF_EVALUATION
from tfppo.ppo.rollout import RolloutCollector
from tfppo.ppo.types import Samples
from tfppo.training.metrics import MetricsWriter, open_metrics, read_metrics

FEW_PROMPTS = 32  # fewer give a rough mean score


class Best(NamedTuple):
    """The best evaluation so far."""

    iteration: int = -1  # after how many iterations; -1: there is none
    score: float = 0.0
    kl: float = 0.0


class HeldOut:
    """Evaluates the policy of a collector on held-out prompts, and keeps the best one in WORKDIR/policy_best.

    Args:
        prompts: to choose from; None, as `every` 0, switches evaluation off.
        batch_size: of the rollouts of training.
        kl_coef: weight of the KL in the figure "rlhf_reward": in the reward and in the loss of training.
        folder: WORKDIR; `ppo_evaluation` in it holds the figures, as `ppo` does those of training.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        collector: RolloutCollector,
        prompts: PromptSet | None,
        folder: Path,
        *,
        batch_size: int,
        kl_coef: float,
        seed: int,
    ):
        self.config, self.collector, self.batch_size = config, collector, batch_size
        self.kl_coef, self.seed, self.folder = kl_coef, seed, folder
        self.prompts = (
            prompts.sample(config.num_prompts_in_training or batch_size) if prompts and config.every else None
        )
        self._num_given = len(prompts) if prompts else 0
        self.best = Best()
        self._metrics: MetricsWriter | None = None
        self._measured = -1  # after so many iterations

    @property
    def state(self) -> dict[str, float]:
        """What a resumed run needs to go on: the best evaluation so far."""
        return {f"best_{name}": float(value) for name, value in self.best._asdict().items()}

    def open(self, done: int, state: Mapping[str, float]) -> None:
        """Goes on after `done` iterations, with the state of that time."""
        iteration, score, kl = (state[name] for name in self.state)
        self.best = Best(int(iteration), score, kl)
        if self.prompts is None:
            return
        self._warn_of_few(len(self.prompts))
        # What a fresh run measures before its first iteration is step 0.
        record = self.folder / "ppo_evaluation"
        self._metrics = open_metrics(record, resume_step=done or -1, overview=OVERVIEW_OF_EVALUATION, sparse=True)
        found = self.collector.workers.chief_answers(self._found)
        self._measured = int(found["measured"])
        if int(found["kept"]) == self.best.iteration:
            return
        # The process was killed after it had kept a later policy, or the folder has been removed.
        if self.best.iteration == done:
            self._keep()
        else:
            self.best = Best()

    def _found(self):
        """After how many iterations the last evaluation on record was, and the policy that is kept."""
        rows = read_metrics(self.folder / "ppo_evaluation.jsonl")
        kept = read_about(self._best_folder).get("iteration", -1)
        return {"measured": max((row["step"] for row in rows), default=-1), "kept": kept}

    def __call__(self, done: int, *, finished: bool) -> list[str]:
        """Evaluates the policy after `done` iterations where that is due and not yet done.

        Returns: a line about it, or none.

        Raises: UserError where a reward function errs.
        """
        due = self.prompts is not None and (done % self.config.every == 0 or finished)
        if self._metrics is None or not due or self._measured == done:
            return []
        started = time.perf_counter()
        figures, samples = self.measure()
        score, kl = figures["evaluation/score"], figures["evaluation/kl"]
        candidate = Best(done, score, kl)
        if self.best.iteration < 0 or self.value(candidate) > self.value(self.best):
            self.best = candidate
            self._keep()
        figures["time/evaluation"] = time.perf_counter() - started
        self._metrics.write(done, figures, texts={"evaluation/samples": samples})
        self._metrics.flush()  # a checkpoint of this iteration follows
        self._measured = done
        which = "this one" if self.best is candidate else f"that after {self.best.iteration} iterations"
        line = f"held-out prompts after {done} iterations: score {score:z.3f}, KL {kl:z.2f}; policy_best is {which}"
        return [line]

    def value(self, evaluation: Best) -> float:
        """The figure that policies are compared by; minus infinity where it is no number."""
        coefs = {"score": 0.0, "rlhf_reward": self.kl_coef}
        value = evaluation.score - coefs[self.config.best_by] * evaluation.kl
        return value if math.isfinite(value) else -math.inf

    def measure(self) -> tuple[dict[str, float], list[tuple[object, ...]]]:
        """Figures of one response to each prompt, by tag, and a table of the first responses."""
        assert self.prompts is not None
        samples: list[tuple[object, ...]] = [("prompt", "response", "score")]
        measured: list[list[np.ndarray]] = []  # of a batch: score, KL, length, whether it has stopped; each [rows]
        for number, (batch, columns) in enumerate(self.prompts.batches(self.batch_size)):
            rows = len(batch.prompt_ids)
            # Filled up with copies to the size that training has compiled.
            whole = tf.nest.map_structure(lambda tensor: repeat_rows(tensor, self.batch_size), batch)
            drawn = self.collector.sampler(whole, seed_for(self.seed, "held-out", number))
            ref_logprobs = self.collector.teacher_forcing.ref_logprobs(whole, drawn.response_ids, drawn.response_mask)
            kl = tf.reduce_sum((drawn.logprobs - ref_logprobs) * drawn.response_mask, axis=1)[:rows]
            scored, scores, _, stopped = self.collector.score(batch, Samples(*(part[:rows] for part in drawn)), columns)
            totals = scores.reshape(rows, -1).sum(axis=1)
            lengths = drawn.response_mask[:rows].numpy().sum(axis=1)
            measured.append([totals, kl.numpy(), lengths, stopped.numpy()])
            samples += zip(scored.texts, scored.responses, totals.tolist(), strict=True)
        score, kl, length, stopped = (float(np.concatenate(parts).mean()) for parts in zip(*measured, strict=True))
        figures = {
            "evaluation/prompts": float(len(self.prompts)),
            "evaluation/score": score,
            "evaluation/rlhf_reward": score - self.kl_coef * kl,
            "evaluation/kl": kl,
            "evaluation/length": length,
            "evaluation/stopped": stopped,
        }
        return figures, samples[: 1 + self.config.num_samples]

    def close(self) -> None:
        """Closes the record."""
        if self._metrics is not None:
            self._metrics.close()

    def _warn_of_few(self, count):
        if count < FEW_PROMPTS:
            more = "give more data" if count == self._num_given else "raise evaluation.num_prompts_in_training"
            tell(
                f"held-out prompts: {count}, fewer than {FEW_PROMPTS}: their mean score, and by it the choice of "
                f"policy_best, depends much on chance; {more}"
            )

    @property
    def _best_folder(self):
        return self.folder / "policy_best"

    def _keep(self):
        policy, tokenizer = self.collector.sampler.policy, self.collector.tokenizer
        about = {**self.best._asdict(), "best_by": self.config.best_by, "value": self.value(self.best)}
        save_model(policy, tokenizer, self._best_folder, about)

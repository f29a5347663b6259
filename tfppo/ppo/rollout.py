"""From prompts to a Rollout: sample (or replay the data's responses), score, compute reference log-probabilities."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfppo.computation.computation import Computation
from tfppo.config import RewardConfig, SamplingConfig
from tfppo.data.prompts import Columns, Prompts
from tfppo.data.tokenizer import Tokenizer
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.ops.shaping import mask_after_last
from tfppo.ppo.sampler import Sampler
from tfppo.ppo.scored_part import score_responses
from tfppo.ppo.teacher_forcing import TeacherForcing
from tfppo.ppo.types import Rollout, Samples
from tfppo.rewards.batch import Batch
from tfppo.rewards.scoring import Reward
from tfppo.rewards.shaping import ScoreShaper
from tfppo.training.workers import workers_of


class Collected(NamedTuple):
    """A rollout, and its texts and scores for logs."""

    rollout: Rollout
    prompts: list[str]
    responses: list[str]
    raw_scores: np.ndarray  # [B], weighted sum of the reward functions before any shaping
    reward_means: dict[str, float]  # {"reward/NAME": mean score} of each reward function
    reward_seconds: float  # that the reward functions took, beside the reference


class RolloutCollector:
    """Collects rollouts of a policy.

    Args:
        ref_model: the frozen language model that the KL penalty is measured against.
        rewards: callables Batch -> scores, each with a `name`.
    """

    def __init__(
        self,
        policy: Policy,
        ref_model: LanguageModel,
        *,
        sampling: SamplingConfig,
        reward: RewardConfig,
        computation: Computation,
        tokenizer: Tokenizer,
        rewards: Sequence[Reward],
        strategy: tf.distribute.Strategy,
    ):
        self.ref_model, self.tokenizer, self.rewards, self.reward = ref_model, tokenizer, rewards, reward
        self.shaper, self.workers = ScoreShaper(reward), workers_of(strategy)
        self._values_after_last = reward.placement == "after_last"
        self.sampler = Sampler(
            policy,
            sampling,
            computation.sampling.engines,
            eos_id=tokenizer.eos_id,
            pad_id=tokenizer.pad_id,
            strategy=strategy,
            value_after_stop=self._values_after_last,
        )
        self.teacher_forcing = TeacherForcing(
            policy,
            ref_model,
            computation.scoring.engine,
            temperature=sampling.temperature,
            lengths_vary=bool(sampling.stop_at_eos),
            strategy=strategy,
        )

    @property
    def state(self) -> dict[str, float]:
        """What a resumed run needs to go on: the moments of the scores, and which engine samples."""
        return {**self.shaper.state, **self.sampler.state}

    @state.setter
    def state(self, state: Mapping[str, float]) -> None:
        self.shaper.state = {name: state[name] for name in self.shaper.state}
        self.sampler.state = state

    def collect(self, prompts: Prompts, seed: np.ndarray, columns: Columns | None = None) -> Collected:
        """One rollout of prompts [B, P], sampled from the policy.

        Args: columns: of the data, one value a prompt, for reward functions.
        Raises: UserError where a reward function fails, or returns anything but finite numbers in the right count.
        """
        return self._complete(prompts, self.sampler(prompts, seed), columns)

    def replay(
        self,
        prompts: Prompts,
        response_ids: np.ndarray,
        response_mask: np.ndarray,
        columns: Columns | None = None,
    ) -> Collected:
        """One rollout of the data's own responses: the data's actions, and how likely the policy finds them.

        Args: response_ids int32 [B, R]; response_mask float32 [B, R]; columns: as for `collect`.
        Raises: UserError as `collect` does.
        """
        response_ids, response_mask = tf.convert_to_tensor(response_ids), tf.convert_to_tensor(response_mask)
        logprobs, values = self.teacher_forcing.of_policy(*prompts, response_ids, response_mask)
        valued = mask_after_last(response_mask) if self._values_after_last else response_mask
        stopped = tf.reduce_any((response_ids == self.tokenizer.eos_id) & (response_mask > 0), axis=1)
        samples = Samples(response_ids, response_mask, logprobs, values * valued, stopped)
        return self._complete(prompts, samples, columns)

    def _complete(self, prompts: Prompts, samples: Samples, columns: Columns | None) -> Collected:
        """Samples with their scores, and their log-probabilities under the reference."""
        with ThreadPoolExecutor(max_workers=1) as worker:  # the reference computes while Python scores
            responses = samples.response_ids, samples.response_mask
            reference = worker.submit(self.teacher_forcing.ref_logprobs, prompts, *responses)
            started = time.perf_counter()
            seconds = 0.0

            def scored():
                nonlocal seconds
                seconds = time.perf_counter() - started
                reference.result()

            batch, scores, means, stopped = self.score(prompts, samples, columns, meanwhile=scored)
            ref_logprobs = reference.result()
        shaped = self.shaper(scores, stopped.numpy(), batch.lengths)
        rollout = Rollout(*prompts, *samples[:4], ref_logprobs, tf.constant(shaped), stopped)
        raw_scores = scores.reshape(len(scores), -1).sum(axis=1)
        return Collected(rollout, batch.texts, batch.responses, raw_scores, means, seconds)

    def score(
        self,
        prompts: Prompts,
        samples: Samples,
        columns: Columns | None = None,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> tuple[Batch, np.ndarray, dict[str, float], tf.Tensor]:
        """Scores samples; of several workers the chief does, once for the whole batch.

        Args: meanwhile: is called when that is done, before the scores are told.
        Returns: Batch, scores, mean of each reward function, which responses stopped.
        """
        batch, scores, means, found = score_responses(
            prompts,
            samples.response_ids.numpy(),
            samples.response_mask.numpy(),
            columns or {},
            tokenizer=self.tokenizer,
            rewards=self.rewards,
            reward=self.reward,
            ask=partial(self.workers.chief_answers, meanwhile=meanwhile),
        )
        return batch, scores, means, samples.stopped if found is None else tf.constant(found)

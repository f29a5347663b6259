"""Collector and learner of one policy, wired in one place: the same temperature, engines and lengths for both."""

from collections.abc import Sequence

import tensorflow as tf

from tfppo.computation.computation import Computation
from tfppo.config import PpoConfig, RewardConfig, SamplingConfig
from tfppo.data.tokenizer import Tokenizer
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.ppo.learner import Learner
from tfppo.ppo.rollout import RolloutCollector
from tfppo.rewards.scoring import Reward


def assemble(
    policy: Policy,
    ref_model: LanguageModel,
    *,
    ppo: PpoConfig,
    sampling: SamplingConfig,
    reward: RewardConfig,
    computation: Computation,
    tokenizer: Tokenizer,
    rewards: Sequence[Reward],
    strategy: tf.distribute.Strategy,
) -> tuple[RolloutCollector, Learner]:
    """What collects rollouts of a policy, and what learns from them; the arguments are theirs."""
    collector = RolloutCollector(
        policy,
        ref_model,
        sampling=sampling,
        reward=reward,
        computation=computation,
        tokenizer=tokenizer,
        rewards=rewards,
        strategy=strategy,
    )
    learner = Learner(
        policy,
        ppo,
        reward,
        strategy,
        temperature=sampling.temperature,
        engine=computation.update.engine,
        lengths_vary=bool(sampling.stop_at_eos) or ppo.trajectories == "dataset",
    )
    return collector, learner

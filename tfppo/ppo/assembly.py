"""Collector and learner of one policy, wired in one place: the same temperature, engines and lengths for both."""

from tfppo.computation.computation import Computation
from tfppo.config import PpoConfig, RewardConfig, SamplingConfig
from tfppo.ppo.learner import Learner
from tfppo.ppo.rollout import RolloutCollector


def assemble(
    policy,
    ref_model,
    *,
    ppo: PpoConfig,
    sampling: SamplingConfig,
    reward: RewardConfig,
    computation: Computation,
    tokenizer,
    rewards,
    strategy,
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
        lengths_vary=sampling.stop_at_eos or ppo.trajectories == "dataset",
    )
    return collector, learner

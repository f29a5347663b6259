"""PPO as the article has it: likelihood reward, discounted returns, advantages G - V, ten epochs over each batch.

    tfppo train-ppo --config=article --workdir=runs/article \\
        --config.language_model=runs/quickstart/lm

The reward of a response is its summed log-probability under a frozen scorer, the language model itself. Trajectories
are sampled from the policy; with --config.ppo.trajectories=dataset they are the data's own texts, importance-weighted
against the policy at the start of each round. Training ends at the target score or the maximum of rounds.
"""

from tfppo.config import Config, PpoConfig, RewardConfig, SamplingConfig


def get_config():
    return Config(
        sampling=SamplingConfig(response_length=24, stop_at_eos=True),
        reward=RewardConfig(functions=("likelihood:",), weights=(1.0,), scale=0.01),
        ppo=PpoConfig(
            total_episodes=3200,
            rollout_batch_size=32,
            target_score=-40.0,
            ppo_epochs=10,
            num_minibatches=1,
            estimator="monte_carlo",
            gamma=0.99,
            clip_range=0.2,
            value_clip_range=None,
            value_coef=0.5,
            kl_coef=0.0,
            critic="shared",
            optimizer="adam",
            adam_epsilon=1e-5,
            learning_rate=1e-4,
            schedule="constant",
        ),
    )

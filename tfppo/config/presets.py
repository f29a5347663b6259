"""Recipes by name: the settings of other PPO systems.

Each function returns a Config with the data and model of the quickstart, and the sampling, reward and PPO settings of
the recipe. Where a recipe has a reward model, name yours in `reward.functions`; where its critic starts from the reward
model, name that folder in `ppo.critic_init`.
"""

from tfppo.config import Config, PpoConfig, RewardConfig, SamplingConfig


def openai_2019() -> Config:
    """Ziegler et al. 2019, openai/lm-human-preferences: the settings of its sentiment task.

    Full-length responses without a stop; the score is of the text up to the first end token after 16 tokens, is -1
    where there is none, and stands at the last position; rewards whitened, KL coefficient adaptive, no gradient clip.
    Prompts of up to 64 tokens: the language model needs 89 positions.
    """
    config = Config(
        sampling=SamplingConfig(response_length=24, temperature=0.7, stop_at_eos=False),
        reward=RewardConfig(
            placement="last_position",
            truncate_at_eos=True,
            truncate_after=16,
            missing_stop_penalty=-1.0,
            missing_stop_mode="replace",
            whiten=True,
        ),
        ppo=PpoConfig(
            total_episodes=1_000_000,
            rollout_batch_size=512,
            ppo_epochs=4,
            num_minibatches=1,
            gamma=1.0,
            gae_lambda=0.95,
            whiten_scope="minibatch",
            clip_range=0.2,
            value_clip_range=0.2,
            value_coef=0.1,
            kl_coef=0.15,
            adaptive_kl_target=6.0,
            adaptive_kl_horizon=10_000,
            optimizer="adam",
            learning_rate=1e-5,
            adam_epsilon=1e-5,
            schedule="linear",
            max_grad_norm=0.0,
            critic="shared",
        ),
    )
    config.data.max_prompt_tokens = config.data.max_given_prompt_tokens = 64
    config.model.max_sequence_length = 128
    return config


def openai_tldr_n_plus() -> Config:
    """Huang et al. 2024, "The N+ implementation details of RLHF with PPO": Stiennon et al. 2020 on TL;DR.

    The score stands one position after the end token, and is -1 where there is none; separate critic.
    """
    config = Config(
        sampling=SamplingConfig(response_length=53, temperature=0.7, stop_at_eos=True),
        reward=RewardConfig(placement="after_last", missing_stop_penalty=-1.0, missing_stop_mode="replace"),
        ppo=PpoConfig(
            total_episodes=1_000_000,
            rollout_batch_size=512,
            ppo_epochs=4,
            num_minibatches=1,
            gamma=1.0,
            gae_lambda=0.95,
            clip_range=0.2,
            value_clip_range=0.2,
            value_coef=0.1,
            kl_coef=0.05,
            optimizer="adamw",
            learning_rate=3e-6,
            adam_epsilon=1e-5,
            weight_decay=0.01,  # PyTorch's default, which the recipe leaves as it is
            schedule="linear",
            max_grad_norm=0.0,
            critic="separate",
            critic_learning_rate=3e-6,  # one optimizer has both
        ),
    )
    config.data.max_prompt_tokens = config.data.max_given_prompt_tokens = 512
    config.model.max_sequence_length = 1024
    return config


def trl() -> Config:
    """The PPO trainer of TRL as of its version 1.12, the last that had one.

    As N+, but advantages are whitened with the unbiased variance, Adam has PyTorch's epsilon, and a missing end token
    costs nothing unless `reward.missing_stop_penalty` says so, which then is subtracted.
    """
    config = openai_tldr_n_plus()
    config.reward.missing_stop_penalty = None
    config.reward.missing_stop_mode = "subtract"
    config.ppo.whiten_unbiased = True
    config.ppo.adam_epsilon = 1e-8
    config.ppo.weight_decay = 0.0
    config.ppo.rollout_batch_size = 64
    return config


def openrlhf() -> Config:
    """OpenRLHF's PPO defaults: one epoch of eight minibatches, lambda 1, separate critic at nine times the rate."""
    return Config(
        sampling=SamplingConfig(response_length=24, temperature=1.0, stop_at_eos=True),
        reward=RewardConfig(placement="last_token", clip=10.0),
        ppo=PpoConfig(
            total_episodes=1_024_000,
            rollout_batch_size=1024,
            ppo_epochs=1,
            num_minibatches=8,
            gamma=1.0,
            gae_lambda=1.0,
            clip_range=0.2,
            value_clip_range=0.5,
            value_coef=1.0,  # the critic has an optimizer of its own: its loss is not weighed
            kl_coef=0.01,
            optimizer="adamw",
            learning_rate=1e-6,
            critic_learning_rate=9e-6,
            adam_beta2=0.95,
            adam_epsilon=1e-8,
            schedule="cosine",
            schedule_floor=0.1,
            warmup_iterations=30,  # 3 % of the iterations
            max_grad_norm=1.0,
            critic="separate",
        ),
    )


PRESETS = {preset.__name__: preset for preset in (openai_2019, openai_tldr_n_plus, trl, openrlhf)}

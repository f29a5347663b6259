"""Trains a reward model on comparisons: a prompt, the response that was chosen, and those that were rejected.

    python tools/train_reward_model.py --config=configs/movie_snippets.py --workdir=runs/movies \
        --config.reward_model.source=comparisons.jsonl

Starts from WORKDIR/lm, or from the model in the folder that --config.language_model names. Leaves the reward model,
normalised, in WORKDIR/reward_model: a reward of PPO (reward.functions) and a start for its critic (ppo.critic_init).
Run the same command again to go on after an interruption.
"""

from pathlib import Path

from absl.flags import FlagValues

from tfppo.config import Config
from tfppo.stages import cli

CONFIG = Path(__file__).parents[1] / "configs" / "movie_snippets.py"


def main(config: Config, workdir: str, flags: FlagValues) -> None:
    from tfppo.stages.reward_model import train_reward_model
    from tfppo.stages.workdir import open_run

    train_reward_model(config, *open_run(config, workdir))
    print(f"reward model: {workdir}/reward_model")


if __name__ == "__main__":
    cli.run(main, default_config=str(CONFIG), trains=True)

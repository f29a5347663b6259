"""Fine-tunes a language model with PPO.

    python tools/train_ppo.py --config=configs/movie_snippets.py --workdir=runs/movies

Starts from WORKDIR/lm, or from the folder that --config.language_model names; leaves WORKDIR/policy and the picture
WORKDIR/reward_over_kl.png. Run the same command again to go on after an interruption.
"""

from pathlib import Path

from absl.flags import FlagValues

from tfppo.config import Config
from tfppo.stages import cli

CONFIG = Path(__file__).parents[1] / "configs" / "movie_snippets.py"


def main(config: Config, workdir: str, flags: FlagValues) -> None:
    from tfppo.stages.ppo import train_ppo
    from tfppo.stages.workdir import open_run

    train_ppo(config, *open_run(config, workdir))
    print(f"policy: {workdir}/policy")


if __name__ == "__main__":
    cli.run(main, default_config=str(CONFIG), trains=True)

"""Fine-tunes a language model with PPO.

    tfppo train-ppo --config=movie_snippets --workdir=runs/movies

Starts from WORKDIR/lm, or from the folder that --config.language_model names; leaves WORKDIR/policy and the picture
WORKDIR/reward_over_kl.png. Run the same command again to go on after an interruption.
"""

from absl.flags import FlagValues

from tfppo.config import Config
from tfppo.stages import cli


def main(config: Config, workdir: str, flags: FlagValues) -> None:
    """Fine-tunes the language model of a run."""
    from tfppo.stages.ppo import train_ppo
    from tfppo.stages.results import ppo_result
    from tfppo.stages.workdir import open_run

    folder, strategy = open_run(config, workdir)
    train_ppo(config, folder, strategy)
    print(f"policy: {workdir}/policy\nresult: {ppo_result(folder)}")


def run() -> None:
    """The command, with the flags of sys.argv."""
    cli.run(main, doc=__doc__, then=cli.AFTER_PPO, trains=True)

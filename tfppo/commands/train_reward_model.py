"""Trains a reward model on comparisons: a prompt, the response that was chosen, and those that were rejected.

    tfppo train-reward-model --config=movie_snippets --workdir=runs/movies \
        --config.reward_model.source=comparisons.jsonl

Starts from WORKDIR/lm, or from the model in the folder that --config.language_model names. Leaves the reward model,
normalised, in WORKDIR/reward_model: a reward of PPO (reward.functions) and a start for its critic (ppo.critic_init).
Run the same command again to go on after an interruption.
"""

from absl.flags import FlagValues

from tfppo.config import Config
from tfppo.stages import cli

THEN = (
    cli.Next(
        "fine-tune with it",
        "train-ppo",
        ("--config.reward.functions=('reward_model:',)",),
        without=("reward.functions", "reward.weights"),
    ),
)


def main(config: Config, workdir: str, flags: FlagValues) -> None:
    """Trains the reward model of a run."""
    from tfppo.stages.results import reward_model_result
    from tfppo.stages.reward_model import train_reward_model
    from tfppo.stages.workdir import open_run

    folder, strategy = open_run(config, workdir)
    train_reward_model(config, folder, strategy)
    print(f"reward model: {workdir}/reward_model\nresult: {reward_model_result(folder)}")


def run() -> None:
    """The command, with the flags of sys.argv."""
    cli.run(main, doc=__doc__, then=THEN, trains=True)

"""Trains a tokenizer and a language model; supervised fine-tuning where the data has prompts.

    tfppo train-lm --config=movie_snippets --workdir=runs/movies

Starts anew, or from the model in the folder that --config.language_model names. Leaves the best model, by held-out
loss, in WORKDIR/lm. Run the same command again to go on after an interruption.
"""

from absl.flags import FlagValues

from tfppo.config import Config
from tfppo.stages import cli

# The model that they take is the one that was trained, not the one that it started from.
THEN = (
    cli.Next("fine-tune it", "train-ppo", without=("language_model",)),
    cli.Next("try it", "generate", ("--prompt=...",), without=("language_model",)),
)


def main(config: Config, workdir: str, flags: FlagValues) -> None:
    """Trains the language model of a run."""
    from tfppo.stages.language_model import train_language_model
    from tfppo.stages.results import language_model_result
    from tfppo.stages.workdir import open_run

    folder, strategy = open_run(config, workdir)
    train_language_model(config, folder, strategy)
    print(f"language model: {workdir}/lm\nresult: {language_model_result(folder)}")


def run() -> None:
    """The command, with the flags of sys.argv."""
    cli.run(main, doc=__doc__, then=THEN, trains=True)

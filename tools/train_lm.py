"""Trains a tokenizer and a language model; supervised fine-tuning where the data has prompts.

    python tools/train_lm.py --config=configs/movie_snippets.py --workdir=runs/movies

Starts anew, or from the model in the folder that --config.language_model names. Leaves the best model, by held-out
loss, in WORKDIR/lm. Run the same command again to go on after an interruption.
"""

from pathlib import Path

from absl.flags import FlagValues

from tfppo.config import Config
from tfppo.stages import cli

CONFIG = Path(__file__).parents[1] / "configs" / "movie_snippets.py"


def main(config: Config, workdir: str, flags: FlagValues) -> None:
    from tfppo.stages.language_model import train_language_model
    from tfppo.stages.workdir import open_run

    train_language_model(config, *open_run(config, workdir))
    print(f"language model: {workdir}/lm")


if __name__ == "__main__":
    cli.run(main, default_config=str(CONFIG), trains=True)

"""Continues prompts with a trained model.

    python tools/generate.py --workdir=runs/movies --prompt="The film is" --prompt="A story of"

Prints one continuation a prompt; the same --config.seed gives the same text.
"""

from pathlib import Path
from types import ModuleType

from absl.flags import FlagValues

from tfppo.config import Config
from tfppo.stages import cli

CONFIG = Path(__file__).parents[1] / "configs" / "movie_snippets.py"


def main(config: Config, workdir: str, flags: FlagValues) -> None:
    from tfppo.stages.generate import generate
    from tfppo.stages.workdir import open_run

    folder, _ = open_run(config, workdir)
    prompts = flags.prompt or [""]
    for prompt, response in zip(prompts, generate(config, folder, flags.model, prompts), strict=True):
        print(f"{prompt}|{response}")


def define_flags(flags: ModuleType) -> None:
    flags.DEFINE_multi_string("prompt", None, "Text to continue; may be given several times.")
    flags.DEFINE_string(
        "model",
        None,
        "Folder of the model, or its name in WORKDIR, such as policy_best; default policy, or lm before PPO.",
    )


if __name__ == "__main__":
    cli.run(main, default_config=str(CONFIG), define_flags=define_flags)

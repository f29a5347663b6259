"""Continues prompts with a trained model.

    tfppo generate --workdir=runs/movies --prompt="The film is" --prompt="A story of"

Prints one continuation a prompt; the same --config.seed gives the same text.
"""

from types import ModuleType

from absl.flags import FlagValues

from tfppo.config import Config
from tfppo.stages import cli


def main(config: Config, workdir: str, flags: FlagValues) -> None:
    """Continues the prompts of the flags."""
    from tfppo.stages.generate import generate
    from tfppo.stages.workdir import open_run

    folder, _ = open_run(config, workdir)
    responses = generate(config, folder, flags.model, flags.prompt)
    for prompt, response in zip(flags.prompt, responses, strict=True):
        print(f"{prompt}|{response}")


def define_flags(flags: ModuleType) -> None:
    """The flags of this command alone."""
    flags.DEFINE_multi_string("prompt", None, "Text to continue; give it several times for several texts.")
    flags.DEFINE_string(
        "model",
        None,
        "Folder of the model, or its name in WORKDIR (policy_best); default policy, or lm before PPO.",
    )


def run() -> None:
    """The command, with the flags of sys.argv."""
    cli.run(
        main,
        doc=__doc__,
        define_flags=define_flags,
        required={"prompt": "write --prompt=TEXT, the text to continue; --prompt= continues nothing"},
    )

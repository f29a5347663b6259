"""The command `tfppo`: finds the command that is named, and runs it."""

import ast
import difflib
import importlib
import sys
from pathlib import Path

from tfppo.stages.cli import EXIT_USER_ERROR, HELP_FLAGS
from tfppo.stages.overrides import shipped_configs

COMMANDS = (
    "quickstart",
    "train-lm",
    "train-reward-model",
    "train-ppo",
    "evaluate",
    "generate",
    "export",
    "benchmark",
    "estimate",
)


def main() -> None:
    """Runs the command that the first argument names, with the rest as its flags; a mistake ends with exit code 1."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in HELP_FLAGS:
        print(overview())
    elif name == "--version":
        from tfppo import __version__

        print(f"tfppo {__version__}")
    elif name in COMMANDS:
        sys.argv = ["tfppo", *arguments]
        importlib.import_module(f"tfppo.commands.{_module(name)}").run()
    else:
        nearest = difflib.get_close_matches(name.lstrip("-").replace("_", "-"), COMMANDS, n=1)
        hint = f"did you mean tfppo {nearest[0]}?" if nearest else "tfppo --help lists them"
        print(f"error: {name!r} is no command of tfppo; {hint}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


def overview() -> str:
    """What --help prints: the commands with what each one does, and the configs that come along."""
    lines = [
        "PPO fine-tuning of Transformer language models in TensorFlow and Keras.",
        "",
        "    tfppo COMMAND --workdir=FOLDER [--config=NAME] [--config.section.field=value ...]",
        "",
        *(f"  {name:20}{_purpose(name)}" for name in COMMANDS),
        "",
        f"Configs, for --config: {', '.join(shipped_configs())}, or a file of your own.",
        "tfppo COMMAND --help lists the command's flags, and every setting with its value and meaning.",
    ]
    return "\n".join(lines)


def _module(name):
    return name.replace("-", "_")


def _purpose(name):
    # Read, not imported: two of the modules define flags of the same names.
    source = Path(__file__).with_name(f"{_module(name)}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]

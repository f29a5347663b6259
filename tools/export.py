"""Exports a policy as a SavedModel that continues strings, for TensorFlow Serving or plain TensorFlow.

    python tools/export.py --config=configs/movie_snippets.py --workdir=runs/movies

Writes WORKDIR/export/1, and the next number at every further call.
"""

from pathlib import Path
from types import ModuleType

from absl.flags import FlagValues

from tfppo.config import Config
from tfppo.stages import cli

CONFIG = Path(__file__).parents[1] / "configs" / "movie_snippets.py"


def main(config: Config, workdir: str, flags: FlagValues) -> None:
    from tfppo.stages.export import export_model
    from tfppo.stages.workdir import model_folder, open_run

    folder, _ = open_run(config, workdir)
    print(f"SavedModel: {export_model(config, folder, model_folder(folder, flags.model))}")


def define_flags(flags: ModuleType) -> None:
    flags.DEFINE_string(
        "model", None, "Folder of the model, or its name in WORKDIR, such as policy_best; default policy."
    )


if __name__ == "__main__":
    cli.run(main, default_config=str(CONFIG), define_flags=define_flags)

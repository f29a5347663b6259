"""Exports a policy as a SavedModel that continues strings, for TensorFlow Serving or plain TensorFlow.

    tfppo export --config=movie_snippets --workdir=runs/movies

Writes WORKDIR/export/1, and the next number at every further call.
"""

from types import ModuleType

from absl.flags import FlagValues

from tfppo.config import Config
from tfppo.stages import cli


def main(config: Config, workdir: str, flags: FlagValues) -> None:
    """Exports the policy of a run."""
    from tfppo.stages.export import export_model, loading_snippet
    from tfppo.stages.workdir import model_folder, open_run

    folder, _ = open_run(config, workdir)
    path = export_model(config, folder, model_folder(folder, flags.model))
    print(f"SavedModel: {path}\nload it where TensorFlow is:\n{loading_snippet(path)}")


def define_flags(flags: ModuleType) -> None:
    """The flags of this command alone."""
    flags.DEFINE_string("model", None, "Folder of the model, or its name in WORKDIR (policy_best); default policy.")


def run() -> None:
    """The command, with the flags of sys.argv."""
    cli.run(main, doc=__doc__, define_flags=define_flags)

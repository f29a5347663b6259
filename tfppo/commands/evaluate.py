"""Measures a policy on held-out prompts against the language model that it came from.

    tfppo evaluate --config=movie_snippets --workdir=runs/movies

Prints a table of the language model and the policy (mean reward with standard error, exact KL to the reference,
distinct-1/2, length, perplexity under the reference) and writes it to WORKDIR/evaluation.json.
"""

from types import ModuleType

from absl.flags import FlagValues

from tfppo.config import Config
from tfppo.stages import cli


def main(config: Config, workdir: str, flags: FlagValues) -> None:
    """Measures the language model and the policy of a run."""
    from tfppo.ppo.evaluation import format_figures, write_evaluation
    from tfppo.stages.evaluate import evaluate_model
    from tfppo.stages.workdir import language_model_folder, open_run

    folder, strategy = open_run(config, workdir)
    models = {"before": language_model_folder(config, folder), "after": flags.model or folder / "policy"}
    columns = {name: evaluate_model(config, folder, strategy, model).figures for name, model in models.items()}
    write_evaluation(folder / "evaluation.json", columns)
    print(format_figures(columns))


def define_flags(flags: ModuleType) -> None:
    """The flags of this command alone."""
    flags.DEFINE_string("model", None, "Folder of the model to evaluate; default WORKDIR/policy.")


def run() -> None:
    """The command, with the flags of sys.argv."""
    cli.run(main, doc=__doc__, define_flags=define_flags)

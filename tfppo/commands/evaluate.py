"""Measures a policy on held-out prompts against the language model that it came from.

    tfppo evaluate --config=movie_snippets --workdir=runs/movies

Prints tables of the language model and the policy: some samples, and the figures (mean reward with standard error,
exact KL to the reference, distinct-1/2, length, perplexity of the responses under the reference, and of held-out texts
where the data has any). They are kept in WORKDIR/samples.md and evaluation.json, and for TensorBoard in evaluation/.
--model=policy_best measures the policy that was the best during training.
"""

from types import ModuleType

from absl.flags import FlagValues

from tfppo.config import Config
from tfppo.stages import cli

# They take the model that was measured.
THEN = (
    cli.Next("try it", "generate", ("--prompt=...",), keeps=("model",)),
    cli.Next("serve it", "export", keeps=("model",)),
)


def main(config: Config, workdir: str, flags: FlagValues) -> None:
    """Measures the language model and the policy of a run."""
    from tfppo.stages.evaluate import evaluate_model, measured_rewards, record_evaluations
    from tfppo.stages.results import evaluation_result
    from tfppo.stages.rewards import check_rewards
    from tfppo.stages.workdir import language_model_folder, model_folder, open_run

    folder, strategy = open_run(config, workdir)
    check_rewards(config, folder, "test")
    print(*measured_rewards(config, folder), sep="\n", flush=True)
    models = {"before PPO": language_model_folder(config, folder), "after PPO": model_folder(folder, flags.model)}
    columns = {name: evaluate_model(config, folder, strategy, model) for name, model in models.items()}
    print(record_evaluations(columns, folder, num_samples=config.evaluation.num_samples))
    print(f"tables: {workdir}/samples.md, figures: {workdir}/evaluation.json, for TensorBoard: {workdir}/evaluation")
    print(f"result: {evaluation_result(*(evaluation.figures for evaluation in columns.values()))}")


def define_flags(flags: ModuleType) -> None:
    """The flags of this command alone."""
    flags.DEFINE_string("model", None, "Folder of the model, or its name in WORKDIR (policy_best); default policy.")


def run() -> None:
    """The command, with the flags of sys.argv."""
    cli.run(main, doc=__doc__, define_flags=define_flags, then=THEN, distributed=True)

"""Measures a policy on held-out prompts against the language model that it came from.

    python tools/evaluate.py --config=configs/movie_snippets.py --workdir=runs/movies

Prints tables of the language model and the policy: some samples, and the figures (mean reward with standard error,
exact KL to the reference, distinct-1/2, length, perplexity of the responses under the reference, and of held-out texts
where the data has any). They are kept in WORKDIR/samples.md and evaluation.json, and for TensorBoard in evaluation/.
--model=policy_best measures the policy that was the best during training.
"""

from pathlib import Path
from types import ModuleType

from absl.flags import FlagValues

from tfppo.config import Config
from tfppo.stages import cli

CONFIG = Path(__file__).parents[1] / "configs" / "movie_snippets.py"


def main(config: Config, workdir: str, flags: FlagValues) -> None:
    from tfppo.stages.evaluate import evaluate_model, record_evaluations
    from tfppo.stages.workdir import language_model_folder, model_folder, open_run

    folder, strategy = open_run(config, workdir)
    models = {"before PPO": language_model_folder(config, folder), "after PPO": model_folder(folder, flags.model)}
    columns = {name: evaluate_model(config, folder, strategy, model) for name, model in models.items()}
    print(record_evaluations(columns, folder, num_samples=config.evaluation.num_samples))


def define_flags(flags: ModuleType) -> None:
    flags.DEFINE_string(
        "model", None, "Folder of the model, or its name in WORKDIR, such as policy_best; default policy."
    )


if __name__ == "__main__":
    cli.run(main, default_config=str(CONFIG), define_flags=define_flags)

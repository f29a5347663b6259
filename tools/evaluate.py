"""Measures a policy on held-out prompts against the language model that it came from.

    python tools/evaluate.py --config=configs/movie_snippets.py --workdir=runs/movies

Prints a table of the language model and the policy (mean reward with standard error, exact KL to the reference,
distinct-1/2, length, perplexity under the reference) and writes it to WORKDIR/evaluation.json.
"""

from pathlib import Path

from tfppo.stages import cli

CONFIG = Path(__file__).parents[1] / "configs" / "movie_snippets.py"


def main(config, workdir, flags):
    from tfppo.ppo.evaluation import format_figures
    from tfppo.stages.experiment import Experiment

    experiment = Experiment(config, workdir)
    policy_folder = flags.model or experiment.folder / "policy"
    columns = {
        "before": experiment.evaluate(experiment.language_model_folder()).figures,
        "after": experiment.evaluate(policy_folder).figures,
    }
    experiment.write_evaluation(columns)
    print(format_figures(columns))


def define_flags(flags):
    flags.DEFINE_string("model", None, "Folder of the model to evaluate; default WORKDIR/policy.")


if __name__ == "__main__":
    cli.run(main, default_config=str(CONFIG), define_flags=define_flags)

"""Trains small tasks with PPO at its defaults and at other settings, and prints what each has learned.

    python tools/learning_tasks.py --workdir=runs/tasks
    python tools/learning_tasks.py --workdir=runs/tasks --tasks=sums --settings=defaults,grpo --seeds=0

The tasks are those of tools/tasks: each makes its data and a language model, once a folder. `--settings` are names of
SETTINGS; `--set="NAME: ppo.learning_rate=1e-3 ppo.kl_coef=0.01"` adds one. Each run is a line of WORKDIR/results.jsonl,
and is not done twice. The table has the mean score before PPO and over the last eighth of the episodes, medians of the
seeds with their range, and the KL to the language model in nats a response; --held_out adds the score on held-out
prompts.
"""

import ast
import contextlib
import io
import json
import statistics
import time
from pathlib import Path

from absl import app, flags

from tfppo.stages.cli import one_line_errors, parse_flags

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
NAMES = flags.DEFINE_list("tasks", [], "Names of the tasks; none: all.")
CHOSEN = flags.DEFINE_list("settings", ["defaults"], "Names of settings.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of PPO.")
flags.register_validator("seeds", lambda seeds: all(map(str.isdigit, seeds)), "they must be whole numbers, as 0,1,2")
ADDED = flags.DEFINE_multi_string("set", [], "NAME: section.field=value ..., a further setting, which is run too.")
HELD_OUT = flags.DEFINE_bool("held_out", False, "Also evaluate on held-out prompts.")

# By name, what is not at its default.
QUICKSTART: dict[str, object] = {
    "ppo.ppo_epochs": 2,
    "ppo.learning_rate": 1e-4,
    "ppo.embedding_learning_rate": 4e-4,
    "ppo.kl_coef": 0.038,
}
SETTINGS: dict[str, dict[str, object]] = {
    "defaults": {},
    "quickstart": QUICKSTART,
    "grpo": {"ppo.estimator": "grpo"},
    "rloo": {"ppo.estimator": "rloo"},
}


def parse_setting(text):
    """NAME: section.field=value ... as (name, {field: value}); values are Python's, else strings."""
    name, _, fields = text.partition(":")
    settings = {}
    for item in fields.split():
        field, _, value = item.partition("=")
        try:
            settings[field] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[field] = value
    return name.strip(), settings


def apply(config, settings):
    """The configuration with some fields changed."""
    for name, value in settings.items():
        section, field = name.split(".")
        setattr(getattr(config, section), field, value)
    return config


def language_model(task, folder):
    """The source of a task's data and the folder of its language model, which is trained where it is missing."""
    from tfppo.stages.language_model import train_language_model
    from tfppo.stages.workdir import open_run

    folder.mkdir(parents=True, exist_ok=True)
    source = task.write_data(folder)
    if not (folder / "trained").exists():
        config = task.config(source)
        train_language_model(config, *open_run(config, folder))
        (folder / "trained").touch()
    return source, folder / "lm"


def run(task, name, settings, seed, folder):
    """One run of PPO: a row of the results."""
    from tfppo.stages.evaluate import evaluate_model
    from tfppo.stages.ppo import train_ppo
    from tfppo.stages.workdir import open_run
    from tfppo.training.metrics import read_metrics

    source, model = language_model(task, folder / task.name)
    config = apply(task.config(source), settings)
    config.seed, config.language_model = seed, str(model)
    started = time.perf_counter()
    place, strategy = open_run(config, folder / task.name / f"{name}_{seed}")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train_ppo(config, place, strategy)
    rows = read_metrics(place / "ppo.jsonl")
    last = rows[-max(1, len(rows) // 8) :]

    def mean(tag, rows):
        return statistics.fmean(row[tag] for row in rows)

    row = {
        "task": task.name,
        "setting": name,
        "seed": seed,
        "before": mean("objective/score", rows[: max(1, 512 // config.ppo.rollout_batch_size)]),
        "score": mean("objective/score", last),
        "kl": mean("objective/kl", last),
        "entropy_before": rows[0]["policy/entropy"],
        "entropy": mean("policy/entropy", last),
        "seconds": time.perf_counter() - started,
        "settings": settings,
    }
    if HELD_OUT.value:
        evaluation = evaluate_model(config, place, strategy, place / "policy").figures
        row.update(held_out=evaluation["reward"], held_out_error=evaluation["reward_standard_error"])
    return row


def table(rows):
    """Medians and ranges over the seeds, as Markdown."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["setting"]), []).append(row)
    lines = [
        "| task | setting | before | score | range | KL | entropy | s | seeds |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for (task, setting), group in groups.items():
        scores = [row["held_out"] if "held_out" in row else row["score"] for row in group]
        middle = {tag: statistics.median(row[tag] for row in group) for tag in ("before", "kl", "entropy", "seconds")}
        lines.append(
            f"| {task} | {setting} | {middle['before']:.2f} | {statistics.median(scores):.3f} | "
            f"{min(scores):.3f} to {max(scores):.3f} | {middle['kl']:.1f} | "
            f"{group[0]['entropy_before']:.2f} to {middle['entropy']:.2f} | {middle['seconds']:.0f} | {len(group)} |"
        )
    return "\n".join(lines)


def main(argv):
    from tasks import TASKS

    settings = {name: SETTINGS[name] for name in CHOSEN.value} | dict(map(parse_setting, ADDED.value))
    folder = Path(WORKDIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    wanted = [(task, name, int(seed)) for task in NAMES.value or TASKS for name in settings for seed in SEEDS.value]
    known = {(row["task"], row["setting"], row["seed"]) for row in rows}
    for task, name, seed in wanted:
        if (task, name, seed) not in known:
            row = run(TASKS[task], name, settings[name], seed, folder)
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            rows.append(row)
            print(
                {tag: round(value, 3) if isinstance(value, float) else value for tag, value in row.items()}, flush=True
            )
    print(table([row for row in rows if (row["task"], row["setting"], row["seed"]) in wanted]))


if __name__ == "__main__":
    with one_line_errors():
        app.run(main, flags_parser=parse_flags)

"""Takes every figure that docs/benchmarks.md asks of a card, one after the other, with PyTorch beside it on that card.

    python tools/gpu_figures.py --workdir=runs/figures --torch_python=/opt/torch/bin/python

Each step is a process with a limit of its own; one that fails or takes too long is a line that says so, and the next
goes on. Results are lines of WORKDIR/results.jsonl. The same command goes on where the time was over: a step that has
figures is not run again; remove the file to begin anew. At the end there is a table, with what was asked for.
`--rehearse` runs every step at a toy size on the CPU, in WORKDIR/rehearsal: to see that all of it works before it meets
a card.
"""

import sys
from pathlib import Path

from absl import app, flags

from tfppo.config.validation import require
from tfppo.stages.cli import one_line_errors, parse_flags

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the results.", required=True)
TORCH_PYTHON = flags.DEFINE_string(
    "torch_python", sys.executable, "Interpreter with PyTorch, transformers and, for one step, TRL."
)
SECONDS = flags.DEFINE_integer("seconds", 720, "For all steps together.")
CHOSEN = flags.DEFINE_list("steps", [], "Names of steps, as --list prints them; none: all.")
DATA = flags.DEFINE_list(
    "data", [], "Where the quickstart finds its texts, as settings: data.data_dir=FOLDER. Else it fetches them."
)
REHEARSE = flags.DEFINE_bool("rehearse", False, "Toy sizes, on the CPU.")
LIST = flags.DEFINE_bool("list", False, "Print the steps with their limits, and run none.")


def main(argv):
    from on_a_card.rows import report
    from on_a_card.running import end_on_sigterm, run_steps
    from on_a_card.steps import CARD, REHEARSAL, all_steps

    require(len(argv) == 1, "argument", argv[-1], "it is not a flag; write --name=value")
    require(SECONDS.value > 0, "--seconds", SECONDS.value, "it must be above 0")
    # A rehearsal's results are no card's.
    folder, scale = Path(WORKDIR.value), CARD
    if REHEARSE.value:
        folder, scale = folder / "rehearsal", REHEARSAL
    steps = all_steps(scale, folder, TORCH_PYTHON.value, tuple(DATA.value))
    for name in CHOSEN.value:
        require(name in steps, "--steps", name, f"choose among {', '.join(steps)}")
    steps = {name: step for name, step in steps.items() if not CHOSEN.value or name in CHOSEN.value}
    if LIST.value:
        print("\n".join(f"{name}: at most {step.limit:.0f} s, {step.workload}" for name, step in steps.items()))
        return
    folder.mkdir(parents=True, exist_ok=True)
    end_on_sigterm()
    records = run_steps(steps, folder / "results.jsonl", SECONDS.value, tell, scale.variables)
    print(report(records))


def tell(record):
    """A line for a step that has ended."""
    print(f"{record['step']}: {record['wall_seconds']:.0f} s; {record.get('failed', 'done')}", flush=True)


if __name__ == "__main__":
    with one_line_errors():
        app.run(main, flags_parser=parse_flags)

"""The rows that the steps' figures are compared in: Markdown tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Figures = Mapping[str, Mapping]  # records by step


class Source(NamedTuple):
    """Where a number is: the step, and its name in the record, with the phase where it has one for each."""

    step: str
    name: str
    phase: str = ""

    def __call__(self, figures: Figures) -> float:
        """The number. Raises: KeyError, with the reason, where it was not measured."""
        record = figures.get(self.step)
        if record is None:
            raise KeyError(f"`{self.step}` was not run")
        if "failed" in record:
            raise KeyError(f"`{self.step}`: {record['failed']}")
        values = record.get(self.name)
        value = values.get(self.phase) if self.phase and values else values
        if value is None:
            reason = record.get("left_out", {}).get(self.phase, f"it has no {self.name}")
            raise KeyError(f"`{self.step}`: {self.phase} {reason}".replace(":  ", ": "))
        return value


@dataclass(frozen=True)
class Row:
    """One comparison.

    Args:
        what, workload: in words. workload: a step, whose words these are.
        ours, theirs: the two numbers; theirs may be none.
        result: from the two to what is compared with the bound. bound: at least, or at most where `at_most`.
        form: how result and bound are written; number: how the two are.
    """

    what: str
    workload: str
    ours: Source
    theirs: Source | None
    result: Callable[[float, float], float]
    bound: float
    form: str
    number: str
    at_most: bool = False


def _more(ours, theirs):
    return ours / theirs


def _faster(ours, theirs):
    return theirs / ours


def _itself(ours, theirs):
    return ours


_RATE, _STEP, _MEMORY = "{:,.0f} tokens/s", "{:.4f} s", "{:.2f} GB"
_TIMES, _SHARE, _SECONDS = "{:.2f} x", "{:.0%}", "{:.1f} s"
_SAMPLING = Source("gpt2", "tokens_per_second", "sampling")
_UPDATE = Source("gpt2", "seconds_a_step")


def _sampling(what, step, bound):
    return Row(f"sampling over {what}", step, _SAMPLING, Source(step, "tokens_per_second"), _more, bound, _TIMES, _RATE)


def _update(what, step, bound):
    theirs = Source(step, "seconds_a_step")
    return Row(f"optimizer step over {what} PyTorch", step, _UPDATE, theirs, _faster, bound, _TIMES, _STEP)


def _share(what, step, name, phase, bound):
    return Row(what, step, Source(step, name, phase), None, _itself, bound, _SHARE, _SHARE)


def _seconds(what, step, bound, name="wall_seconds"):
    return Row(what, step, Source(step, name), None, _itself, bound, _SECONDS, _SECONDS, at_most=True)


ROWS = (
    _sampling("a loop with CUDA graphs in bfloat16", "PyTorch loop", 1.1),
    _sampling("`generate` at its best", "PyTorch generate at its best", 3.0),
    _sampling("`generate` as TRL calls it", "PyTorch generate", 10.0),
    _share("sampling, share of the memory roofline", "1.3b sampling", "share_of_memory_roofline", "sampling", 0.5),
    _update("eager", "PyTorch update, eager", 2.0),
    _update("compiled", "PyTorch update, compiled", 1.0),
    _share(
        "update, share of TensorFlow's bfloat16 products", "1.3b update", "share_of_bfloat16_products", "update", 0.4
    ),
    Row(
        "whole iteration over TRL's trainer",
        "TRL",
        Source("gpt2", "seconds", "iteration"),
        Source("TRL", "seconds"),
        _faster,
        4.0,
        _TIMES,
        _STEP,
    ),
    Row(
        "device memory of that iteration over TRL's",
        "TRL",
        Source("gpt2", "device_peak_gb", "iteration"),
        Source("TRL", "device_peak_gb"),
        _more,
        0.6,
        _TIMES,
        _MEMORY,
        at_most=True,
    ),
    Row(
        "device memory of a step at a context of 4,096",
        "long context",
        Source("long context", "device_peak_gb", "update"),
        None,
        _itself,
        24.0,
        _MEMORY,
        _MEMORY,
        at_most=True,
    ),
    _seconds("quickstart, all in", "quickstart", 90),
    # Three seeds on a CPU reach 0.744, with a standard error of 0.018: three of these below.
    Row(
        "quickstart, held-out reward",
        "quickstart",
        Source("quickstart", "reward"),
        None,
        _itself,
        0.69,
        "{:.3f}",
        "{:.3f}",
    ),
    _seconds("start to first tick, cold", "quickstart start, cold", 25, "seconds"),
    _seconds("start to first tick, warm", "quickstart start, warm", 15, "seconds"),
    _seconds("start to first tick, cold", "gpt2 start, cold", 60, "seconds"),
    _seconds("start to first tick, warm", "gpt2 start, warm", 20, "seconds"),
)


def report(records: Sequence[Mapping]) -> str:
    """All that was found, as Markdown: where, the rows, and what each step took."""
    figures = {record["step"]: record for record in records}
    devices = {record["device"] for record in records if "device" in record}
    first = "first call {:.1f} s".format
    lines = [
        f"on {', '.join(sorted(devices)) or 'no device that a step names'}; medians",
        "",
        "| what | workload | tfppo | other | result | asked for | |",
        "|---|---|---:|---:|---:|---:|---|",
        *(line(row, figures) for row in ROWS),
        "",
        "| step | s | |",
        "|---|---:|---|",
    ]
    for record in records:
        calls = record.get("first_call_seconds", {})
        calls = calls if isinstance(calls, Mapping) else {"": calls}
        notes = [f"{phase} {first(seconds)}".strip() for phase, seconds in calls.items()]
        notes = [record["failed"]] if "failed" in record else notes
        lines.append(f"| {record['step']} | {record['wall_seconds']:.0f} | {'; '.join(notes)} |")
    return "\n".join(lines)


def line(row: Row, figures: Figures) -> str:
    """A row of the table; where a number was not measured, it says why."""
    workload = figures.get(row.workload, {}).get("workload", "")
    asked = f"{'at most' if row.at_most else 'at least'} {row.form.format(row.bound)}"
    try:
        ours = row.ours(figures)
        theirs = row.theirs(figures) if row.theirs else 0.0
    except KeyError as error:
        return f"| {row.what} | {workload} | | | not measured | {asked} | {error.args[0]} |"
    result = row.result(ours, theirs)
    met = result <= row.bound if row.at_most else result >= row.bound
    cells = [row.number.format(ours), row.number.format(theirs) if row.theirs else "", row.form.format(result), asked]
    return f"| {row.what} | {workload} | {' | '.join(cells)} | {'met' if met else 'missed'} |"

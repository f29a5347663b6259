"""Runs steps one after the other: each a process by itself, with a limit of its own, whatever became of the others."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LEAST = 10.0  # seconds below which a step is not begun
_CHARACTERS = 300  # of what a failed step said last


def last_json(out: str, folder: Path) -> dict:
    """The last line of the standard output that is a JSON object. Raises: ValueError where there is none."""
    for line in reversed(out.splitlines()):
        if line.startswith("{"):
            return json.loads(line)
    raise ValueError("it printed no figures")


@dataclass(frozen=True)
class Step:
    """One process. Args:

    command: with its arguments.
    limit: seconds that it may take.
    workload: what it computes, in words.
    read: from its standard output and the folder of the figures to figures by name. Raises: OSError, ValueError or
        KeyError where they are not there.
    """

    command: tuple[str, ...]
    limit: float
    workload: str = ""
    read: Callable[[str, Path], dict] = last_json


def run_step(name: str, step: Step, folder: Path, limit: float, variables: Mapping[str, str] = {}) -> dict:
    """Runs a step for at most `limit` seconds. Returns: its record, with "failed" where there are no figures.

    What it printed is kept in FOLDER/logs. Args: variables: of its environment, besides those of this process.
    """
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    out, err = (logs / f"{name.replace(' ', '_')}.{kind}" for kind in ("out", "err"))
    record: dict = {"step": name, "workload": step.workload, "command": list(step.command)}
    started = time.perf_counter()
    with out.open("w") as to_out, err.open("w") as to_err:
        try:  # a session of its own, so that what it starts ends with it
            process = subprocess.Popen(
                step.command, stdout=to_out, stderr=to_err, start_new_session=True, env={**os.environ, **variables}
            )
        except OSError as error:
            return record | {"wall_seconds": 0.0, "failed": str(error)}
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    record["wall_seconds"] = time.perf_counter() - started
    if code is None:
        return record | {"failed": f"it took longer than {limit:.0f} s"}
    if code:
        return record | {"failed": f"exit code {code}: {_last_line(err) or _last_line(out)}"}
    try:
        return record | step.read(out.read_text(), folder)
    except (OSError, ValueError, KeyError) as error:
        return record | {"failed": f"no figures: {error}"}


def run_steps(
    steps: Mapping[str, Step],
    results: Path,
    seconds: float,
    told: Callable[[dict], None] = lambda record: None,
    variables: Mapping[str, str] = {},
) -> list[dict]:
    """Runs the steps that have no figures of the same command in the file of results, and appends a line for each.

    Args: seconds: for all; a step that would begin with less than LEAST of them left is not run, and has no line.
        told: gets each new record. variables: of each step's environment, besides those of this process.
    Returns: the last record of each step that has one.
    """
    deadline = time.perf_counter() + seconds
    records = {record["step"]: record for record in read_records(results) if record["step"] in steps}
    for name, step in steps.items():
        if _is_done(step, records.get(name)):
            continue
        left = deadline - time.perf_counter()
        if left < LEAST:
            break
        records[name] = run_step(name, step, results.parent, min(step.limit, left), variables)
        with results.open("a") as file:
            file.write(json.dumps(records[name]) + "\n")
        told(records[name])
    return list(records.values())


def end_on_sigterm() -> None:
    """Lets SIGTERM end this process as Ctrl-C does, and the step that runs with it."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def read_records(results: Path) -> list[dict]:
    """The records of a file of results, none where it is not there; a line that was cut off is left out."""
    lines: Iterable[str] = results.read_text().splitlines() if results.exists() else []
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def _is_done(step, record):
    return record is not None and "failed" not in record and record["command"] == list(step.command)


def _end(process):
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(path):
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:_CHARACTERS] if lines else ""

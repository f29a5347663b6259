"""How long a training takes from the command to its first progress tick.

    python tools/on_a_card/first_tick.py '{"command": [...], "record": "W/ppo.jsonl", "cache": "C", "cold": true}'

Runs the command, whose folder and record must not be there yet, and watches the record for its lines: one an iteration.
What this machine keeps between runs goes to the folder "cache", which is emptied first where the start is to be cold.
Prints one line of JSON: seconds from the start of the process to the first line, and from there to the second.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

PAUSE = 0.01  # seconds between two looks


def main(text):
    """Times the command that the JSON describes."""
    how = json.loads(text)
    record, cache = Path(how["record"]), Path(how["cache"])
    shutil.rmtree(record.parent, ignore_errors=True)
    if how["cold"]:
        shutil.rmtree(cache, ignore_errors=True)
    elif not cache.is_dir():
        sys.exit(f"{cache} is not there: a cold start comes first")
    cache.mkdir(parents=True, exist_ok=True)
    times = seconds_of_lines(how["command"], record, environment(cache))
    pairs = zip(times, times[1:], strict=False)
    print(json.dumps({"seconds": times[0], "next_seconds": [after - before for before, after in pairs]}), flush=True)


def environment(cache):
    """Variables that let all caches be in one folder: those of tfppo, and CUDA's of compiled kernels."""
    return {**os.environ, "XDG_CACHE_HOME": str(cache), "CUDA_CACHE_PATH": str(cache / "cuda")}


def seconds_of_lines(command, record, variables):
    """Seconds from the start of a process to each line of the record that it writes."""
    started, times = time.perf_counter(), list[float]()
    process = subprocess.Popen(command, env=variables, stdout=sys.stderr)

    def look():
        lines = record.read_bytes().count(b"\n") if record.exists() else 0
        times.extend([time.perf_counter() - started] * (lines - len(times)))

    while process.poll() is None:
        look()
        time.sleep(PAUSE)
    look()
    if process.returncode or not times:
        sys.exit(f"the command ended with code {process.returncode} after {len(times)} iterations")
    return times


if __name__ == "__main__":
    main(sys.argv[1])

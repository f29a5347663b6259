"""Puts something wrong into one function at a time and looks whether the tests notice.

    python tools/mutation_check.py [--only=NAME,NAME] [--jobs=2] [--timeout=600]

The mutations are those of tools/mutations. Each gets a copy of what the tests need in a temporary folder, a cache,
and a run of the few tests that guard it. Prints killed, timed out (which counts as killed) or survived, and the
first failing test of each. Exit code 1 if any survived, 2 if a mutation does not fit the source or the tests fail
without one. Takes about half an hour with one job on two cores.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from absl import app, flags
from mutations import MUTATIONS

ONLY = flags.DEFINE_list("only", [], "Names of the mutations to try; none: all.")
JOBS = flags.DEFINE_integer("jobs", 2, "Runs of pytest at a time.", lower_bound=1)
TIMEOUT = flags.DEFINE_integer("timeout", 600, "Seconds that a mutation's tests may take.", lower_bound=1)

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("tfppo", "tools", "configs", "tests", "pyproject.toml")
PYTEST = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", "-p", "no:cacheprovider", "--tb=no", "--color=no"]
KILLED = {"killed", "timed out"}
RUNNING: set[subprocess.Popen] = set()  # processes of pytest


def copy_of_the_repository(folder):
    """Copies what the tests need."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, folder / name)


def source_of(mutation):
    """The text of a mutation's file, without it."""
    return (ROOT / "tfppo" / mutation.file).read_text(encoding="utf-8")


def misfits(mutations):
    """What is wrong with each mutation that does not fit the source."""
    found = []
    for mutation in mutations:
        try:
            mutation.applied(source_of(mutation))
        except (LookupError, OSError) as error:
            found.append(str(error))
    return found


def run_tests(folder, tests, timeout):
    """pytest's exit code, None where it took too long, and what it printed. No process outlives the call."""
    places = {"XDG_CACHE_HOME": folder / "cache", "TMPDIR": folder / "tmp", "PYTHONPATH": folder}
    for place in places.values():
        place.mkdir(exist_ok=True)
    settings = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONDONTWRITEBYTECODE": "1"}
    environment = {**os.environ, **{name: str(place) for name, place in places.items()}, **settings}
    process = subprocess.Popen(
        [*PYTEST, *tests],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a group of its own, which can be ended as a whole
    )
    RUNNING.add(process)
    try:
        output, _ = process.communicate(timeout=timeout)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        return None, ""
    finally:
        end_group(process)
        RUNNING.discard(process)


def end_group(process):
    """Ends a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def verdict_of(code, output):
    """(verdict, the first failing test or the last line)."""
    failed = re.search(r"^(?:FAILED|ERROR) \S*?/?(\w+\.py(?:::\S+)?)", output, re.MULTILINE)
    detail = failed.group(1) if failed else (output.strip().splitlines() or [""])[-1]
    # 1: tests failed. 2 and more: pytest could not run them, which says nothing about the tests.
    return {None: "timed out", 0: "survived", 1: "killed"}.get(code, f"broken ({code})"), detail


def check(mutation, built):
    """(verdict, detail) of a mutation. Args: built: the folder of the native operations as they are without it."""
    with tempfile.TemporaryDirectory(prefix="mutation_", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        copy_of_the_repository(folder)
        (folder / "tfppo" / mutation.file).write_text(mutation.applied(source_of(mutation)), encoding="utf-8")
        if not mutation.is_cpp:  # else its sources have to be built: no cache has them
            shutil.copytree(built, folder / "cache" / "tfppo", ignore=everything_but_libraries)
        verdict, detail = verdict_of(*run_tests(folder, [mutation.tests], TIMEOUT.value))
        if verdict == "killed" and mutation.is_cpp and not list((folder / "cache").rglob("*.so")):
            return "broken", "it does not compile"
        return verdict, detail


def check_all(mutations, built):
    """(mutation, verdict, detail) of each, in order. An interrupt ends the runs that are under way."""
    pool = ThreadPoolExecutor(JOBS.value)
    results = [pool.submit(check, mutation, built) for mutation in mutations]
    try:
        for mutation, result in zip(mutations, results, strict=True):
            yield mutation, *result.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(RUNNING):
            end_group(process)
        pool.shutdown()


def everything_but_libraries(folder, names):
    """What `copytree` leaves out of a cache: all that was measured, or is still being built."""
    return [name for name in names if not name.endswith(".so")]


def check_without_mutation(folder, mutations):
    """Runs all tests on the source as it is, in a folder whose cache then has what Python mutations start from."""
    copy_of_the_repository(folder)
    tests = sorted({mutation.tests for mutation in mutations})
    code, output = run_tests(folder, tests, TIMEOUT.value * len(tests))
    (folder / "cache" / "tfppo").mkdir(exist_ok=True)
    return verdict_of(code, output)


def selected():
    """The mutations that the flags ask for."""
    unknown = set(ONLY.value) - {mutation.name for mutation in MUTATIONS}
    if unknown:
        names = ", ".join(mutation.name for mutation in MUTATIONS)
        raise app.UsageError(f"--only={','.join(sorted(unknown))}: choose from {names}")
    return [mutation for mutation in MUTATIONS if not ONLY.value or mutation.name in ONLY.value]


def main(argv):
    if len(argv) > 1:
        raise app.UsageError("this program takes flags only")
    mutations = selected()
    wrong = misfits(mutations)
    if wrong:
        print("\n".join(wrong))
        sys.exit(2)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as an interrupt, which ends what this program started
    with tempfile.TemporaryDirectory(prefix="mutation_", ignore_cleanup_errors=True) as name:
        folder, counts = Path(name), Counter[str]()
        verdict, detail = check_without_mutation(folder, mutations)
        if verdict != "survived":
            print(f"the tests fail without a mutation: {verdict}, {detail}")
            sys.exit(2)
        for mutation, verdict, detail in check_all(mutations, folder / "cache" / "tfppo"):
            counts[verdict] += 1
            print(f"{verdict:<10}{mutation.name:<48}{detail}".rstrip(), flush=True)
    print(f"{len(mutations)} mutations: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    sys.exit(0 if set(counts) <= KILLED else 1)


if __name__ == "__main__":
    app.run(main)

"""Checks the C++ operations: their format, a compiler's warnings, and their tests under AddressSanitizer and UBSan.

    python tools/check_native.py [--quick]

Format: clang-format, of the version in the extra "dev", would change nothing. Warnings: every source compiles with
-Wall -Wextra -Werror, for processors of each kind that it has code for, whichever this machine has. Sanitizers:
tests/computation/native pass with operations that are built with -fsanitize=address,undefined; what this processor
can't run is skipped there. --quick leaves the sanitizers out. CXX names the compiler, or c++; g++ is supported.
Prints what fails; exit code 1 if anything does. Takes half a minute with --quick, else about ten.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from absl import app, flags

QUICK = flags.DEFINE_bool("quick", False, "Check format and warnings alone.")

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tfppo" / "computation" / "native"
TESTS = ROOT / "tests" / "computation" / "native"
CLANG_FORMAT = 23  # its major version, as in setup.py: another one formats differently
# With matrix tiles; with AVX512_BF16 alone; with vectors of 8 numbers.
PROCESSORS = ("sapphirerapids", "cooperlake", "haswell")
SANITIZERS = (
    "-fsanitize=address,undefined",
    # With checks for null, GCC takes no address for a constant, as TensorFlow's headers do; ASan finds uses of it too.
    "-fno-sanitize=null,nonnull-attribute,returns-nonnull-attribute",
    "-fno-sanitize-recover=undefined",
    "-fno-omit-frame-pointer",
    "-g",
)


def run(command, **arguments):
    """Runs a command; what it prints, or None where it succeeds."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **arguments)
    return done.stdout if done.returncode else None


def format_failures():
    """What clang-format would change."""
    try:
        version = subprocess.run(["clang-format", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        version = str(error)
    if not re.search(rf"version {CLANG_FORMAT}\.", version):
        return [f"clang-format {CLANG_FORMAT} is needed (pip install -e '.[dev]'); found: {version.strip()}"]
    files = sorted([*FOLDER.glob("*.cc"), *FOLDER.glob("*.h")])
    failure = run(["clang-format", "--dry-run", "--Werror", "--style=file", *map(str, files)], cwd=ROOT)
    return [failure] if failure else []


def warning_failures():
    """What the compiler says of each source."""
    from tfppo.computation.native import building

    command = [*building.compile_command(), "-Wall", "-Wextra", "-Werror"]
    # Without optimization: with it, GCC warns of its own headers' intrinsics. For one processor, code is generated, as
    # some warnings wait for that.
    generated = ["-O0", "-c", "-o", os.devnull]
    variants = [
        (f"-march={PROCESSORS[0]}", *generated),
        *((f"-march={name}", "-fsyntax-only") for name in PROCESSORS[1:]),
    ]
    tasks = []
    for source in sorted(FOLDER.glob("*.cc")):
        kinds = [("-fsyntax-only",)] if source.name in building.WITH_CPP_HEADERS else variants
        tasks += [[*command, *kind, str(source)] for kind in kinds]
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        return [failure for failure in workers.map(run, tasks) if failure]


def sanitizers_pass():
    """Whether the tests pass with sanitizers built in; pytest prints what fails."""
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    # Python is not built with them, so they come before it; so does what throws, which they have to find.
    libraries = [
        subprocess.run(
            [*compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "LD_PRELOAD": " ".join(libraries),
            "CXX": shlex.join(["env", "-u", "LD_PRELOAD", *compiler, *SANITIZERS]),  # the compiler itself goes without
            # Python and TensorFlow keep memory until they end; a test looks what happens where there is none.
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "XDG_CACHE_HOME": folder,
            "PYTHONPATH": str(ROOT),
        }
        load = "from native_support import OPS, REASON\nif OPS is None: exit(f'not built with sanitizers: {REASON}')"
        loaded = subprocess.run([sys.executable, "-c", load], env=environment, cwd=ROOT / "tests")
        if loaded.returncode:  # or all tests would be skipped
            return False
        tests = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-rs", "-p", "no:cacheprovider", str(TESTS)]
        return subprocess.run(tests, env=environment, cwd=ROOT).returncode == 0


def main(_):
    failures = [*format_failures(), *warning_failures()]
    print(*failures, sep="\n", end="" if failures else "The format is right, and the compiler warns of nothing.\n")
    passed = not failures and (QUICK.value or sanitizers_pass())
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    app.run(main)

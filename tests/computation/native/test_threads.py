"""The C++ operations compute the same bits on any number of threads."""

import os
import subprocess
import sys

import native_support
import pytest
from native_support import OPS, needs_compiler

pytestmark = needs_compiler
MODULES = ("test_decoder", *(("test_head", "test_optimizer", "test_trunk") if hasattr(OPS, "tfppo_trunk") else ()))
THREADS = ("1", "2", "5")
SCRIPT = f"""
import importlib, sys
sys.path[:0] = {[os.path.dirname(__file__), os.path.dirname(native_support.__file__)]!r}
for name in {MODULES}:
    print(name, importlib.import_module(name).digest())
"""


@pytest.fixture(scope="module")
def digests():
    """By module, of each number of threads, which OpenMP reads when a process starts."""
    found = {name: [] for name in MODULES}
    for threads in THREADS:
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, check=True, capture_output=True, text=True
        )
        for line in done.stdout.splitlines():
            name, digest = line.split()
            found[name].append(digest)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_the_number_of_threads_changes_no_bit(digests, module):
    assert len(digests[module]) == len(THREADS) and len(set(digests[module])) == 1

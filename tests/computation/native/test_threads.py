"""The C++ operations compute the same bits on any number of threads."""

import importlib
import os
from pathlib import Path

import pytest
from native_support import OPS, needs_compiler
from warm import WarmProcess

pytestmark = needs_compiler
MODULES = ("test_decoder", *(("test_head", "test_optimizer", "test_trunk") if hasattr(OPS, "tfppo_trunk") else ()))
THREADS = ("1", "2", "5")


@pytest.fixture(scope="module")
def digests():
    """By module, of each number of threads, which OpenMP reads once in a process: this file, run as a program."""
    found = {name: [] for name in MODULES}
    for threads in THREADS:
        process = WarmProcess([__file__], env={**os.environ, "OMP_NUM_THREADS": threads}, cwd=Path.cwd())
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        for line in output.splitlines():
            name, digest = line.split()
            found[name].append(digest)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_the_number_of_threads_changes_no_bit(digests, module):
    assert len(digests[module]) == len(THREADS) and len(set(digests[module])) == 1


if __name__ == "__main__":
    for name in MODULES:
        print(name, importlib.import_module(name).digest())

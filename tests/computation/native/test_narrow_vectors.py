"""Built for a processor whose vectors have 8 numbers, not 16, the operations that sample pass the same tests."""

import os
import sys
from pathlib import Path

import pytest
from native_support import needs_compiler
from warm import WarmProcess

from tfppo.computation.native.processor import processor


@needs_compiler
@pytest.mark.skipif("avx512f" not in processor().split(), reason="the operations have no wider vectors here")
def test_the_tests_of_the_decoder_pass_without_avx512(tmp_path):
    """In a process of their own: this file, run as a program."""
    compiler = f"{os.environ.get('CXX') or 'c++'} -mno-avx512f"
    environment = {**os.environ, "CXX": compiler, "XDG_CACHE_HOME": str(tmp_path)}
    process = WarmProcess([__file__], env=environment, cwd=Path.cwd())
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, output + errors
    assert " passed" in output
    (built,) = tmp_path.rglob("ops-*.so")
    assert b"TfppoExtend" in built.read_bytes() and b"TfppoPack" not in built.read_bytes()


if __name__ == "__main__":
    tests = str(Path(__file__).with_name("test_decoder.py"))
    arguments = ["-n0", "-q", "-p", "no:cacheprovider", tests, "-k", "not operations_in_bfloat16_are_there"]
    sys.exit(pytest.main(arguments))

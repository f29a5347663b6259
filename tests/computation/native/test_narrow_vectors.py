"""Built for a processor whose vectors have 8 numbers, not 16, the operations that sample pass the same tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from native_support import needs_compiler

from tfppo.computation.native.building import processor


@needs_compiler
@pytest.mark.skipif("avx512f" not in processor().split(), reason="the operations have no wider vectors here")
def test_the_tests_of_the_decoder_pass_without_avx512(tmp_path):
    compiler = f"{os.environ.get('CXX') or 'c++'} -mno-avx512f"
    environment = {**os.environ, "CXX": compiler, "XDG_CACHE_HOME": str(tmp_path)}
    tests = Path(__file__).with_name("test_decoder.py")
    command = [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", str(tests)]
    command += ["-k", "not operations_in_bfloat16_are_there"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    (built,) = tmp_path.rglob("ops-*.so")
    assert b"TfppoExtend" in built.read_bytes() and b"TfppoPack" not in built.read_bytes()

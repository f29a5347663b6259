"""Building the native operations: once a machine, and with a clear word where there is no compiler."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from native_support import needs_compiler, ops_of_sampling

from tfppo.computation import choice, devices
from tfppo.computation.native import availability, building, cache
from tfppo.computation.native.engine import NativeEngine
from tfppo.config import PpoConfig, SamplingConfig
from tfppo.errors import UserError


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """No operations are loaded, and the folder where built ones are kept is empty; one source, as all take seconds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(building, "_SOURCES", [source for source in building._SOURCES if source.stem == "embedding"])
    monkeypatch.setattr(building, "load", building.load.__wrapped__)
    return tmp_path


def failing_compiler(folder, message):
    compiler = folder / "compiler"
    compiler.write_text(f"#!/bin/sh\necho 'ops.cc:1: error: {message}' >&2\nexit 1\n")
    compiler.chmod(0o755)
    return str(compiler)


@needs_compiler
def test_what_was_built_is_built_once(fresh):
    library = building.build()
    assert library.parent == fresh / "tfppo" and os.listdir(library.parent) == [library.name]
    time = library.stat().st_mtime_ns
    assert building.build() == library and library.stat().st_mtime_ns == time


@needs_compiler
def test_the_compiler_may_have_arguments(fresh, monkeypatch):
    first = building.build()
    monkeypatch.setenv("CXX", "c++ -DTFPPO_OTHER")
    assert building.build() not in (first, None)


def test_the_home_folder_keeps_it_where_the_environment_names_no_other(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache" / "tfppo"


@needs_compiler
def test_other_flags_make_another_library(fresh, monkeypatch):
    first = building.build()
    monkeypatch.setattr(building, "_FLAGS", (*building._FLAGS, "-DTFPPO_OTHER"))
    assert building.build() != first


def test_without_a_compiler_sampling_goes_on_with_a_warning(fresh, monkeypatch, warnings):
    monkeypatch.setenv("CXX", failing_compiler(fresh, "no OpenMP here"))
    assert ops_of_sampling(None, "float32") is None
    assert len(warnings) == 1 and "no OpenMP here" in warnings[0] and "sampling.native" in warnings[0]
    assert not [name for name in os.listdir(fresh / "tfppo")]


@pytest.mark.parametrize("reason", ["no OpenMP here", None])
def test_insisting_without_a_compiler_is_refused(fresh, monkeypatch, reason):
    monkeypatch.setenv("CXX", failing_compiler(fresh, reason) if reason else str(fresh / "missing"))
    with pytest.raises(UserError, match=f"sampling.native is True.*{reason or 'missing'}.*CXX"):
        ops_of_sampling(True, "float32")


@needs_compiler
def test_an_operation_that_is_not_registered_fails_the_load_with_the_reason(fresh, monkeypatch):
    source = fresh / "failing.cc"
    source.write_text(
        '#include "operations.h"\n'
        'static const Registration registration([] { throw Failure(TF_INTERNAL, "there is no room for it"); });\n'
    )
    monkeypatch.setenv("CXX", f"{os.environ.get('CXX') or 'c++'} -I{Path(building.__file__).parent}")
    monkeypatch.setattr(building, "_SOURCES", [source])
    assert building.load() == (None, "an operation could not be registered: there is no room for it")


def test_where_there_is_no_compiler_tests_of_the_operations_are_skipped(fresh):
    folder = Path(__file__).parent
    without = {Path(__file__).name, "test_cache.py"}  # these need no compiler
    tests = [str(path) for path in folder.glob("test_*.py") if path.name not in without]
    command = [sys.executable, "-m", "pytest", "-n0", "-q", "-rs", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "CXX": str(fresh / "missing"), "XDG_CACHE_HOME": str(fresh)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" not in done.stdout, done.stdout
    assert done.stdout.count("the native operations can't be built") >= 2 and "missing" in done.stdout


def test_who_wants_none_gets_none_and_nothing_is_built(fresh, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    monkeypatch.setattr(availability, "has_fast_bfloat16", lambda: False)
    assert ops_of_sampling(False, "float32") is None
    assert ops_of_sampling(None, "mixed_bfloat16") is None


def test_in_bfloat16_a_processor_has_to_multiply_it(monkeypatch):
    monkeypatch.setattr(building, "load", lambda: (object(), None))  # built for a processor without AVX512_BF16
    monkeypatch.setattr(availability, "has_fast_bfloat16", lambda: True)
    assert ops_of_sampling(None, "mixed_bfloat16") is None
    with pytest.raises(UserError, match="sampling.native is True in mixed_bfloat16.*AVX512_BF16.*None.*float32"):
        ops_of_sampling(True, "mixed_bfloat16")


def test_rollouts_are_computed_as_the_update_is(monkeypatch):
    def computation(width=256, rollout="auto", update="auto", dtype="float32", sampling=None, **changes):
        ppo = PpoConfig(rollout_dtype=rollout, update_dtype=update, dtype=dtype, **changes)
        chosen = choice.choose_computation(ppo, SamplingConfig(native=sampling), width=width, architecture="gpt2")
        update = chosen.update.engine
        return chosen.sampling.engine.dtype, update.dtype, ops if isinstance(update, NativeEngine) else None

    ops = SimpleNamespace(tfppo_trunk=None)
    monkeypatch.setattr(building, "load", lambda: (ops, None))
    for module in (availability, choice, devices):
        monkeypatch.setattr(module, "has_fast_bfloat16", lambda: True)
    assert computation() == ("mixed_bfloat16", "mixed_bfloat16", ops)
    assert computation(width=128) == ("float32", "float32", None)
    assert computation(update="float32") == ("float32", "float32", None)
    assert computation(rollout="float32") == ("float32", "mixed_bfloat16", ops)
    assert computation(sampling=False) == ("float32", "mixed_bfloat16", ops)
    assert computation(native=False) == ("float32", "mixed_bfloat16", None)
    assert computation(native=False, rollout="mixed_bfloat16") == ("mixed_bfloat16", "mixed_bfloat16", None)

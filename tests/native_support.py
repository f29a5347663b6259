"""The native operations for tests. A compiler is optional, so without one the tests are collected and skipped."""

from dataclasses import replace

import pytest

from tfppo.computation.choice import choose_computation, choose_sampling
from tfppo.computation.native import building
from tfppo.computation.native.engine import NativeEngine
from tfppo.config import PpoConfig, SamplingConfig

OPS, REASON = building.load()

needs_compiler = pytest.mark.skipif(OPS is None, reason=f"the native operations can't be built: {REASON}")
# Those that multiply bfloat16 numbers, in sampling or in training.
needs_bfloat16_ops = pytest.mark.skipif(
    not hasattr(OPS, "tfppo_trunk"), reason=f"no native operations in bfloat16: {REASON or 'not of this processor'}"
)


def ops_of_sampling(native, dtype):
    """The operations that sampling takes in a dtype, for what `sampling.native` says; None: none of them."""
    return _ops_of(choose_sampling(SamplingConfig(native=native), dtype, architecture="gpt2"))


def ops_of_update(ppo: PpoConfig, dtype):
    """The operations that an update takes in a dtype; None: none of them."""
    sampling = SamplingConfig(native=False, jit_compile=False)
    computation = choose_computation(replace(ppo, update_dtype=dtype), sampling, width=256, architecture="gpt2")
    return _ops_of(computation.update)


def _ops_of(chosen):
    return chosen.engine.ops if isinstance(chosen.engine, NativeEngine) else None

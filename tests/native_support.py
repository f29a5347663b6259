"""The native operations for tests. A compiler is optional, so without one the tests are collected and skipped."""

import pytest

from tfppo.computation.native import building

OPS, REASON = building._load()

needs_compiler = pytest.mark.skipif(OPS is None, reason=f"the native operations can't be built: {REASON}")
# Those that multiply bfloat16 numbers, in sampling or in training.
needs_bfloat16_ops = pytest.mark.skipif(
    not hasattr(OPS, "tfppo_trunk"), reason=f"no native operations in bfloat16: {REASON or 'not of this processor'}"
)

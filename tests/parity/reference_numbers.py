"""Reads the numbers of tools/make_parity_fixtures.py and compares with them."""

import functools
import json
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "fixtures"


@functools.cache
def load(name):
    """One fixture file."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def mask_of(lengths, length=6):
    """Float32 [B, R] of 1 for the first `lengths` positions of each row."""
    return (np.arange(length) < np.array(lengths)[:, None]).astype(np.float32)


def float32(numbers):
    """A float32 array; the inputs in the fixtures are such numbers, so that nothing is lost."""
    return np.array(numbers, np.float32)


def relative_error(actual, expected):
    """The largest difference, in units of the largest expected number."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{actual.shape} is not {expected.shape}"
    return np.abs(actual - expected).max() / np.abs(expected).max()


def assert_close(actual, expected, rtol=1e-6, name=""):
    """Asserts that the largest difference is at most `rtol` times the largest expected number."""
    error = relative_error(actual, expected)
    assert error <= rtol, f"{name} relative error {error:.2e} is above {rtol:.0e}:\n{actual}\n{expected}"

"""Shapes, inputs and masks of the parity numbers."""

import numpy as np

BATCH, LENGTH = 8, 6
LENGTHS = [6, 1, 4, 3, 6, 2, 5, 3]


def grid(rng, shape, scale=1.0):
    """Normal numbers, rounded to multiples of 1/64."""
    return np.round(rng.normal(0.0, scale, shape) * 64) / 64


def mask_of(lengths, length=LENGTH):
    """[B, R] of 1 for the first `lengths` positions of each row."""
    return (np.arange(length) < np.array(lengths)[:, None]).astype(float)

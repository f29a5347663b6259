"""Stateless seeds: one root seed gives a different seed for every purpose and step."""

import zlib
from functools import lru_cache

import numpy as np


def seed_for(seed: int, purpose: str, step: int = 0) -> np.ndarray:
    """A stateless seed, int32 [2], for one purpose ("sample", "shuffle", ...) at one step."""
    words = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), step]).generate_state(2)
    return words.astype(np.int32)


@lru_cache(maxsize=2)  # all batches of an epoch need the same order, which is slow to draw for a large dataset
def permutation(seed: int, purpose: str, epoch: int, size: int) -> np.ndarray:
    """The order int [size] in which an epoch visits `size` examples, as a read-only array."""
    words = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), epoch])
    order = np.random.default_rng(words).permutation(size)
    order.setflags(write=False)  # the cache returns the same array again
    return order


def stream_indices(seed: int, purpose: str, start: int, count: int, size: int) -> np.ndarray:
    """Indices int [count] at positions start, start + 1, ... of an endless stream over `size` examples.

    Every epoch has another order. The position is the whole state, so a resumed stream continues exactly.
    """
    epochs, places = np.divmod(np.arange(start, start + count), size)
    indices = np.empty(count, np.int64)
    for epoch in np.unique(epochs):
        there = epochs == epoch
        indices[there] = permutation(seed, purpose, int(epoch), size)[places[there]]
    return indices

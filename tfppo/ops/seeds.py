"""One root seed, and from it a seed of its own for every purpose and step: nothing random has hidden state."""

import zlib
from functools import lru_cache

import numpy as np


def seed_for(seed: int, purpose: str, step: int = 0) -> np.ndarray:
    """A stateless seed, int32 [2], for one purpose ("sample", "shuffle", ...) at one step."""
    words = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), step]).generate_state(2)
    return words.astype(np.int32)


@lru_cache(maxsize=2)  # all batches of an epoch ask for one order, whose drawing takes 25 ms for a million things
def permutation(seed: int, purpose: str, epoch: int, size: int) -> np.ndarray:
    """The order [size] in which an epoch visits `size` things; an array that can't be written to."""
    words = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), epoch])
    order = np.random.default_rng(words).permutation(size)
    order.setflags(write=False)  # the next caller gets the same one
    return order


def stream_indices(seed: int, purpose: str, start: int, count: int, size: int) -> np.ndarray:
    """Indices [count] at positions start, start + 1, ... of an endless stream that visits `size` things in a new order
    each epoch. The position is its whole state: a stream goes on exactly where it was left.
    """
    epochs, places = np.divmod(np.arange(start, start + count), size)
    indices = np.empty(count, np.int64)
    for epoch in np.unique(epochs):
        there = epochs == epoch
        indices[there] = permutation(seed, purpose, int(epoch), size)[places[there]]
    return indices

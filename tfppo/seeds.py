"""One root seed, and from it a seed of its own for every purpose and step: nothing random has hidden state."""

import zlib

import numpy as np


def seed_for(seed, purpose, step=0):
    """A stateless seed, int32 [2], for one purpose ("sample", "shuffle", ...) at one step."""
    words = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), step]).generate_state(2)
    return words.astype(np.int32)


def permutation(seed, purpose, epoch, size):
    """The order [size] in which an epoch visits `size` things."""
    words = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), epoch])
    return np.random.default_rng(words).permutation(size)


def stream_indices(seed, purpose, start, count, size):
    """Indices [count] at positions start, start + 1, ... of an endless stream that visits `size` things in a new order
    each epoch. The position is its whole state: a stream goes on exactly where it was left.
    """
    positions = np.arange(start, start + count)
    orders = {epoch: permutation(seed, purpose, epoch, size) for epoch in np.unique(positions // size)}
    return np.array([orders[position // size][position % size] for position in positions])

"""Sizes from which on large arrays are made in parts, and of the parts. Plain numbers: the estimate reads them too."""

# Positions from which on attention goes by blocks. On two cores, twelve heads of 64, forward and backward: at 512
# positions blocks took 0.6 to 1.3 times as long as all scores at once, at 1,024 0.8 to 1.5 times, at 2,048 0.4 to 1.0
# times. By then the scores of a row are 50 MB a layer, 4 H T^2 bytes. A context of 1,024 tokens computes 1,023.
LENGTH_FOR_BLOCKS = 1000
# Positions of a block of queries, and of keys. On two cores, 256 and 512 take the same time within the noise; a GPU
# gains from fewer and larger products.
BLOCK = 512
# Logits at a time: with softmax and gradient 0.8 GB. At a vocabulary of 50,000 these are 1,300 positions, enough for
# products at full speed. What has no more is one piece: its product is not made a second time for the gradient.
LOGITS_AT_ONCE = 2**26
TILE = 64  # what sizes of parts are multiples of: odd sizes are slow to multiply


def size_of_parts(length: int, count: int, most: int) -> int:
    """The size of `count` parts of a length, of like size: the last one then has little to fill up.

    Args: most: a tile is never larger than this.
    """
    tile = min(TILE, most)
    return -(-length // (count * tile)) * tile

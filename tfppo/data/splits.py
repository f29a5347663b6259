"""Assigns texts to splits by their hash, so that no text is in two splits."""

import hashlib
from collections.abc import Iterable, Sequence

SPLITS = ("train", "validation", "test")


def split_of(key: str) -> str:
    """Returns the split of a key, equal in all processes: train 90 %, validation and test 5 %."""
    fraction = _fraction(key)
    return "train" if fraction < 0.9 else "validation" if fraction < 0.95 else "test"


def cut_splits(keys: Iterable[str], held_out: Sequence[str] = SPLITS[1:]) -> dict[str, str]:
    """Maps each different key to train or to one of the `held_out` splits, by `split_of`.

    Each split that stays empty takes a key from the largest one, so that three different keys are
    enough for three splits. The order of the keys does not matter.
    """
    keys_of: dict[str, list[str]] = {split: [] for split in ("train", *held_out)}
    for key in sorted(set(keys), key=_fraction):
        split = split_of(key)
        keys_of[split if split in held_out else "train"].append(key)
    for split, split_keys in keys_of.items():
        largest = max(keys_of.values(), key=len)
        needed = 1 if split == "train" else 2  # train comes first, and may take the only key
        if not split_keys and len(largest) >= needed:
            split_keys.append(largest.pop())
    return {key: split for split, split_keys in keys_of.items() for key in split_keys}


def _fraction(key):
    """A number in [0, 1) by SHA-256; the `hash` of Python differs between processes."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64

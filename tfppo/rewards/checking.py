"""Checks what a reward function returned."""

from collections.abc import Mapping, Set

import numpy as np

from tfppo.errors import UserError
from tfppo.rewards.batch import Batch

_LARGEST = float(np.finfo(np.float32).max)
_NUMBERS = "biuf"  # kinds of NumPy: truth values, integers and floating-point numbers
_NO_LISTS = (str, bytes, Mapping, Set)  # they can be gone through, but their items are no scores in the order of rows


def checked_scores(name: str, scores: object, batch: Batch) -> np.ndarray:
    """What a reward returned as float32 [B], or [B, R] where it is dense.

    A score is a number or a truth value (then 1 or 0), by itself or as an array's.

    Raises: UserError, with prompt and response, where that is not one finite number a response, or one a token.
    """
    if isinstance(scores, _NO_LISTS):
        raise UserError(
            f"{_not_numbers(name, scores)}; return a list with one number for each response, in their order"
        )
    try:
        listed = list(scores)  # type: ignore[call-overload]
    except TypeError as error:
        raise UserError(f"{_not_numbers(name, scores)}; return one number for each response") from error
    if len(listed) != len(batch.responses):
        raise UserError(
            f"reward {name} returned {len(listed)} scores for {len(batch.responses)} responses; "
            f"it must return one a response"
        )
    rows = [_numbers(name, scores, row, batch, number) for number, row in enumerate(listed)]
    dense = any(row.ndim for row in rows)
    for number, (row, length) in enumerate(zip(rows, batch.lengths, strict=True)):
        if dense and row.shape != (length,):
            raise UserError(
                f"reward {name} returned scores of shape {list(row.shape)} for the response "
                f"{batch.responses[number]!r:.160} of {length} tokens; dense scores are one number a token, for every "
                f"response"
            )
        infinite, too_large = ~np.isfinite(row), np.abs(row) > _LARGEST
        if infinite.any():
            raise UserError(f"reward {name} is {_first(row, infinite)} for {batch.quoted(number)}; it must be finite")
        if too_large.any():
            raise UserError(
                f"reward {name} is {_first(row, too_large)} for {batch.quoted(number)}; it must be at most "
                f"{_LARGEST:.3g}, the largest number of float32: scale it"
            )
    return _pad_right(rows, batch.response_mask.shape[1]) if dense else np.array(rows, np.float32)


def _not_numbers(name, scores):
    return f"reward {name} must return a list of numbers, not {scores!r:.200}"


def _numbers(name, scores, row, batch, number):
    """The score or scores of one response as float64."""
    try:
        array = _as_array(row)
        if array.dtype.kind == "O" and not any(item is None or isinstance(item, str | bytes) for item in array.flat):
            array = array.astype(np.float64)  # fractions, decimals, integers of many digits
        elif array.dtype.kind == "V":  # bfloat16 and its like, which NumPy does not know
            array = array.astype(np.float32)
        if array.dtype.kind in _NUMBERS:
            return array.astype(np.float64)
        reason = ""
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        reason = f" ({error})"
    raise UserError(
        f"{_not_numbers(name, scores)}: for {batch.quoted(number)} it is {row!r:.100}{reason}; make it a number"
    )


def _first(row, wrong):
    """The first wrong score of a response, and its token where there are several."""
    at = int(np.argmax(wrong))
    return f"{row.flat[at]:g} at token {at + 1}" if row.ndim else f"{row:g}"


def _as_array(row):
    try:
        return np.asarray(row)
    except ValueError:  # a tensor of one bfloat16 number has no array; a ragged list is no number either
        return np.asarray(float(row))


def _pad_right(rows, length):
    return np.stack([np.pad(row, (0, length - len(row))) for row in rows]).astype(np.float32)

"""Tells in one line what a reward function raised, where, and at which response."""

import inspect
import os
import traceback
from collections import Counter
from collections.abc import Callable

from tfppo.rewards.batch import Batch


def told(error: BaseException) -> str:
    """Type and message of an exception, on one line."""
    try:
        message = " ".join(str(error).split())
    except Exception:  # a class of the user's may fail here, too
        message = ""
    return f"{type(error).__name__}: {message:.400}" if message else type(error).__name__


def beginning(batch: Batch) -> str:
    """What a function was called with, where nothing shows which row it was at."""
    return f"called with {len(batch.responses)} responses, the first being {batch.quoted(0)}"


def row_of(error: BaseException, batch: Batch) -> str:
    """The row that a function was at when it raised, as far as its variables show it; else how the batch begins."""
    # Python keeps short texts once: of rows that share theirs, a variable does not tell which one it is.
    times = Counter(map(id, batch.responses))
    rows = {id(response): row for row, response in enumerate(batch.responses) if times[id(response)] == 1}
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        here = {rows[id(value)] for value in frame.f_locals.values() if id(value) in rows}
        found = here.pop() if len(here) == 1 else found
    return beginning(batch) if found is None else f"at {batch.quoted(found)}"


def place(error: BaseException, function: Callable) -> str:
    """The last line of the function's own file that led to an error, as " at FILE:LINE"; empty where there is none."""
    code = _code(function)
    lines = [
        frame for frame in traceback.extract_tb(error.__traceback__) if code and frame.filename == code.co_filename
    ]
    return f" at {os.path.relpath(lines[-1].filename)}:{lines[-1].lineno}" if lines else ""


def definition(function: Callable) -> str:
    """Where a function begins, as "FILE:LINE"; empty where that is not known, as of one in C."""
    code = _code(function)
    return f"{os.path.relpath(code.co_filename)}:{code.co_firstlineno}" if code else ""


def _code(function):
    return getattr(inspect.unwrap(function), "__code__", None) or getattr(type(function).__call__, "__code__", None)

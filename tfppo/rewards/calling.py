"""Calls that may fail or hang: in threads that nobody has to wait for, and again after waits that grow.

The threads are daemons: what hangs in one is left behind, and keeps neither Ctrl-C nor the end of the program waiting.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before a call is made again: doubled each time, up to the longest


class Overdue(Exception):
    """A call has taken longer than it may; it may still be running in its thread."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a call that fails is made again, and how many seconds each may take (None: any)."""

    retries: int = 0
    timeout: float | None = None

    def waits(self) -> list[float]:
        """Seconds before each further try."""
        return [min(FIRST_WAIT * 2.0 ** min(number, 30), LONGEST_WAIT) for number in range(self.retries)]


def call_within(seconds: float | None, call: Callable[[], T]) -> T:
    """The result of a call, which runs in a thread of its own where its time is limited.

    Raises: Overdue after `seconds`; whatever the call raises.
    """
    if seconds is None:
        return call()
    finish = start_all(lambda _: call(), [None], workers=1)
    return finish(seconds)[0]


def persist(
    call: Callable[[], T],
    patience: Patience,
    *,
    wait_asked: Callable[[BaseException], float | None] = lambda error: 0.0,
    announce: Callable[[BaseException, float], None] = lambda error, seconds: None,
    sleep: Callable[[float], object] = time.sleep,
) -> T:
    """The result of a call that is made again where it fails, after waits that grow.

    Args:
        wait_asked: of what the call raised: seconds to wait at least, None where another try is of no use.
        announce: is told of each failure that another try follows, and in how many seconds.
    Raises: what the last try raised; Overdue. KeyboardInterrupt ends it at once.
    """
    for wait in (*patience.waits(), None):
        try:
            return call_within(patience.timeout, call)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a SystemExit, too: a function of the user's must not end the run
            asked = wait_asked(error)
            if wait is None or asked is None:
                raise
            seconds = max(wait, asked)
            announce(error, seconds)
        sleep(seconds)
    raise AssertionError("the last try returns or raises")


def start_all(call: Callable[[T], R], items: Iterable[T], workers: int) -> Callable[[float | None], list[R]]:
    """Starts a call on each item, at most `workers` at once, in daemon threads.

    Returns: a function that waits for the results (up to so many seconds), in the order of the items. It raises what
        the first call to fail raised, or Overdue; calls that have not begun then never do.
    """
    todo: queue.SimpleQueue = queue.SimpleQueue()
    done: queue.SimpleQueue = queue.SimpleQueue()
    ended = threading.Event()
    for entry in enumerate(items):
        todo.put(entry)
    count = todo.qsize()

    def work():
        while not ended.is_set():
            try:
                number, item = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((number, call(item), None))
            except BaseException as error:
                done.put((number, None, error))

    for _ in range(min(workers, count)):
        threading.Thread(target=work, name="tfppo-reward", daemon=True).start()

    def finish(seconds: float | None = None) -> list[R]:
        results: dict[int, R] = {}
        deadline = None if seconds is None else time.monotonic() + seconds
        try:
            while len(results) < count:
                # A queue's get lets signals through: Ctrl-C is heard while a call hangs.
                left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
                try:
                    number, result, error = done.get(timeout=left)
                except queue.Empty:
                    raise Overdue(f"no result after {seconds:g} s") from None
                if error is not None:
                    raise error
                results[number] = result
        finally:
            ended.set()
        return [results[number] for number in range(count)]

    return finish

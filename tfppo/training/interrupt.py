"""Ctrl-C, SIGTERM and SIGHUP: the first one asks training to save and end, the next one ends the process at once.

Python runs a signal's handler in the main thread, between two of its own instructions: not while an operation of
TensorFlow computes for a minute. So a thread listens as well; the interpreter writes each signal's number into a pipe
as soon as the signal comes (`signal.set_wakeup_fd`).
"""

import math
import os
import select
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

EXIT_INTERRUPTED = 130
AT_ONCE = "stopped at once; run the same command again to go on from what was saved"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SECONDS_TO_FLUSH = 1.0
# What comes sooner after a signal is the same one again: `timeout`, job systems and wrappers send theirs to a process
# and to its group.
_SECONDS_OF_ONE = 0.2


class Interrupted(Exception):
    """A run that was asked to stop, and has saved its state."""


class _Listener:
    """Calls `hear` for each signal, in whichever thread gets to it first. Made and closed in the main thread.

    Args: handle: what the main thread does besides, when it gets to it.
    """

    def __init__(self, hear: Callable[[], None], handle: Callable[[], None] = lambda: None):
        self._hear, self._handle = hear, handle
        # Who waits for it gives the other thread its turn, which may have read a number and not yet acted on it. It is
        # the thread's own, as a handler may run within a handler.
        self._turn = threading.RLock()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        # Under nohup, a terminal that closes is nothing to hear of.
        heard = [n for n in _SIGNALS if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._in_main_thread) for number in heard}
        self._previous_descriptor = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def take_again(self) -> None:
        """Puts the handlers in place once more."""
        for number in self._previous:
            signal.signal(number, self._in_main_thread)

    def close(self) -> None:
        self.restore(self._previous_descriptor)
        os.write(self._writer, b"\0")
        self._thread.join(_SECONDS_TO_FLUSH)
        os.close(self._reader)
        os.close(self._writer)

    def restore(self, descriptor: int = -1) -> None:
        """Puts the earlier handlers back, and the earlier pipe."""
        signal.set_wakeup_fd(descriptor)
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _in_main_thread(self, number, frame):
        # First, as C code that never gives the other threads a turn may still look for signals.
        self._read()
        self._handle()

    def _listen(self):
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        while True:
            poll.poll()
            if not self._read():
                return

    def _read(self):
        """Hears the signals that nobody has heard yet; False once the listener is closed."""
        with self._turn:
            try:
                numbers = os.read(self._reader, 64)
            except BlockingIOError:  # the other thread was first
                return True
            for number in numbers:
                if number == signal.SIGHUP:
                    _leave_terminal()
                if number in _SIGNALS:
                    self._hear()
            return 0 not in numbers


class StopRequest:
    """Context in which the first signal only sets `requested`, and says at once what is waited for.

    The next one ends the process at once in a binary (`Program`), and raises KeyboardInterrupt elsewhere. In a thread
    other than the main one, signals do what they did before. Raises: Interrupted at its end, where a request came too
    late to be seen.

    Args: anywhere: whether a flag is set at some worker, as `tfppo.training.workers` tells it.
    """

    def __init__(self, anywhere: Callable[[bool], bool] = bool) -> None:
        self._anywhere = anywhere
        self._asked, self._asked_at, self._handled = threading.Lock(), math.inf, False
        self._what, self._began, self._seconds = "this step", 0.0, 0.0
        self._listener: _Listener | None = None

    @property
    def requested(self) -> bool:
        """Whether a signal came to this process."""
        return self._asked.locked()

    def agreed(self) -> bool:
        """Whether a signal came to some worker. All of them ask at the same places."""
        return self._anywhere(self.requested)

    def begins(self, what: str) -> None:
        """Says what is being done from now on: the message names it, with the time that the last one took."""
        now = time.monotonic()
        self._seconds = now - self._began if self._began else 0.0
        self._what, self._began = what, now

    def ask(self) -> bool:
        """Requests the stop; False where it was requested before."""
        if not self._asked.acquire(blocking=False):  # a lock, as two threads may hear two signals at once
            return time.monotonic() - self._asked_at < _SECONDS_OF_ONE
        self._asked_at = time.monotonic()
        left = self._seconds - (self._asked_at - self._began)
        about = f", about {max(round(left), 1)} s" if self._seconds else ""
        _say(f"stopping: finishing {self._what}{about}; press Ctrl-C again to stop at once without saving it")
        return True

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            if Program.current:
                Program.current.requests.append(self)
            else:
                self._listener = _listen(self.ask, self._handle)
        return self

    def __exit__(self, kind, error, trace):
        if self._listener:
            _stop_listening(self._listener)
        elif Program.current and self in Program.current.requests:
            Program.current.requests.remove(self)
        if kind is None and self.agreed():
            raise Interrupted("everything is saved")

    def _handle(self):
        if not self.ask() and self._handled:
            raise KeyboardInterrupt
        self._handled = True


class Program:
    """Context of a binary, from its first line to its last: a signal that no `StopRequest` takes ends it at once.

    What is on the disk is whole at any moment, so that nothing needs to be put in order. Args: last_words: are printed.
    """

    current: "Program | None" = None

    def __init__(self, last_words: str = AT_ONCE):
        self.requests: list[StopRequest] = []
        self._last_words = last_words

    def __enter__(self) -> Self:
        self._listener = _listen(self._hear)
        Program.current = self
        return self

    def __exit__(self, *exception):
        Program.current = None
        _stop_listening(self._listener)

    def _hear(self):
        # A slice, as the main thread may take the last one away in between.
        if not any(request.ask() for request in self.requests[-1:]):
            self._end()

    def _end(self):
        # In a thread and not for long: the main thread may hang while it writes.
        flush = threading.Thread(target=_flush, daemon=True)
        flush.start()
        flush.join(_SECONDS_TO_FLUSH)
        _say(self._last_words)
        os._exit(EXIT_INTERRUPTED)


# Those of this process; a fork must not share them, as its signals would be heard here.
_listeners: list[_Listener] = []


def _listen(*arguments):
    listener = _Listener(*arguments)
    _listeners.append(listener)
    return listener


def listen_again() -> None:
    """Takes the signals back from a library that has put a handler of its own in place."""
    for listener in _listeners:
        listener.take_again()


def _stop_listening(listener):
    if listener in _listeners:  # not in a fork that leaves a context of its parent's
        _listeners.remove(listener)
        listener.close()


def _forget() -> None:
    """In a fork: signals do what they did before."""
    while _listeners:
        _listeners.pop().restore()
    Program.current = None


os.register_at_fork(after_in_child=_forget)


def _flush():
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()


def _leave_terminal():
    """Writes to a terminal that has closed fail: they would end the run before it has saved."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def _say(line):
    """A line on stderr, past the buffer that the main thread may be writing to; below a progress bar."""
    try:
        descriptor = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # a notebook's
        print(line, file=sys.stderr)
        return
    with suppress(OSError):
        os.write(descriptor, f"\n{line}\n".encode())

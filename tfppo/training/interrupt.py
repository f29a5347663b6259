"""Turns Ctrl-C and SIGTERM into a request: the training loop finishes its step, saves and ends."""

import signal
import threading


class StopRequest:
    """Context in which the first SIGINT or SIGTERM only sets `requested`; a second one interrupts at once."""

    def __init__(self):
        self.requested = False
        self._previous = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


class Interrupted(Exception):
    """A run that was asked to stop, and has saved its state."""

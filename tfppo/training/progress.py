"""The progress of a run: a bar where the output is a terminal, else lines that a log file can hold."""

import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

from tqdm import tqdm

from tfppo.cluster import this_cluster

SECONDS_BETWEEN_LINES = 10.0
_RECENT = 9  # steps whose median is the pace: what some of them do besides, or compile, does not count
Step = TypeVar("Step")


class Progress:
    """Context that counts steps and shows figures of the last one, with the time left.

    Args:
        total, done: number of steps, and how many of them were done before.
        unit: what a step is called.
        starts: what the first step does before it works, which takes longer than any other; "": nothing.
        every: without a terminal, the least seconds between two lines; the first and the last step always get one.
    """

    def __init__(
        self,
        *,
        total: int,
        done: int = 0,
        description: str,
        unit: str = "step",
        starts: str = "",
        every: float = SECONDS_BETWEEN_LINES,
    ):
        self._total, self._done, self._description, self._unit, self._every = total, done, description, unit, every
        self._starts = starts if done < total else ""
        self._bar: tqdm | None = None
        self._waiting: _Waiting | None = None
        self._recent: deque[float] = deque(maxlen=_RECENT)  # seconds of the last steps, without the first
        self._first, self._shown_at, self._stepped_at = True, -every, 0.0

    def __enter__(self) -> Self:
        if self._starts:
            self.write(f"{self._description}: the first {self._unit} {self._starts}")
        if sys.stderr.isatty() and this_cluster().is_chief:
            self._bar = tqdm(
                total=self._total,
                initial=self._done,
                desc=self._description,
                dynamic_ncols=True,
                mininterval=0.5,
                bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",  # tqdm's own estimate is left out
            )
        self._stepped_at = time.perf_counter()
        if self._bar is not None and self._starts:
            self._waiting = _Waiting(self._bar)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end_waiting()
        if self._bar is not None:
            self._bar.close()

    def _end_waiting(self):
        if self._waiting is not None:
            self._waiting.end()
            self._waiting = None

    def advance(self, **figures: str) -> None:
        """One more step is done; the figures, by name, are of this step."""
        self._end_waiting()
        self._done += 1
        now = time.perf_counter()
        seconds, self._stepped_at = now - self._stepped_at, now
        if not self._first:
            self._recent.append(seconds)
        if self._bar is not None:
            left = self._left()
            self._bar.set_postfix({**figures, "left": left} if left else figures, refresh=False)
            self._bar.update()
        elif self._first or self._done == self._total or now - self._shown_at >= self._every:
            self.write(self._line(figures, seconds))
            self._shown_at = now
        self._first = False

    def write(self, line: str) -> None:
        """Shows a line beside the progress."""
        if self._bar is not None:
            self._bar.write(line)
        else:
            print(line, flush=True)  # or a log lags behind by a buffer

    def _line(self, figures, seconds):
        shown = "".join(f", {name} {value}" for name, value in figures.items())
        left = self._left()
        spent = f"; it took {seconds:.1f} s" if self._first and self._starts else ""
        return (
            f"{self._description}: {self._unit} {self._done}/{self._total}{shown}{spent}{f'; {left} left' * bool(left)}"
        )

    def _left(self):
        """The time left; "" where too little is known, as the second step may compile something too, or none is."""
        steps = self._total - self._done
        return duration(steps * statistics.median_low(self._recent)) if steps and len(self._recent) > 1 else ""


class _Waiting:
    """Shows on a bar for how many seconds the first step has been compiling, until it ends."""

    def __init__(self, bar: tqdm):
        self._bar, self._ended = bar, threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._thread.start()

    def _tick(self):
        seconds = 0
        while not self._ended.wait(1.0):
            seconds += 1
            self._bar.set_postfix_str(f"compiling: {duration(seconds)}")

    def end(self):
        self._ended.set()
        self._thread.join()
        self._bar.set_postfix_str("", refresh=False)


def shown(
    steps: Iterable[Step], *, total: int, description: str, unit: str = "step", starts: str = ""
) -> Iterator[Step]:
    """The steps as they come, with their progress; the arguments are those of Progress."""
    with Progress(total=total, description=description, unit=unit, starts=starts) as bar:
        for step in steps:
            yield step
            bar.advance()


def duration(seconds: float) -> str:
    """A span of time in the two units that fit: "40 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

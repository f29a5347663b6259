"""Progress: a bar on a terminal; lines where the output is none, which say how far a run is and how long it takes."""

import io
import sys
import threading
import time
import types

import pytest

from tfppo.training import progress
from tfppo.training.progress import Progress, duration, shown


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""

    class Clock:
        now = 1000.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def lines_of(clock, capsys, seconds, **arguments):
    """What is printed for steps that take so many seconds each."""
    with Progress(description="PPO", **arguments) as bar:
        for number, taken in enumerate(seconds, start=1):
            clock.now += taken
            bar.advance(score=f"0.{number}")
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out.splitlines()


def test_one_line_a_step_with_the_time_left(clock, capsys):
    lines = lines_of(clock, capsys, [30, 12, 4, 5], total=4, unit="iteration", starts="compiles", every=0.0)
    assert lines == [
        "PPO: the first iteration compiles",
        "PPO: iteration 1/4, score 0.1; it took 30.0 s",  # no guess from a step that compiled
        "PPO: iteration 2/4, score 0.2",  # as this one may have
        "PPO: iteration 3/4, score 0.3; 4 s left",
        "PPO: iteration 4/4, score 0.4",
    ]


def test_the_pace_follows_the_steps(clock, capsys):
    lines = lines_of(clock, capsys, [90, 60, 9, 7, 8, 70], total=106, every=0.0)
    # Of 60, 9, 7, 8 and 70 the median is 9; 100 steps are left.
    assert lines[-1] == "PPO: step 6/106, score 0.6; 15 min 0 s left"
    lines = lines_of(clock, capsys, [90, *[9] * 9, *[2] * 5], total=115, every=0.0)
    assert lines[-1] == "PPO: step 15/115, score 0.15; 3 min 20 s left"  # of the last nine, five took 2 s


def test_many_short_steps_give_a_line_now_and_then(clock, capsys):
    lines = lines_of(clock, capsys, [3.0] * 10, total=10, every=10.0)
    # At 3 s; then 12 s and 24 s, the first steps with 10 s since the last line behind them... and the last step.
    assert [line.split(",")[0] for line in lines] == [f"PPO: step {step}/10" for step in (1, 5, 9, 10)]


def test_a_run_that_goes_on_counts_from_where_it_was(clock, capsys):
    lines = lines_of(clock, capsys, [5, 2, 2], total=20, done=10, starts="compiles", every=0.0)
    assert lines[0] == "PPO: the first step compiles"
    assert lines[3] == "PPO: step 13/20, score 0.3; 14 s left"


def test_a_finished_run_says_nothing(clock, capsys):
    assert lines_of(clock, capsys, [], total=20, done=20, starts="compiles") == []


def test_steps_of_a_loop_are_shown(clock, capsys):
    seen = []
    for step in shown("abcd", total=4, description="evaluation"):
        clock.now += 11
        seen.append(step)
    assert seen == ["a", "b", "c", "d"]
    assert capsys.readouterr().out.splitlines() == [
        "evaluation: step 1/4",
        "evaluation: step 2/4",
        "evaluation: step 3/4; 11 s left",
        "evaluation: step 4/4",
    ]


def test_lines_of_others_come_at_once(capsys, monkeypatch):
    flushed = []
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys.stdout, "flush", lambda: flushed.append(sys.stdout.getvalue()))
    with Progress(total=1, description="PPO") as bar:
        bar.write("a warning")
    assert flushed == ["a warning\n"]


def test_the_bar_has_the_same_estimate(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(total=10, description="PPO", starts="compiles") as bar:
        for seconds in (300, 30, 4, 4):
            clock.now += seconds
            bar.advance(score="0.1")
        bar._bar.refresh()
    assert "4/10" in terminal.getvalue() and "left=24 s" in terminal.getvalue()
    assert "it/s" not in terminal.getvalue() and "s/it" not in terminal.getvalue()


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(total=2, description="PPO", unit="iteration", starts="compiles") as bar:
        bar.advance(score="0.1")
        bar.write("a warning")
        bar.advance(score="0.2")
    assert "PPO: 100%" in terminal.getvalue() and "2/2" in terminal.getvalue() and "score=0.2" in terminal.getvalue()
    assert capsys.readouterr().out == "PPO: the first iteration compiles\na warning\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 0 min"),
        (7530, "2 h 5 min"),
        (90000, "25 h 0 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_a_bar_shows_for_how_long_the_first_step_compiles(monkeypatch):
    class Clock(threading.Event):
        """Four seconds that pass at once."""

        def wait(self, timeout):
            assert timeout == 1.0
            seconds.append(timeout)
            return len(seconds) > 4 and super().wait()

    seconds = []
    monkeypatch.setattr(progress, "threading", types.SimpleNamespace(Event=Clock, Thread=threading.Thread))
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress(total=3, description="PPO", starts="compiles") as bar:
        while len(seconds) < 5:
            time.sleep(0.01)
        bar.advance(score="0.1")
        bar.advance(score="0.2")
    shown = sys.stderr.getvalue()
    assert "compiling: 4 s" in shown
    assert "score=" in shown[shown.rindex("compiling") :]  # and never again
    assert "compiling" not in shown[shown.index("score=") :]


def test_a_run_that_is_over_compiles_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    before = threading.active_count()
    with Progress(total=3, done=3, description="PPO", starts="compiles"):
        assert threading.active_count() == before

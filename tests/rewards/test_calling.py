"""Calls that fail or hang: how often they are made again, after which waits, and what is left behind."""

import os
import queue
import signal
import threading
import time

import pytest

from tfppo.rewards import calling
from tfppo.rewards.calling import Overdue, Patience, call_within, persist, start_all


def failing(times, error=RuntimeError):
    """A call that fails so many times, and then returns how often it was called."""
    calls = []

    def call():
        calls.append(None)
        if len(calls) <= times:
            raise error(f"call {len(calls)}")
        return len(calls)

    return call


def test_waits_double_up_to_the_longest():
    assert Patience(retries=9).waits() == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert Patience(retries=5000).waits()[-1] == 60.0  # 2 ** 5000 is no float
    assert Patience().waits() == []


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_a_call_is_made_again_until_it_succeeds(error):
    slept, told = [], []
    result = persist(
        failing(3, error),
        Patience(retries=5),
        sleep=slept.append,
        announce=lambda error, seconds: told.append((str(error), seconds)),
    )
    assert result == 4 and slept == [1.0, 2.0, 4.0]
    assert told == [("call 1", 1.0), ("call 2", 2.0), ("call 3", 4.0)]


def test_the_last_failure_is_raised():
    slept = []
    with pytest.raises(RuntimeError, match="call 3"):
        persist(failing(9), Patience(retries=2), sleep=slept.append)
    assert slept == [1.0, 2.0]


def test_a_longer_wait_may_be_asked_for_and_a_useless_try_left_out():
    slept = []
    assert persist(failing(2), Patience(retries=2), wait_asked=lambda error: 1.5, sleep=slept.append) == 3
    assert slept == [1.5, 2.0]
    with pytest.raises(RuntimeError, match="call 1"):
        persist(failing(9), Patience(retries=2), wait_asked=lambda error: None, sleep=slept.append)


def test_ctrl_c_is_no_failure():
    with pytest.raises(KeyboardInterrupt):
        persist(failing(1, KeyboardInterrupt), Patience(retries=3), sleep=lambda seconds: pytest.fail("waited"))


def test_a_call_without_a_limit_runs_where_it_is_made():
    assert call_within(None, threading.current_thread) is threading.current_thread()
    assert call_within(9.0, threading.current_thread).daemon
    with pytest.raises(ZeroDivisionError):
        call_within(9.0, lambda: 1 / 0)


def test_a_call_that_hangs_is_left_behind():
    release = threading.Event()
    started = time.monotonic()
    with pytest.raises(Overdue):
        call_within(0.05, release.wait)
    assert time.monotonic() - started < 5
    release.set()


@pytest.mark.parametrize("seconds", [None, 60.0])
def test_an_empty_queue_of_the_calls_own_is_its_failure_and_not_a_late_answer(seconds):
    def call(item):
        raise queue.Empty(item)

    with pytest.raises(queue.Empty, match="mine"):
        start_all(call, ["mine"], workers=1)(seconds)


def test_a_signal_is_heard_while_a_call_hangs():
    def handle(number, frame):
        raise KeyboardInterrupt

    release, previous = threading.Event(), signal.signal(signal.SIGINT, handle)
    try:
        for start in (lambda: call_within(60.0, release.wait), lambda: start_all(release.wait, [60.0], 1)(None)):
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
            started = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                start()
            assert time.monotonic() - started < 5
    finally:
        signal.signal(signal.SIGINT, previous)
        release.set()


def test_results_are_in_order_and_no_more_run_at_once_than_allowed():
    running, most, lock = 0, 0, threading.Lock()

    def call(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02 if number % 2 else 0.005)
        with lock:
            running -= 1
        return 10 * number

    assert start_all(call, range(9), workers=3)(None) == [10 * number for number in range(9)]
    assert most == 3
    assert start_all(call, [], workers=3)(None) == []


def test_after_a_failure_what_has_not_begun_never_does():
    begun = []

    def call(number):
        begun.append(number)
        if number == 1:
            raise RuntimeError("one")
        time.sleep(0.05)

    with pytest.raises(RuntimeError, match="one"):
        start_all(call, range(50), workers=2)(None)
    time.sleep(0.15)
    assert len(begun) < 8


def test_the_constants_are_those_of_the_settings_comment():
    assert (calling.FIRST_WAIT, calling.LONGEST_WAIT) == (1.0, 60.0)

"""Signals: heard at once, also while the main thread runs no Python; each test is a process of its own."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from binaries import ROOT, environment

LAST = "stopped at once; run the same command again to go on from what was saved"
# A lock that is never free: the main thread waits in C, as in a long operation, and restarts that after each handler.
BLOCKED = "lock = threading.Lock(); lock.acquire(); print('ready', flush=True); lock.acquire()"
SLEEP = "print('ready', flush=True); time.sleep(60)"
# The expression looks for signals, but gives no other thread a turn.
SEARCH = "print('ready', flush=True); re.match('(a+)+$', 'a' * 50 + 'b')"
PROGRAM = """
import multiprocessing, os, re, signal, sys, threading, time
from tfppo.training.interrupt import Interrupted, Program, StopRequest
print("buffered ", end="")
{body}
"""


def start(body):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body)],
        cwd=ROOT,
        env=environment(PYTHONUNBUFFERED=""),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    line = process.stdout.readline()
    assert line.endswith("ready\n"), line
    os.set_blocking(process.stderr.fileno(), False)
    return process


def lines_after(process, seconds=5.0):
    """What a process writes on stderr next: the lines of the first write."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        with suppress(BlockingIOError):
            return [line for line in os.read(process.stderr.fileno(), 10_000).decode().splitlines() if line]
        time.sleep(0.01)
    return []


def again(process, number):
    """A second signal, later than one that only arrives twice."""
    time.sleep(0.3)
    process.send_signal(number)


def end_of(process):
    """Exit code, and the seconds until it came."""
    started = time.monotonic()
    try:
        return process.wait(20), time.monotonic() - started
    finally:
        process.kill()
        process.stdout.close()
        process.stderr.close()


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("work", [BLOCKED, SLEEP, SEARCH], ids=["blocked", "sleeping", "searching"])
def test_the_first_signal_says_what_it_waits_for_and_the_second_ends_at_once(work, second):
    body = f"with Program(), StopRequest() as stop:\n    stop.begins('iteration 12')\n    {work}"
    process = start(body)
    process.send_signal(signal.SIGINT)
    expected = "stopping: finishing iteration 12; press Ctrl-C again to stop at once without saving it"
    assert lines_after(process) == [expected]
    assert process.poll() is None
    again(process, second)
    assert lines_after(process) == [LAST]
    code, seconds = end_of(process)
    assert code == 130 and seconds < 2


@pytest.mark.parametrize("context", ["Program(), StopRequest()", "StopRequest()"])
def test_a_signal_that_comes_twice_is_one(context):
    """As `timeout` sends it: to the process, and to its group."""
    process = start(f"with {context}:\n    {SLEEP}")
    process.send_signal(signal.SIGTERM)
    assert len(lines_after(process)) == 1
    process.send_signal(signal.SIGTERM)
    assert lines_after(process, seconds=0.4) == [] and process.poll() is None
    process.kill()
    end_of(process)


def test_what_was_printed_is_not_lost():
    process = start("with Program():\n    print(42, end=''); os.write(1, b'ready\\n'); time.sleep(60)")
    process.send_signal(signal.SIGTERM)
    code, rest = process.wait(20), process.stdout.read()
    assert (code, rest) == (130, "buffered 42")
    end_of(process)


def test_outside_of_training_the_first_signal_ends_at_once():
    process = start(f"with Program():\n    with StopRequest():\n        pass\n    {BLOCKED}")
    process.send_signal(signal.SIGINT)
    assert lines_after(process) == [LAST]
    assert end_of(process)[0] == 130


def test_the_time_that_is_left_is_that_of_the_last_one():
    begins = "stop.begins('iteration 1'); stop._began -= 8.4; stop.begins('iteration 2')"
    process = start(f"with Program(), StopRequest() as stop:\n    {begins}; {SLEEP}")
    process.send_signal(signal.SIGINT)
    (line,) = lines_after(process)
    assert re.match(r"stopping: finishing iteration 2, about 8 s; ", line)
    again(process, signal.SIGINT)
    assert end_of(process)[0] == 130


def test_a_request_that_nobody_saw_ends_the_training_all_the_same():
    body = (
        "with Program():\n"
        "    try:\n"
        "        with StopRequest() as stop:\n"
        "            print('ready', flush=True)\n"
        "            while not stop.requested: time.sleep(0.01)\n"
        "    except Interrupted as interrupted:\n"
        "        sys.exit(f'{interrupted}!')\n"
    )
    process = start(body)
    process.send_signal(signal.SIGTERM)
    code, _ = end_of(process)
    assert code == 1


def test_without_a_program_the_second_signal_raises():
    body = (
        "try:\n"
        "    with StopRequest() as stop:\n"
        f"        {SLEEP}\n"
        "except KeyboardInterrupt:\n"
        "    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "    assert signal.set_wakeup_fd(-1) == -1\n"
        "    sys.exit(7)\n"
    )
    process = start(body)
    process.send_signal(signal.SIGINT)
    assert lines_after(process)[0].startswith("stopping: finishing this step; ")
    again(process, signal.SIGINT)
    assert end_of(process)[0] == 7


def test_a_fork_has_its_own_signals():
    """Ctrl-C at a terminal goes to all processes: those of the forks are not heard here as a second one."""
    body = (
        "def work():\n"
        "    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL\n"
        "    time.sleep(60)\n"
        "with Program(), StopRequest() as stop:\n"
        "    workers = [multiprocessing.get_context('fork').Process(target=work) for _ in range(3)]\n"
        "    for worker in workers: worker.start()\n"
        "    time.sleep(0.3)\n"
        "    for worker in workers: os.kill(worker.pid, signal.SIGINT)\n"
        "    for worker in workers[1:]: worker.terminate()\n"
        "    for worker in workers: worker.join(20)\n"
        "    assert not any(worker.is_alive() for worker in workers) and not stop.requested\n"
        "    print('ready', flush=True)\n"
    )
    process = start(body)
    assert end_of(process)[0] == 0


def test_in_another_thread_signals_are_left_alone():
    body = (
        "def train():\n"
        "    with StopRequest() as stop:\n"
        "        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "thread = threading.Thread(target=train); thread.start(); thread.join()\n"
        "print('ready', flush=True)\n"
    )
    assert end_of(start(body))[0] == 0


def test_a_terminal_that_closes_is_a_request_and_what_is_written_afterwards_ends_nothing(tmp_path):
    saved = tmp_path / "saved"
    work = (
        "    print('ready', flush=True)\n    while not stop.requested:\n        time.sleep(0.01)\n"
        f"    print('more', flush=True)\n    open({str(saved)!r}, 'w').close()\n"
    )
    ours, its = os.openpty()
    body = f"with Program(), suppress(Interrupted), StopRequest() as stop:\n{work}"
    code = PROGRAM.format(body=f"from contextlib import suppress\n{body}")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment(), stdout=its, stderr=its)
    os.close(its)
    while b"ready" not in os.read(ours, 1000):
        pass
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    assert process.wait(20) == 0 and saved.exists()


def test_under_nohup_a_terminal_that_closes_is_not_heard_of():
    process = start(
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with Program(), StopRequest() as stop:\n    print('ready', flush=True)\n    time.sleep(0.5)\n"
        "    os._exit(7 if stop.requested else 0)"
    )
    process.send_signal(signal.SIGHUP)
    assert end_of(process)[0] == 0

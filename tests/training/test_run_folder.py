"""One process a run folder: the second is refused with the name of the first, and a lock ends with its process."""

import json
import multiprocessing
import os
import re
import signal
import time

import pytest

from tfppo.errors import UserError
from tfppo.files import try_lock
from tfppo.training import run_folder
from tfppo.training.run_folder import LOCK_FILE, claim

COMMAND = "tfppo train-ppo '--workdir=a b'"
CONTEXT = multiprocessing.get_context("fork")


@pytest.fixture
def free():
    """Lets go of what a test has claimed, as the end of its process would."""
    yield
    run_folder._let_go()


def hold(folder, ready, orphan=False):
    claim(folder, COMMAND)
    if orphan and os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    ready.set()
    time.sleep(60)


@pytest.fixture
def first(tmp_path):
    """A function that starts a process which holds the folder."""
    processes = []

    def start(**options):
        ready = CONTEXT.Event()
        process = CONTEXT.Process(target=hold, args=(tmp_path, ready), kwargs=options)
        process.start()
        processes.append(process)
        assert ready.wait(30)
        return process

    yield start
    for process in processes:
        process.kill()
        process.join()


def test_a_second_process_is_refused_and_told_who_is_first(tmp_path, first, free):
    process = first()
    with pytest.raises(UserError) as error:
        claim(tmp_path, "me")
    pattern = (
        rf"--workdir '{re.escape(str(tmp_path))}' is in use by process {process.pid} on \S+ since "
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \(tfppo train-ppo '--workdir=a b'\); wait for its end, .*"
    )
    assert re.fullmatch(pattern, str(error.value))
    assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == process.pid  # the second one left it


def test_the_lock_of_a_killed_process_does_not_block(tmp_path, first, free):
    process = first()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert (tmp_path / LOCK_FILE).exists()
    assert claim(tmp_path, "me") == tmp_path
    assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_a_fork_that_outlives_its_parent_does_not_block(tmp_path, first, free):
    process = first(orphan=True)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    claim(tmp_path, "me")


def test_a_lock_file_that_is_removed_before_it_is_locked_counts_no_more(tmp_path, monkeypatch, free):
    """By a process that was refused in the meantime: a third one would not see a lock on a file without a name."""
    locks = []

    def late(descriptor):
        if not locks:
            (tmp_path / LOCK_FILE).unlink()
        locks.append(descriptor)
        return try_lock(descriptor)

    monkeypatch.setattr(run_folder, "try_lock", late)
    claim(tmp_path, "me")
    assert os.path.samestat(os.fstat(run_folder._held[tmp_path]), os.stat(tmp_path / LOCK_FILE))
    assert json.loads((tmp_path / LOCK_FILE).read_text())["command"] == "me"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_a_lock_file_that_says_nothing_does_not_matter(tmp_path, first, free, text):
    first()
    (tmp_path / LOCK_FILE).write_text(text)
    with pytest.raises(UserError, match="is in use by another process; "):
        claim(tmp_path, "me")


def test_a_file_system_without_locks_is_said_and_taken(tmp_path, monkeypatch, free):
    warnings = []
    monkeypatch.setattr(run_folder, "try_lock", lambda descriptor: None)
    monkeypatch.setattr(run_folder.logging, "warning", lambda message, *values: warnings.append(message % values))
    claim(tmp_path, "me")
    assert len(warnings) == 1 and str(tmp_path) in warnings[0] and "no locks" in warnings[0]


def test_who_claims_a_folder_sweeps_it(tmp_path, free):
    for name in ("config.json.0123abcd.tmp", "config.json.tmp", "ppo.jsonl.fedcba98.tmp", "mine.tmp"):
        (tmp_path / name).write_text("x")
    for name in ("lm", "lm.old", "policy.saving", "notes.old"):
        (tmp_path / name).mkdir()
    claim(tmp_path, "me")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lm", "mine.tmp", "notes.old", LOCK_FILE]


def test_a_file_in_place_of_the_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="--workdir .*file/below' cannot be written: Not a directory; choose another"):
        claim(tmp_path / "file" / "below", "me")

"""Files that outlive a crash, work folders that vanish with their process, and what a failed write is told as."""

import errno
import multiprocessing
import os
import re
import signal

import pytest

from tfppo import files
from tfppo.errors import UserError

CONTEXT = multiprocessing.get_context("fork")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_text_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    steps = []
    sync, replace = os.fsync, os.replace

    def noting_sync(descriptor):
        steps.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def noting_replace(source, target):
        steps.append(("replace", str(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noting_sync)
    monkeypatch.setattr(os, "replace", noting_replace)
    path = tmp_path / "a.json"
    files.write_text(path, "né")
    assert path.read_bytes() == b"n\xc3\xa9" and names(tmp_path) == ["a.json"]
    (first, written), *rest = steps
    assert first == "sync" and re.fullmatch(rf"{re.escape(str(path))}\.[0-9a-f]{{8}}\.tmp", written)
    assert rest == [("replace", str(path)), ("sync", str(tmp_path))]


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_text(path, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        files.write_text(path, "new")
    assert path.read_text() == "old" and names(tmp_path) == ["a.json"]


def sweep_texts(folder):
    files.sweep(folder, files.temporary("a.json"), ())


@pytest.mark.parametrize("beside", [lambda folder: files.write_text(folder / "a.json", "other"), sweep_texts])
def test_another_process_beside_a_write_does_not_disturb_it(tmp_path, monkeypatch, beside):
    """A second evaluation, or the start of a training."""
    sync = os.fsync

    def meanwhile(descriptor):
        monkeypatch.setattr(os, "fsync", sync)
        process = CONTEXT.Process(target=beside, args=(tmp_path,))
        process.start()
        process.join(30)
        assert process.exitcode == 0
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    files.write_text(tmp_path / "a.json", "mine")
    assert (tmp_path / "a.json").read_text() == "mine" and names(tmp_path) == ["a.json"]


def test_a_text_that_is_swept_before_it_is_locked_is_written_all_the_same(tmp_path, monkeypatch):
    real, swept = files.try_lock, []

    def late(descriptor):
        if not swept:
            swept.append(descriptor)
            sweep_texts(tmp_path)
        return real(descriptor)

    monkeypatch.setattr(files, "try_lock", late)
    files.write_text(tmp_path / "a.json", "mine")
    assert swept and (tmp_path / "a.json").read_text() == "mine" and names(tmp_path) == ["a.json"]


def test_texts_of_killed_processes_are_swept_and_those_of_others_stay(tmp_path):
    for name in ("a.json.0123abcd.tmp", "a.json.tmp", "a.json.mine.tmp", "b.json.tmp", "a.json"):
        (tmp_path / name).write_text("x")
    sweep_texts(tmp_path)
    assert names(tmp_path) == ["a.json", "a.json.mine.tmp", "b.json.tmp"]


class Foreign(Exception):
    """Stands for an exception of TensorFlow's, which has no number."""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(errno.ENOSPC, "x"),
            "the file cannot be written: No space left on device; free some space on that disk",
        ),
        (
            OSError(errno.EDQUOT, "x"),
            "the file cannot be written: Disk quota exceeded; free some of your quota on that",
        ),
        (
            OSError(errno.EROFS, "x"),
            "the file cannot be written: Read-only file system; make that file system writable",
        ),
        (
            PermissionError(errno.EACCES, "x"),
            "the file cannot be written: Permission denied; make that folder writable",
        ),
        (Foreign("/a/b; No space left on device\nmore"), "the file cannot be written: No space left on device; free"),
        (Foreign("odd\nmore"), "the file cannot be written: odd; look at that disk"),
    ],
)
def test_a_failed_write_is_one_line(error, line):
    with pytest.raises(UserError) as raised, files.told("the file", "the old one is intact", (Foreign,)):
        raise error
    assert str(raised.value).startswith(line) and str(raised.value).endswith("; the old one is intact")
    assert "\n" not in str(raised.value)


def test_what_is_no_failed_write_passes():
    with pytest.raises(Foreign), files.told("the file", "the old one is intact"):
        raise Foreign


def test_a_work_folder_goes_at_the_end_and_after_a_kill_with_the_next_process(tmp_path):
    with files.work_folder(tmp_path, "work-") as folder:
        (folder / "file").write_text("x")
        files.sweep_work(tmp_path, "work-")  # of a process that lives
        assert (folder / "file").exists()
    assert names(tmp_path) == []

    def work():
        with files.work_folder(tmp_path, "work-") as folder:
            (folder / "file").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)

    process = CONTEXT.Process(target=work)
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    (tmp_path / "other").mkdir()
    files.sweep_work(tmp_path, "work-")
    assert names(tmp_path) == ["other"]


def test_where_there_are_no_locks_nothing_is_swept(tmp_path, monkeypatch):
    def unsupported(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    with files.work_folder(tmp_path, "work-") as folder:
        files.sweep_work(tmp_path, "work-")
        assert folder.exists()


def test_leftovers_are_swept_and_nothing_else(tmp_path):
    for folder in ("lm", "lm.old", "lm.saving", "first.saving", "half.saving", "half.old", "notes.old", "x_temp_1"):
        (tmp_path / folder).mkdir()
    for file in ("config.json", "config.json.tmp", "mine.tmp"):
        (tmp_path / file).write_text("x")
    files.sweep(tmp_path, ("config.json.tmp", "*_temp*"), ("lm", "first", "half"))
    # Of `half`, the renames are still to be finished: both are needed for that.
    assert names(tmp_path) == ["config.json", "half.old", "half.saving", "lm", "mine.tmp", "notes.old"]

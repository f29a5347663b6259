"""Files that outlive a crash: written whole, on the disk before they get their names, and swept when work was killed.

It starts no TensorFlow, so that a mistake about folders is told at once.
"""

import errno
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tfppo.cluster import chief_writes
from tfppo.errors import UserError

# What to do about a write that failed. The list is also what counts as such a failure.
REMEDIES = {
    errno.ENOSPC: "free some space on that disk",
    errno.EDQUOT: "free some of your quota on that disk",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "make that file system writable",
    errno.EACCES: "make that folder writable",
    errno.EPERM: "make that folder writable",
    errno.EIO: "look at that disk, which reports errors",
}
_TOKEN = 8  # hexadecimal digits in the name of a temporary file
# What flock raises where a file system has no locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


def user_path(name: str | os.PathLike) -> Path:
    """The path that a user names: a leading ~ is the home directory, as a shell leaves it in --flag=~/name."""
    return Path(os.path.expanduser(name))


def sync(path: str | os.PathLike) -> None:
    """Waits until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # some network file systems sync no folders
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Waits until a folder, and all that is in it, is on the disk."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


@chief_writes
def write_text(path: Path, text: str) -> None:
    """Replaces a file: whoever reads it, also after a crash, finds the old text or the new one. UTF-8.

    Several processes may do it at once, and `sweep` beside them; the last one's text stays. Of a write that fails
    nothing is left. Of the workers of one run the chief alone does it.
    """
    fresh, file = _claimed_file(path)
    with file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            fresh.replace(path)
        except BaseException:
            fresh.unlink(missing_ok=True)  # it may be what filled the disk
            raise
    sync(path.parent)


def temporary(name: str) -> tuple[str, ...]:
    """Patterns of what a killed `write_text` of a file of this name may leave."""
    return f"{name}.{'[0-9a-f]' * _TOKEN}.tmp", f"{name}.tmp"  # the latter of earlier versions


def _claimed_file(path):
    """A new file beside a path, named as `temporary` says, open and locked: `sweep` leaves it to its process."""
    while True:
        fresh = path.with_name(f"{path.name}.{secrets.token_hex(_TOKEN // 2)}.tmp")
        file = open(fresh, "x", encoding="utf-8")  # noqa: SIM115
        if try_lock(file.fileno()) is not False and fresh.exists():
            return fresh, file
        file.close()  # another process has swept it before it was locked


@contextmanager
def told(what: str, kept: str, others: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turns a write that fails into a UserError of one line.

    Args: what: is written; kept: what of it is still there; others: further exceptions that stand for a failed write.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, (OSError, *others)):
            raise
        raise UserError(f"{what} cannot be written: {reason(error)}; {remedy(error)}; {kept}") from error


def reason(error: Exception) -> str:
    """What went wrong, in the words of the operating system where it says so."""
    number = _number(error)
    return os.strerror(number) if number else (str(error).splitlines() or [type(error).__name__])[0]


def remedy(error: Exception) -> str:
    """What to do about a write that failed."""
    return REMEDIES.get(_number(error) or 0, "look at that disk")


def _number(error):
    """The number of an error; TensorFlow's errors have none, and name it in their text."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return next((number for number in REMEDIES if os.strerror(number) in str(error)), None)


def try_lock(descriptor: int) -> bool | None:
    """Takes the lock of an open file or folder, which vanishes with the process.

    Returns: False where another process has it; None where the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


@contextmanager
def work_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder for work in progress, removed at the end.

    Its process has a lock on it: after a kill, `sweep_work` of a later process finds it free and removes the folder.
    """
    folder, descriptor = _claimed_folder(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _claimed_folder(parent, prefix):
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        with suppress(FileNotFoundError):  # another process has swept it before it was locked
            descriptor = os.open(folder, os.O_RDONLY)
            if try_lock(descriptor) is not False and folder.exists():
                return folder, descriptor
            os.close(descriptor)


def sweep_work(parent: Path, prefix: str) -> None:
    """Removes the work folders of processes that are no more."""
    for folder in parent.glob(f"{prefix}*"):
        if not folder.is_dir():
            continue
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except OSError:  # gone meanwhile, or another user's
            continue
        try:
            if try_lock(descriptor):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)


def beside(folder: Path) -> tuple[Path, Path]:
    """Where the new content of a folder is written, and where the old one is kept until the new one has its name."""
    return folder.with_name(folder.name + ".saving"), folder.with_name(folder.name + ".old")


@chief_writes
def sweep(folder: Path, files: Sequence[str], swapped: Sequence[str]) -> None:
    """Removes what killed writes left in a folder. Only for the one process that writes there by other means.

    Args:
        files: patterns of temporary files and folders; a file that `write_text` of a living process has is left alone.
        swapped: names of folders that are replaced as a whole; one whose swap is still to be finished is left alone.
    """
    for pattern in files:
        for path in folder.glob(pattern):
            _remove(path)
    for name in swapped:
        fresh, old = beside(folder / name)
        if (folder / name).exists():
            _remove(old)
            _remove(fresh)
        elif not old.exists():  # a first save that was killed
            _remove(fresh)


def _remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError), open(path, "r+b") as file:
        if try_lock(file.fileno()) is not False:
            path.unlink(missing_ok=True)

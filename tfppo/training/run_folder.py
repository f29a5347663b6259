"""The folder of a run: made, held by one process at a time, and swept of what a killed process left in it.

It starts no TensorFlow, so that a second process is refused at once.
"""

import json
import os
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from absl import logging

from tfppo.errors import UserError
from tfppo.files import sweep, temporary, try_lock

LOCK_FILE = "run.lock"
# What a killed process may leave; each name is one that is written here, as the folder may hold files of the user's.
_WRITTEN_FILES = (
    *("config.json", "config_history.jsonl", "evaluation.json", "samples.md"),
    *(f"{name}.jsonl" for name in ("ppo", "ppo_evaluation", "lm_training", "reward_training")),
)
_SWAPPED_FOLDERS = ("lm", "policy", "policy_average", "policy_best", "reward_model")
_SHOWN_COMMAND = 200  # characters

# Open files whose locks this process holds, until it ends.
_held: dict[Path, int] = {}


def open_folder(workdir: Path | str) -> Path:
    """Makes the run's folder. Raises: UserError where it cannot be written."""
    folder = Path(workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--workdir {str(workdir)!r} cannot be written: {error.strerror}; choose another") from error
    return folder


def claim(workdir: Path | str, command: str) -> Path:
    """Makes the run's folder and holds it until this process ends; removes what a killed process left there.

    The lock is the operating system's, on WORKDIR/run.lock: it vanishes with the process, however that ends. The text
    in the file only says who has it.

    Args: command: what this process runs, for the other one to be told.
    Raises: UserError where the folder cannot be written, or another process holds it.
    """
    folder = open_folder(workdir)
    path = folder / LOCK_FILE
    owner = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": command,
    }
    try:
        descriptor, locked = _open_and_lock(path)
        if locked is not False:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(owner).encode(), 0)
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be locked: {error.strerror}; choose another --workdir") from error
    if locked is False:
        os.close(descriptor)
        raise UserError(
            f"--workdir {str(workdir)!r} is in use by {_holder(path)}; wait for its end, stop it, or choose another"
        )
    if locked is None:
        logging.warning("%s has no locks: nothing keeps a second process from training there as well", folder)
    _held[folder] = descriptor
    sweep(folder, [pattern for name in _WRITTEN_FILES for pattern in temporary(name)], _SWAPPED_FOLDERS)
    return folder


def _open_and_lock(path):
    """The open lock file, and whether it is locked: see `try_lock`."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        locked = try_lock(descriptor)
        # A process that was refused may have removed it since: nobody else would see a lock on that.
        with suppress(FileNotFoundError):
            if locked is False or os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor, locked
        os.close(descriptor)


def release(folder: Path) -> None:
    """Lets a folder go that this process holds, where nothing but the lock is in it."""
    if folder in _held and [path.name for path in folder.iterdir()] == [LOCK_FILE]:
        (folder / LOCK_FILE).unlink()
        os.close(_held.pop(folder))


def _holder(path):
    """Who has the lock, as far as its file says so."""
    try:
        owner = json.loads(path.read_text())
        command = owner["command"]
        shown = command if len(command) <= _SHOWN_COMMAND else command[:_SHOWN_COMMAND] + "..."
        return f"process {owner['pid']} on {owner['host']} since {owner['since']} ({shown})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _let_go() -> None:
    """In a fork: closes its copies, which would hold the locks beyond the end of the process that took them."""
    while _held:
        os.close(_held.popitem()[1])


os.register_at_fork(after_in_child=_let_go)

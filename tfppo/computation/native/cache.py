"""Where built operations are kept; they are loaded again when they are whole, and nobody else could have changed them.

A library's name ends in the checksum of its bytes, so that one that was cut off or exchanged is known before it is
loaded: the loader would map it, and the process would die of a bus error.
"""

import errno
import grp
import hashlib
import os
import pwd
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from absl import logging

from tfppo.files import sync

_DIGITS = 16  # of a checksum in a name
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def cache_folder() -> Path:
    """The folder of what is specific to this machine, as built operations are: tfppo in XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tfppo"


def make_cache_folder(folder: Path) -> Path:
    """Makes a folder that only this user may write, whatever the umask. Raises: OSError where that cannot be."""
    for place in reversed((folder, *folder.parents)):
        if not place.exists():
            place.mkdir(mode=0o755, exist_ok=True)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    return folder


def folders() -> Iterator[Path]:
    """The folders to look in and to build in, best first, made where they are missing: those that can be trusted.

    Beside `cache_folder()` one below the system's temporary folder, for where others may write to the first, or this
    user may not.
    """
    for folder in (cache_folder(), Path(tempfile.gettempdir()) / f"tfppo-{os.geteuid()}"):
        try:
            # What is checked is what is used, whatever becomes of a symbolic link meanwhile.
            folder = make_cache_folder(folder).resolve()
        except OSError as error:
            logging.info("nothing can be built in %s: %s", folder, error)
            continue
        distrust = reason_for_distrust(folder)
        if distrust is None:
            yield folder
        else:
            logging.warning(
                "built operations in %s are not loaded: %s. Remove %s, which is only a cache, or set XDG_CACHE_HOME to "
                "a folder that nobody else may write",
                folder,
                distrust,
                folder,
            )


def reason_for_distrust(path: Path) -> str | None:
    """Why a file, or what is in a folder, may have been put there by another user than this one and root; or None.

    Of the folders above it, those count in which others could exchange what is below.
    """
    path = path.resolve()
    for place in (path, *path.parents):
        found = place.stat()
        if found.st_uid not in (0, os.geteuid()):
            return f"{place} belongs to another user, {found.st_uid}"
        if found.st_mode & _OTHERS_WRITE and (place == path or not _is_harmless_above(found)):
            return f"others may write to {place}"
    return None


def _is_harmless_above(found):
    """Whether nobody else can exchange the entries of a folder though others, or its group, may write to it."""
    # In a sticky folder, as /tmp is, only the owner of an entry can; and many systems give each user a group, and let
    # that group write to all that the user makes.
    return found.st_mode & stat.S_ISVTX or not (found.st_mode & stat.S_IWOTH) and _has_only_this_user(found.st_gid)


def _has_only_this_user(gid):
    try:
        name, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(gid)
    except KeyError:
        return False
    return group.gr_name == name and set(group.gr_mem) <= {name}


def find(folder: Path, identity: str) -> Path | None:
    """The library of an identity, if the folder has a whole one; others of that identity are removed."""
    for library in sorted(folder.glob(f"ops-{identity}-*.so")):
        fault = reason_for_distrust(library)
        if fault is None and _checksum(library) != library.stem.rpartition("-")[2]:
            fault = "its checksum is another one than when it was built"
        if fault is None:
            return library
        logging.warning("%s is not loaded: %s; it is built anew", library, fault)
        with suppress(OSError):  # in a folder of root's
            library.unlink()
    return None


def keep(built: Path, folder: Path, identity: str) -> Path:
    """Moves a library to its place, at once: another process finds the whole file or none."""
    built.chmod(0o755)  # a umask may let a group write
    sync(built)
    library = folder / f"ops-{identity}-{_checksum(built)}.so"
    built.replace(library)
    sync(folder)
    return library


def _checksum(library):
    return hashlib.sha256(library.read_bytes()).hexdigest()[:_DIGITS]

"""Fetches and reads the corpus of rated snippets that the vaderSentiment source archive carries.

The archive comes from the package index through pip, or by hand; either way its SHA-256 must
match. Its members are read from the tar streams in memory: nothing in it is ever unpacked.
"""

import hashlib
import io
import math
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import zlib

from tfppo.errors import UserError

REQUIREMENT = "vaderSentiment==3.3.2"
ARCHIVE_NAME = "vaderSentiment-3.3.2.tar.gz"
ARCHIVE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
ARCHIVE_VARIABLE = "TFPPO_SNIPPETS_ARCHIVE"

PIP_DOWNLOAD = (sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:")
PIP_QUIET = ("--quiet", "--no-input", "--disable-pip-version-check")
PIP_TIMEOUT_SECONDS = 300

BY_HAND = (
    f"To supply it by hand, run 'python -m pip download --no-deps --no-binary :all: {REQUIREMENT}' "
    f"on a machine with a network, then set {ARCHIVE_VARIABLE} to the path of the {ARCHIVE_NAME} "
    "that it saves, or put that file in downloads/manual under the TFDS data directory"
)

INNER_ARCHIVE = "/additional_resources/hutto_ICWSM_2014.tar.gz"
TABLE_SUFFIX = "_GroundTruth.txt"
MAX_MEMBER_BYTES = 16 * 2**20  # the largest one of the real archive has 2.4 MB


def find_archive(folder: str | os.PathLike, manual_dir: str | os.PathLike | None = None) -> pathlib.Path:
    """Returns the path of the verified archive: a supplied one, else one fetched into `folder`.

    A file named by $TFPPO_SNIPPETS_ARCHIVE comes first, then one in `manual_dir`. Raises UserError
    when the file found is not the right one, or when it cannot be fetched.
    """
    if supplied := os.environ.get(ARCHIVE_VARIABLE):
        return check_archive(pathlib.Path(supplied).expanduser())
    if manual_dir and (manual := pathlib.Path(manual_dir, ARCHIVE_NAME)).exists():
        return check_archive(manual)
    return fetch_archive(folder)


def fetch_archive(folder: str | os.PathLike) -> pathlib.Path:
    """Downloads the archive with pip into `folder` and returns its path.

    Raises UserError when pip fails or fetches another file; `folder` is then as it was before.
    """
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [*PIP_DOWNLOAD, *PIP_QUIET, "--dest", scratch, REQUIREMENT]
        try:
            finished = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=PIP_TIMEOUT_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"Cannot fetch {REQUIREMENT}: {error}. {BY_HAND}.") from error
        if finished.returncode:
            tail = " | ".join(finished.stderr.decode(errors="replace").splitlines()[-3:])[-600:]
            raise UserError(f"Cannot fetch {REQUIREMENT}: pip exited with {finished.returncode}: {tail}. {BY_HAND}.")
        archive = check_archive(pathlib.Path(scratch, ARCHIVE_NAME))
        return archive.replace(pathlib.Path(folder, ARCHIVE_NAME))


def check_archive(path: pathlib.Path) -> pathlib.Path:
    """Returns `path` when the file there has the known SHA-256; raises UserError otherwise."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"Cannot read the archive {path}: {error.strerror}. {BY_HAND}.") from error
    if digest != ARCHIVE_SHA256:
        raise UserError(
            f"The archive {path} is truncated or another file: its SHA-256 is {digest}, not "
            f"{ARCHIVE_SHA256}. {BY_HAND}."
        )
    return path


def read_snippets(archive_path: str | os.PathLike) -> dict[str, list[tuple[str, float, str]]]:
    """Reads the rated texts: {source: [(id, rating, text), ...]}, rating in -4 .. 4.

    Raises UserError when the archive is damaged, has a member whose path would leave its folder or
    that is too large, or holds a line that is not `id TAB rating TAB text`.
    """
    try:
        with tarfile.open(archive_path, "r:gz") as outer:
            inner_bytes = next(_members(outer, INNER_ARCHIVE), (None, b""))[1]
        with tarfile.open(fileobj=io.BytesIO(inner_bytes), mode="r:gz") as inner:
            return {
                name.rsplit("/", 1)[-1].removesuffix(TABLE_SUFFIX): _parse_table(name, table)
                for name, table in _members(inner, TABLE_SUFFIX)
            }
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise UserError(f"Cannot read the archive {archive_path}: {error}. {BY_HAND}.") from error


def decode_line(line: bytes) -> str:
    """Decodes one line whose encoding is unknown: UTF-8, else cp1252, else Latin-1."""
    for encoding in ("utf-8", "cp1252"):
        try:
            return line.decode(encoding)
        except UnicodeDecodeError:
            continue
    return line.decode("latin-1")  # defined for every byte


def _members(archive, suffix):
    """Yields (name, content) of the regular files whose name ends in `suffix`."""
    for member in archive:
        if member.name.startswith("/") or ".." in member.name.split("/"):
            raise UserError(f"The archive has an unsafe path, {member.name!r}. {BY_HAND}.")
        if not (member.isreg() and member.name.endswith(suffix)):
            continue
        if member.size > MAX_MEMBER_BYTES:
            raise UserError(
                f"The archive's {member.name!r} has {member.size} bytes, more than the "
                f"{MAX_MEMBER_BYTES} allowed. {BY_HAND}."
            )
        yield member.name, archive.extractfile(member).read()


def _parse_table(name, table):
    snippets = []
    for number, line in enumerate(table.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            identifier, rating_text, text = decode_line(line).split("\t", 2)
            rating = float(rating_text)
        except ValueError:
            rating = math.nan
        if not -4 <= rating <= 4:
            raise UserError(
                f"{name}, line {number}: expected 'id TAB rating from -4 to 4 TAB text', got {line[:60]!r}. {BY_HAND}."
            )
        snippets.append((identifier, rating, text.rstrip("\r")))
    return snippets

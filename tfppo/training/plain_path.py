"""A name for a folder that TensorFlow does not take for a pattern."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PATTERN = re.compile(r"[*?\[\]{}\\]")


@contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
    """A path to a folder without the characters of a pattern, for the time of the context.

    TensorFlow looks for a checkpoint that it reads, and for the variables of a SavedModel, as files that match their
    name: it finds nothing in a[1]. Where the name has such characters, the path leads there by a symbolic link.
    """
    if not _PATTERN.search(str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="tfppo-") as place:
        link = Path(place) / "folder"
        link.symlink_to(folder.absolute(), target_is_directory=True)
        yield link

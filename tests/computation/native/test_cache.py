"""Built operations are loaded again when they are whole, and when nobody else could have changed them."""

import hashlib
import multiprocessing
import os
import pwd
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from native_support import needs_compiler

from tfppo.computation.native import building, cache

IDENTITY = "0123456789abcdef"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The cache's folder; the system's temporary one is beside it."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "home" / "tfppo"


@pytest.fixture
def elsewhere(folder):
    return folder.parents[1] / "temporary" / f"tfppo-{os.geteuid()}"


def keep(folder, content=b"ELF of some length", identity=IDENTITY):
    folder.mkdir(parents=True, exist_ok=True)
    built = folder / "built"
    built.write_bytes(content)
    return cache.keep(built, folder, identity)


def test_a_library_is_found_by_its_identity_and_named_by_its_content(folder):
    library = keep(folder)
    assert library.name == f"ops-{IDENTITY}-{hashlib.sha256(b'ELF of some length').hexdigest()[:16]}.so"
    keep(folder, b"another", "f" * 16)
    assert cache.find(folder, IDENTITY) == library
    assert cache.find(folder, "a" * 16) is None


DAMAGE = {
    "truncated": lambda path: os.truncate(path, 5),
    "empty": lambda path: os.truncate(path, 0),
    "foreign": lambda path: path.write_bytes(b"something else"),
    "a bit": lambda path: path.write_bytes(b"ELF of some lengti"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_library_is_not_found_and_removed(folder, warnings, damage):
    library = keep(folder)
    DAMAGE[damage](library)
    assert cache.find(folder, IDENTITY) is None and not library.exists()
    (line,) = warnings
    assert line.startswith(f"{library} is not loaded: its checksum is another one") and line.endswith("built anew")


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_a_library_that_others_may_write_is_not_found(folder, warnings, mode):
    library = keep(folder)
    library.chmod(mode)
    assert cache.find(folder, IDENTITY) is None and not library.exists()
    assert f"others may write to {library}" in warnings[0]


def test_what_is_kept_is_this_users_alone_whatever_the_umask(folder, elsewhere, warnings):
    before = os.umask(0o002)
    try:
        first = next(cache.folders())
        library = keep(first)
    finally:
        os.umask(before)
    assert first == folder and cache.find(folder, IDENTITY) == library and warnings == []


def group(monkeypatch, name, members=()):
    """Makes the group of every file one of this name and these members, beside this user."""
    user = pwd.getpwuid(os.geteuid()).pw_name
    found = SimpleNamespace(gr_name=name or user, gr_mem=[user, *members])
    monkeypatch.setattr(cache.grp, "getgrgid", lambda gid: found)


@pytest.mark.parametrize("place", ["itself", "above"])
@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_a_folder_that_others_may_write_is_left_for_another_one(folder, elsewhere, warnings, monkeypatch, mode, place):
    keep(folder)
    group(monkeypatch, "staff")
    writable = folder if place == "itself" else folder.parent
    writable.chmod(mode)
    assert list(cache.folders()) == [elsewhere]
    (line,) = warnings
    assert f"are not loaded: others may write to {writable}. Remove {folder}" in line and "XDG_CACHE_HOME" in line


@pytest.mark.parametrize(
    ("mode", "name", "members", "trusted"),
    [
        (0o1777, "staff", [], True),  # as /tmp is: others can exchange nothing in it
        (0o775, None, [], True),  # the user's own group
        (0o775, None, ["other"], False),
        (0o777, None, [], False),
    ],
)
def test_a_folder_above_may_be_writable_where_that_is_harmless(
    folder, elsewhere, monkeypatch, warnings, mode, name, members, trusted
):
    keep(folder)
    group(monkeypatch, name, members)
    folder.parent.chmod(mode)
    assert list(cache.folders()) == ([folder] if trusted else []) + [elsewhere]
    folder.chmod(0o775)  # the folder itself is this user's alone in any case
    assert list(cache.folders()) == [elsewhere]


def test_a_link_is_followed_once_so_that_what_was_checked_is_used(folder, tmp_path):
    (tmp_path / "real").mkdir()
    folder.parent.symlink_to(tmp_path / "real")
    assert next(cache.folders()) == tmp_path.resolve() / "real" / "tfppo"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("what", ["folder", "library", "above"])
def test_what_belongs_to_another_user_is_not_loaded(folder, elsewhere, warnings, what):
    library = keep(folder)
    os.chown({"folder": folder, "library": library, "above": folder.parent}[what], 12345, -1)
    found = [cache.find(place, IDENTITY) for place in cache.folders()]
    assert not any(found)
    assert "belongs to another user, 12345" in warnings[0]


def test_a_file_in_place_of_the_folder_leaves_the_other_one(folder, elsewhere):
    folder.parent.mkdir()
    folder.write_text("x")
    assert list(cache.folders()) == [elsewhere]


def load_or_raise():
    ops, reason = building.load.__wrapped__()
    assert reason is None and ops is not None


@needs_compiler
def test_a_damaged_library_is_built_anew_and_loaded(folder, monkeypatch, warnings):
    """The real one: without the checksum, the loader dies of a bus error."""
    monkeypatch.setattr(building, "_SOURCES", [path for path in building._SOURCES if path.stem == "embedding"])
    first = building.build()
    whole = first.read_bytes()
    os.truncate(first, len(whole) // 2)
    leftover = folder / "tmpabcdefgh"
    leftover.mkdir()
    (leftover / "embedding.o").write_bytes(b"half")
    again = building.build()
    assert again.read_bytes() == whole and again == first and not leftover.exists()
    # In a fork: two libraries in one process would register the same operation twice.
    loading = multiprocessing.get_context("fork").Process(target=load_or_raise)
    loading.start()
    loading.join(60)
    assert loading.exitcode == 0
    folder.chmod(0o777)
    other = building.build()
    assert other.parent == Path(tempfile.gettempdir()) / f"tfppo-{os.geteuid()}"

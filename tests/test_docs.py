"""The documents name what is there: every file of the library stands in the tree, and every named path exists."""

import re
import subprocess
from pathlib import Path

import pytest
from conftest import SLOW

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
TREE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## The tree")[2]
# A path of the project in code style; a run's own folders and patterns are none.
PATH = re.compile(r"`((?:tfppo|tests|tools|configs|docs)/[\w./-]*[\w/])`")


def library_files():
    listed = subprocess.run(["git", "ls-files", "tfppo"], cwd=ROOT, capture_output=True, text=True)
    paths = listed.stdout.split() or [str(path.relative_to(ROOT)) for path in (ROOT / "tfppo").rglob("*.*")]
    return sorted(path for path in paths if path.endswith((".py", ".cc", ".h")) and not path.endswith("__init__.py"))


def paths_of_tree(tree):
    """The paths that a tree names: a folder's files are indented below it; several names of a line end in commas."""
    paths, folders = set(), []
    for line in tree.splitlines():
        names = re.match(r" *((?:[\w.-]+/?, )*[\w.-]+/?)(?:  |$)", line)
        if not names:
            continue
        indent = len(line) - len(line.lstrip())
        folders = [(depth, folder) for depth, folder in folders if depth < indent]
        for name in names[1].split(", "):
            path = "".join([*(folder for _, folder in folders), name])
            paths.add(path)
            if name.endswith("/"):
                folders.append((indent, name))
    return paths


def test_the_tree_is_read_as_it_is_written():
    tree = "docs/   pages\n  a.md, b.md  two\ntfppo/  library\n  ops/    x\n    kl.py   y\n  errors.py  z\n"
    files = {"docs/a.md", "docs/b.md", "tfppo/ops/kl.py", "tfppo/errors.py"}
    assert paths_of_tree(tree) == files | {"docs/", "tfppo/", "tfppo/ops/"}


@pytest.mark.parametrize("path", library_files())
def test_the_tree_has_a_line_for_every_file(path):
    assert path in paths_of_tree(TREE), f"give {path} its line"


def test_the_tree_names_nothing_that_is_gone():
    assert [path for path in sorted(paths_of_tree(TREE)) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_a_page_names_exists(page):
    named = {path for path in PATH.findall(page.read_text(encoding="utf-8")) if "NAME" not in path}  # yours to choose
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_between_pages_leads_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_the_slow_tests_are_there():
    named = {(path, name) for path, names in SLOW.items() for name in names or ["def test_"]}
    assert [entry for entry in sorted(named) if entry[1] not in (ROOT / "tests" / entry[0]).read_text()] == []

"""The documents name what is there: every file of the library stands in the tree, and every named path exists."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
TREE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## The tree")[2]
# A path of the project in code style; a run's own folders and patterns are none.
PATH = re.compile(r"`((?:tfppo|tests|tools|configs|docs)/[\w./-]*[\w/])`")


def library_files():
    listed = subprocess.run(["git", "ls-files", "tfppo"], cwd=ROOT, capture_output=True, text=True)
    paths = listed.stdout.split() or [str(path.relative_to(ROOT)) for path in (ROOT / "tfppo").rglob("*.*")]
    return sorted(path for path in paths if path.endswith((".py", ".cc", ".h")) and not path.endswith("__init__.py"))


@pytest.mark.parametrize("path", library_files())
def test_the_tree_has_a_line_for_every_file(path):
    assert re.search(rf"(?<![\w.]){re.escape(Path(path).name)}(?![\w.])", TREE), f"give {path} its line"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_a_page_names_exists(page):
    named = {path for path in PATH.findall(page.read_text(encoding="utf-8")) if "NAME" not in path}  # yours to choose
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_between_pages_leads_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []

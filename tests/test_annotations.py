"""Public functions and methods of tfppo say what they take and return; the sources are read, nothing is executed."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Modules, or packages with all that is in them, that do not say it yet. An entry that is not needed is an error.
EXEMPT: set[str] = set()
# How a public class is made and called: as public as its methods.
SPECIAL = ("__init__", "__call__")


def source_files() -> dict[str, Path]:
    """Module name -> path, for every file of tfppo."""
    files = {}
    for path in sorted((ROOT / "tfppo").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


MODULES = source_files()


def public_functions(body: list[ast.stmt], prefix="") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """(name, definition) of the functions of a module, and of the methods of its public classes."""
    for node in body:
        name = getattr(node, "name", "")
        if isinstance(node, ast.ClassDef) and not name.startswith("_"):
            yield from public_functions(node.body, f"{prefix}{name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (
            not name.startswith("_") or (prefix and name in SPECIAL)
        ):
            yield f"{prefix}{name}", node


def without_annotation(function, is_method: bool) -> list[str]:
    """The parameters, and "return", that a function says nothing about."""
    arguments = function.args
    static = any(getattr(decorator, "id", None) == "staticmethod" for decorator in function.decorator_list)
    named = [*arguments.posonlyargs, *arguments.args][1 if is_method and not static else 0 :]
    named += [*arguments.kwonlyargs, *filter(None, (arguments.vararg, arguments.kwarg))]
    missing = [argument.arg for argument in named if argument.annotation is None]
    return missing + ["return"] * (function.returns is None and function.name != "__init__")


def missing_in(source: str) -> list[str]:
    """What the public functions of a source do not say, as "name(parameters)"."""
    found = []
    for name, function in public_functions(ast.parse(source).body):
        missing = without_annotation(function, is_method="." in name)
        found += [f"{name}({', '.join(missing)})"] if missing else []
    return found


def exemption(module: str) -> str | None:
    """The entry of EXEMPT that a module falls under."""
    return next((entry for entry in EXEMPT if module == entry or module.startswith(f"{entry}.")), None)


@pytest.mark.parametrize("module", [module for module in MODULES if not exemption(module)])
def test_public_functions_are_annotated(module):
    assert missing_in(MODULES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("entry", sorted(EXEMPT))
def test_exemption_is_needed(entry):
    paths = [path for module, path in MODULES.items() if exemption(module) == entry]
    assert any(missing_in(path.read_text(encoding="utf-8")) for path in paths), f"take {entry} out of EXEMPT"


# The checker itself, against sources whose answer is known.


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(a: int, *b: int, c: int = 1, **d: int) -> None: ...", []),
        ("def f(a, /, b, *c, d, **e): ...", ["f(a, b, d, c, e, return)"]),
        ("def f(): ...", ["f(return)"]),
        ("def _f(a): ...", []),
        ("async def f(a: int): ...", ["f(return)"]),
        ("class C:\n  def f(self, a) -> None: ...", ["C.f(a)"]),
        ("class C:\n  def __init__(self, a): ...", ["C.__init__(a)"]),
        ("class C:\n  def __init__(self, a: int): ...", []),
        ("class C:\n  def __len__(self): ...\n  def _f(self): ...", []),
        ("class C:\n  @staticmethod\n  def f(a) -> None: ...", ["C.f(a)"]),
        ("class C:\n  @classmethod\n  def f(cls, a: int) -> None: ...", []),
        ("class _C:\n  def f(self, a): ...", []),
        ("def f() -> None:\n  def g(a): ...", []),
    ],
)
def test_missing_in(source, expected):
    assert missing_in(source) == expected

"""Holds the architecture: the direction of imports, who may touch flags, and the size of a file.

A module imports only from its own or a lower layer. Imports are read from the source with `ast`,
so that a lazy import inside a function counts like one at the top, and nothing is executed.
"""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 400

# The floors, lowest first. "a.b.*" is the package a.b with all that is in it; every other entry is
# exactly one module. A new room gets its floor here in the commit that adds it.
LAYERS = (
    # The last one is a constant of tfppo/__init__.py, free for all.
    ("tfppo.errors", "tfppo.cluster", "tfppo.files", "tfppo.__version__"),
    ("tfppo.config.*",),
    ("tfppo.ops.*",),
    ("tfppo.data.*",),
    ("tfppo.models.*",),
    ("tfppo.computation.*",),
    ("tfppo.training.*",),
    ("tfppo.rewards.*",),
    ("tfppo.lm.*",),
    # One floor a step of the algorithm.
    ("tfppo.ppo.types", "tfppo.ppo.drawing", "tfppo.ppo.leaving", "tfppo.ppo.sampling", "tfppo.ppo.sampler"),
    ("tfppo.ppo.scored_part", "tfppo.ppo.teacher_forcing", "tfppo.ppo.rollout", "tfppo.ppo.targets"),
    ("tfppo.ppo.*",),
    ("tfppo.reward_model.*",),
    ("tfppo.serving.*",),
    ("tfppo.planning.*",),
    ("tfppo.stages.*",),
    ("tfppo.commands.*", "tfppo.__main__"),
    # tfppo/__init__.py is the facade: it may offer every module, so no module may lean on it.
    ("tfppo", "tools.*"),
)
LAYER_OF = {name: layer for layer, names in enumerate(LAYERS) for name in names}

# ml_collections.config_flags defines flags too, so it is a way around the first.
FLAG_LIBRARIES = ("absl.flags", "ml_collections.config_flags")


def layer_of_module(module: str) -> int | None:
    """The layer that the table gives to `module`; None where the table does not have it."""
    if module in LAYER_OF:
        return LAYER_OF[module]
    parts = module.split(".")
    packages = (".".join(parts[:end]) + ".*" for end in range(len(parts), 0, -1))
    return next((LAYER_OF[package] for package in packages if package in LAYER_OF), None)


def layer_of_import(name: str) -> int | None:
    """The layer of an imported name, which is a module or something inside of one."""
    while name:
        for entry in (name, f"{name}.*"):
            if entry in LAYER_OF:
                return LAYER_OF[entry]
        name = name.rpartition(".")[0]
    return None


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def imported_names(tree: ast.AST, module: str, is_package: bool = False) -> Iterator[str]:
    """Every absolute dotted name that a module imports, at its top or anywhere inside.

    `from a import b` gives "a.b", since b may be a module; `from a import *` gives "a".
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                keep = len(parts) - node.level + is_package
                base = ".".join([*parts[:keep], *filter(None, [base])])
            for alias in node.names:
                yield base if alias.name == "*" else f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and node.args:
            called = node.func
            function = getattr(called, "attr", None) or getattr(called, "id", None)
            target = node.args[0]
            if function in ("import_module", "__import__") and isinstance(target, ast.Constant):
                yield str(target.value)


def layer_violations(module: str, names: Iterable[str]) -> list[str]:
    own = layer_of_module(module)
    assert own is not None, f"{module} has no layer: give it its place in LAYERS"
    violations = []
    for name in names:
        other = layer_of_import(name)
        if other is not None and other > own:
            violations.append(f"{module} (L{own}) imports {name} (L{other})")
    return violations


def source_files(folder: str) -> dict[str, Path]:
    """Module name -> path, for every Python file of a folder of the repository."""
    files = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


LIBRARY = source_files("tfppo")
TOOLS = source_files("tools")


def imports_of_file(module: str, path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return list(imported_names(tree, module, is_package=path.name == "__init__.py"))


IMPORTS = {module: imports_of_file(module, path) for module, path in {**LIBRARY, **TOOLS}.items()}


def test_the_library_is_found():
    assert {"tfppo", "tfppo.config"} <= set(LIBRARY)


@pytest.mark.parametrize("module", IMPORTS)
def test_module_has_a_layer(module):
    assert layer_of_module(module) is not None, f"give {module} its place in LAYERS"


@pytest.mark.parametrize("module", IMPORTS)
def test_module_imports_only_from_its_own_or_a_lower_layer(module):
    assert layer_violations(module, IMPORTS[module]) == []


@pytest.mark.parametrize("module", LIBRARY)
def test_only_the_command_line_touches_flags(module):
    if module == "tfppo.stages.cli" or is_within(module, "tfppo.commands"):
        return
    assert [n for n in IMPORTS[module] if any(is_within(n, f) for f in FLAG_LIBRARIES)] == []


@pytest.mark.parametrize("module", [m for m in LIBRARY if is_within(m, "tfppo.ops")])
def test_ops_import_neither_keras_nor_config(module):
    keras = {"keras", "keras_hub"}  # as a component, so that tensorflow.keras counts too
    allowed = "tfppo.config.choices"  # plain tuples of names
    config = [n for n in IMPORTS[module] if is_within(n, "tfppo.config") and not is_within(n, allowed)]
    forbidden = [*config, *(name for name in IMPORTS[module] if keras & set(name.split(".")))]
    assert forbidden == []


@pytest.mark.parametrize("module", LIBRARY)
def test_the_library_does_not_import_tools(module):
    assert [name for name in IMPORTS[module] if is_within(name, "tools")] == []


SOURCES = [
    path for folder in ("tfppo", "tools") for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".cc", ".h")
]


@pytest.mark.parametrize("path", sorted(str(path.relative_to(ROOT)) for path in SOURCES))
def test_file_is_not_too_long(path):
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_importing_tfppo_defines_no_flag_and_starts_no_device():
    probe = """
import json, sys
import tfppo
flags = sys.modules.get("absl.flags")
defining = list(flags.FLAGS.flags_by_module_dict()) if flags else []
print(json.dumps({
    "flags": [name for name in defining if name.split(".")[0] in ("tfppo", "tools")],
    "heavy": sorted({"tensorflow", "keras"} & set(sys.modules)),
    "file": tfppo.__file__,
}))
"""
    result = subprocess.run(
        [sys.executable, "-c", probe],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert Path(report["file"]) == ROOT / "tfppo" / "__init__.py"
    assert report["flags"] == []
    assert report["heavy"] == []


# The checker itself, against sources whose answer is known.


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import tfppo.ppo.trainer as t", ["tfppo.ppo.trainer"]),
        ("from tfppo.ppo import learner, types", ["tfppo.ppo.learner", "tfppo.ppo.types"]),
        ("from tfppo.errors import ConfigError", ["tfppo.errors.ConfigError"]),
        ("def f():\n  if True:\n    from absl import flags", ["absl.flags"]),
        ("from . import kl", ["tfppo.ops.kl"]),
        ("from .kl import estimate", ["tfppo.ops.kl.estimate"]),
        ("from ..trainer import train", ["tfppo.trainer.train"]),
        ("from tfppo.ops import *", ["tfppo.ops"]),
        ("from tensorflow import keras", ["tensorflow.keras"]),
        ("importlib.import_module('tfppo.ppo.trainer')", ["tfppo.ppo.trainer"]),
    ],
)
def test_imported_names(source, expected):
    assert list(imported_names(ast.parse(source), "tfppo.ops.losses")) == expected


def test_relative_import_in_a_package_file():
    tree = ast.parse("from .kl import estimate\nfrom .. import config")
    names = list(imported_names(tree, "tfppo.ops", is_package=True))
    assert names == ["tfppo.ops.kl.estimate", "tfppo.config"]


@pytest.mark.parametrize(
    ("module", "name", "allowed"),
    [
        ("tfppo.ops.losses", "tfppo.ops.masking.masked_mean", True),
        ("tfppo.ppo.sampling", "tfppo.models.policy.Policy", True),
        ("tfppo.ppo.learner", "tfppo.training.checkpoint.save", True),
        ("tools.train_ppo", "tfppo.ppo.trainer.train", True),
        ("tfppo.training.checkpoint", "tfppo.__version__", True),
        ("tfppo.ppo.trainer", "numpy.ndarray", True),
        ("tfppo.config", "tfppo.models", False),
        ("tfppo.models.policy", "tfppo.ppo.sampling.sample", False),
        ("tfppo.ppo.rollout", "tfppo.ppo.learner", False),
        ("tfppo.training.metrics", "tfppo.ppo.trainer.train", False),
        ("tfppo.ppo.trainer", "tfppo.stages.cli.main", False),
        ("tfppo.ppo.trainer", "tfppo", False),  # the facade
        ("tfppo.ppo.trainer", "tools.train_ppo", False),
    ],
)
def test_layer_violations(module, name, allowed):
    assert (layer_violations(module, [name]) == []) is allowed


@pytest.mark.parametrize("module", ["tfppo.new", "tfppo.errors.part", "tfppo.opsx.kl"])
def test_module_outside_the_table_has_no_layer(module):
    assert layer_of_module(module) is None


@pytest.mark.parametrize("module", LIBRARY)
def test_no_graph_goes_through_autograph(module):
    """Its rewriting of Python takes seconds of every start; loops here are explicit."""
    tree = ast.parse(LIBRARY[module].read_text(encoding="utf-8"))
    graphs = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node) == "tf.function"]
    told = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "tf.function"
        and any(k.arg == "autograph" and ast.unparse(k.value) == "False" for k in node.keywords)
    ]
    assert len(graphs) == len(told)

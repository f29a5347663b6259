"""What answers at once starts no TensorFlow: `import tfppo`, and --help of every binary."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from binaries import CORES, ROOT, environment

TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py"))
# The binaries parse their flags in tfppo.stages.cli, and exit with 0 after --help; absl itself exits with 1.
THROUGH_CLI = {
    tool
    for tool in TOOLS
    if any(word in (ROOT / "tools" / f"{tool}.py").read_text() for word in ("tfppo.commands", "parse_flags("))
}
HEAVY = ("tensorflow", "keras", "torch", "numpy", "matplotlib", "tokenizers")
ALLOWED = {"make_parity_fixtures": {"numpy"}}
PROBE = """
import json, os, runpy, sys
name, *sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(name)  # as for a file that is run by its name
code = None
try:
    runpy.run_path(name, run_name="__main__")
except SystemExit as error:
    code = error.code
print(json.dumps({"code": code, "modules": sorted({module.partition(".")[0] for module in sys.modules})}))
"""


def probe(argv):
    """What a Python file printed, its exit code, and the packages that it had imported by its end."""
    result = subprocess.run(
        [sys.executable, "-c", PROBE, *argv], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    *text, last = result.stdout.splitlines()
    return "\n".join(text), json.loads(last)


@pytest.fixture(scope="module")
def helps():
    paths = {tool: str(ROOT / "tools" / f"{tool}.py") for tool in TOOLS}
    with ThreadPoolExecutor(CORES) as pool:
        return dict(zip(paths, pool.map(probe, ([path, path, "--help"] for path in paths.values())), strict=True))


def test_the_binaries_go_through_the_cli():
    assert {
        "train_lm",
        "train_reward_model",
        "train_ppo",
        "quickstart",
        "evaluate",
        "export",
        "generate",
        "benchmark",
        "estimate",
    } <= THROUGH_CLI


@pytest.mark.parametrize("tool", TOOLS)
def test_help_starts_no_tensorflow(helps, tool):
    text, report = helps[tool]
    assert f"python tools/{tool}.py" in text and "flags:" in text.lower()
    assert set(HEAVY) & set(report["modules"]) <= ALLOWED.get(tool, set())
    assert report["code"] == 0 or tool not in THROUGH_CLI


def test_import_starts_no_tensorflow(tmp_path):
    (tmp_path / "only.py").write_text("import tfppo, tfppo.config, tfppo.errors, tfppo.config.presets\n")
    _, report = probe([str(tmp_path / "only.py"), "only.py"])
    assert "tfppo" in report["modules"] and not set(HEAVY) & set(report["modules"])

"""What answers at once starts no TensorFlow: `import tfppo`, and --help of every binary."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from binaries import CORES, ROOT, environment

# It needs PyTorch, which an installation of tfppo does not have.
TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py") if path.stem != "make_parity_fixtures")
OWN_FLAGS = {"benchmark", "estimate", "mutation_check"}  # absl itself answers their --help, with exit code 1
HEAVY = ("tensorflow", "keras", "numpy", "matplotlib", "tokenizers")
PROBE = """
import json, runpy, sys
name, *sys.argv = sys.argv[1:]
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


@pytest.mark.parametrize("tool", TOOLS)
def test_help_starts_no_tensorflow(helps, tool):
    text, report = helps[tool]
    assert f"python tools/{tool}.py" in text and "flags:" in text
    assert not set(HEAVY) & set(report["modules"])
    assert report["code"] == 0 or tool in OWN_FLAGS


def test_import_starts_no_tensorflow(tmp_path):
    (tmp_path / "only.py").write_text("import tfppo, tfppo.config, tfppo.errors, tfppo.config.presets\n")
    _, report = probe([str(tmp_path / "only.py"), "only.py"])
    assert "tfppo" in report["modules"] and not set(HEAVY) & set(report["modules"])

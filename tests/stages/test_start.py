"""What answers at once starts no TensorFlow: `import tfppo`, and --help of every binary."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from binaries import CORES, ROOT, environment, finish, succeed
from warm import WarmProcess

from tfppo.stages.start import tell_of_unused_card

TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py"))
# The binaries parse their flags in tfppo.stages.cli, and exit with 0 after --help; absl itself exits with 1.
THROUGH_CLI = {
    tool
    for tool in TOOLS
    if any(word in (ROOT / "tools" / f"{tool}.py").read_text() for word in ("tfppo.commands", "parse_flags("))
}
HEAVY = ("tensorflow", "keras", "torch", "numpy", "matplotlib", "tokenizers")
ALLOWED = dict.fromkeys(("grpo_in_pytorch", "make_parity_fixtures"), {"numpy"})
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
    assert f"tools/{tool}.py" in text and "flags:" in text.lower()
    assert set(HEAVY) & set(report["modules"]) <= ALLOWED.get(tool, set())
    assert report["code"] == 0 or tool not in THROUGH_CLI


def test_import_starts_no_tensorflow(tmp_path):
    (tmp_path / "only.py").write_text("import tfppo, tfppo.config, tfppo.errors, tfppo.config.presets\n")
    _, report = probe([str(tmp_path / "only.py"), "only.py"])
    assert "tfppo" in report["modules"] and not set(HEAVY) & set(report["modules"])


NOTES = """
import os, sys
from tfppo.stages.start import without_notes
with without_notes():
    os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\\n")
    os.write(2, b"I0000 00:00:1795825829.489255 17057 port.cc:153] oneDNN custom operations are on.\\n")
    os.write(2, b"E0000 00:00:1795825831.903806 17057 cuda.cc:52] a device failed\\n")
    print("a warning of Python", file=sys.stderr)
    {end}
print("I0000 is let through afterwards", file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("end", "code", "last"),
    [
        ("pass", 0, ["I0000 is let through afterwards"]),
        ("raise SystemExit(3)", 3, []),
        ("os.write(2, b'F0000 this processor has no AVX'); os.abort()", -6, ["F0000 this processor has no AVX"]),
    ],
    ids=["goes on", "ends", "is killed"],
)
def test_notes_of_tensorflow_are_left_out_and_nothing_else(end, code, last):
    argv = [sys.executable, "-c", NOTES.format(end=end)]
    done = subprocess.run(argv, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    error, warning, *rest = done.stderr.splitlines()
    assert error.endswith("a device failed") and warning == "a warning of Python"
    assert rest == last


def test_where_nobody_reads_the_standard_error_the_program_is_there_once_all_the_same():
    program = "import atexit; atexit.register(print, 'the end')\n" + NOTES.format(end="pass")
    reading, writing = os.pipe()
    os.close(reading)
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=writing, timeout=60)
    os.close(writing)
    assert done.stdout == b"the end\n"


FACTS = """
import os, sys
from tfppo.stages.start import start_tensorflow
start_tensorflow(keeps_programs=sys.argv[1:] == ["keep"])
import tensorflow as tf
add = tf.function(lambda x: x + 1.0, jit_compile=True)
assert add(tf.constant(1.0)) == 2.0
print(tf.config.experimental.tensor_float_32_execution_enabled())
"""


def test_products_in_float32_are_exact_and_programs_are_kept_where_that_is_asked_for(tmp_path):
    """TensorFlow's own default rounds the factors on a GPU."""
    (tmp_path / "facts.py").write_text(FACTS)

    def printed(*arguments):
        variables = environment(XDG_CACHE_HOME=str(tmp_path), TF_XLA_FLAGS="")
        return succeed(finish(WarmProcess([str(tmp_path / "facts.py"), *arguments], env=variables, cwd=ROOT))).out

    assert printed() == "False\n" and not list(tmp_path.rglob("*.pb"))
    assert printed("keep") == "False\n" and len(list(tmp_path.rglob("tfppo/programs/2.21*/*.pb"))) == 1


@pytest.mark.parametrize(("there", "hidden", "warns"), [(True, None, True), (True, "-1", False), (False, None, False)])
def test_a_card_that_is_not_used_is_told(tmp_path, monkeypatch, capsys, there, hidden, warns):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    card = tmp_path / "nvidia0"
    if there:
        card.touch()
    tell_of_unused_card(str(card))
    assert ("there is a GPU, but TensorFlow finds none" in capsys.readouterr().err) is warns

"""Every command that is printed works as printed: in README, the documents, docstrings and messages.

A command's flags are parsed as its program parses them; its settings must fit each other and the models that it names;
and each model that it names is made by another command that is printed.
"""

import ast
import json
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest
from binaries import ROOT, environment

from tfppo.commands.main import COMMANDS
from tfppo.config import Config
from tfppo.config.validation import validate_for_ppo, validate_positions
from tfppo.errors import UserError
from tfppo.stages.overrides import check_overrides, config_sections

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
SOURCES = sorted(path for folder in ("configs", "tools", "tfppo") for path in (ROOT / folder).rglob("*.py"))
PROGRAM = r"(?:(?:python )?tools/(?P<tool>\w+)\.py|tfppo (?P<command>[a-z]+(?:[-_][a-z]+)*))"
# In a block of code, up to the end of the line or `&&`; a backslash goes on in the next one.
IN_BLOCK = re.compile(rf"^ {{4,}}(?:[^\n]*&& )?{PROGRAM}(?P<flags>(?:[^\n\\&]|\\\n|\\)*)", re.MULTILINE)
IN_LINE = re.compile(rf"`{PROGRAM}(?P<flags>[^`]*)`")
NAMED = re.compile(r"\btfppo ([a-z]+(?:[-_][a-z]+)+)\b|\btools/(\w+)\.py")
NO_COMMANDS = {
    "check-native",
    "gpu-figures",
    "grpo-in-pytorch",
    "learning-tasks",
    "mutation-check",
    "make-parity-fixtures",
    "NAME",
}


class Printed(NamedTuple):
    """A command as a page or a docstring has it."""

    where: str
    command: str
    flags: tuple[str, ...]


def commands_in(text: str, where: str) -> list[Printed]:
    """The commands of a text, in its order."""
    matches = sorted([*IN_BLOCK.finditer(text), *IN_LINE.finditer(text)], key=re.Match.start)
    found = []
    for match in matches:
        name = (match["command"] or match["tool"].replace("_", "-")).strip()
        flags = shlex.split(match["flags"].replace("\\\n", " "), comments=True)
        if name not in NO_COMMANDS:
            found.append(Printed(where, name, tuple(flags)))
    return found


def docstrings(path: Path) -> str:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return "\n\n".join(ast.get_docstring(node) or "" for node in nodes if isinstance(node, documented))


def all_commands() -> list[Printed]:
    texts = {path: path.read_text(encoding="utf-8") for path in PAGES} | {path: docstrings(path) for path in SOURCES}
    return [found for path, text in texts.items() for found in commands_in(text, str(path.relative_to(ROOT)))]


PRINTED = all_commands()
WITH_FLAGS = [printed for printed in PRINTED if printed.flags and "--help" not in printed.flags]
IN_FULL = [printed for printed in WITH_FLAGS if any(flag.startswith("--workdir") for flag in printed.flags)]

# Runs each program up to its `main`, in a fork of its own: flags are global.
PROBE = """
import importlib, json, os, sys
import ml_collections.config_flags
from tfppo.commands import evaluate, export, generate, quickstart, train_lm, train_ppo, train_reward_model

def parse(name, arguments):
    module = importlib.import_module("tfppo.commands." + name.replace("-", "_"))
    if name == "benchmark":
        module.main = lambda argv: print(json.dumps([module.make_config().to_json(), {}]))
    elif name != "estimate":
        module.main = lambda config, workdir, flags: print(
            json.dumps([config.to_json(), flags.flag_values_dict()], default=str)
        )
        module.THEN = module.cli.AFTER_PPO = module.cli.AFTER_QUICKSTART = ()
        module.cli.start_tensorflow = module.cli.claim = lambda *args, **kwargs: None
        module.cli.run_together = lambda main: main()
    sys.argv = ["tfppo", *arguments]
    module.run()

for line in sys.stdin:
    pid = os.fork()
    if not pid:
        os.dup2(1, 2)
        parse(*json.loads(line))
    os.waitpid(pid, 0)
    print("END", flush=True)
"""


@pytest.fixture(scope="module")
def outcomes():
    """What each command's program prints: its configuration and flags as JSON, a table, or an error."""
    lines = "".join(json.dumps([printed.command, printed.flags]) + "\n" for printed in WITH_FLAGS)
    done = subprocess.run(
        [sys.executable, "-c", PROBE], input=lines, env=environment(), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(WITH_FLAGS, done.stdout.split("END\n")[:-1], strict=True))


def run_of(printed, outcomes):
    """The configuration and the flags that a printed command gives to its stage; None for one that has neither."""
    text = outcomes[printed].splitlines()
    if printed.command in ("benchmark", "estimate"):
        assert text and not text[0].startswith("error"), text
        return None
    try:
        config, flags = json.loads(text[0])
    except (json.JSONDecodeError, IndexError):
        pytest.fail(f"{printed.where}: tfppo {shlex.join([printed.command, *printed.flags])}: {outcomes[printed]}")
    values = json.loads(config)
    for name, section in config_sections().items():
        values[name] = section(**values[name])
    return Config(**values), flags


def models_made(runs) -> dict[str, int]:
    """The positions of each model that printed commands leave, by its folder."""
    made: dict[str, int] = {}
    for printed, run in runs.items():
        if run is None:
            continue
        config, flags = run
        workdir, source = flags["workdir"], config.language_model or f"{flags['workdir']}/lm"
        if printed.command in ("quickstart", "train-lm"):
            made[f"{workdir}/lm"] = made.get(config.language_model, config.model.max_sequence_length)
        positions = made.get(source, config.model.max_sequence_length)
        for command, folder in {
            "quickstart": "policy",
            "train-ppo": "policy",
            "train-reward-model": "reward_model",
        }.items():
            if printed.command == command:
                made[f"{workdir}/{folder}"] = positions
    return made


def check_run(printed, config, flags, made):
    """Raises UserError or KeyError where a command does not go with the models that it names."""
    workdir = flags["workdir"]
    source = config.language_model or f"{workdir}/lm"
    if printed.command in ("quickstart", "train-ppo"):
        validate_for_ppo(config)
    if printed.command in ("quickstart", "train-ppo", "evaluate"):
        validate_positions(config, made[source], folder=source)
        for name in config.reward.functions:
            kind, _, folder = name.partition(":")
            if kind == "reward_model":
                validate_positions(config, made[folder or f"{workdir}/reward_model"], folder=folder)
    if printed.command == "train-reward-model":
        names = dict(prompt="reward_model.max_prompt_tokens", response="reward_model.max_response_tokens")
        validate_positions(config, made[source], folder=source, **names)
    if printed.command in ("evaluate", "export"):
        assert made[flags.get("model") or f"{workdir}/policy"]
    if printed.command == "generate":
        assert made[flags.get("model") or f"{workdir}/policy"] > config.sampling.response_length + 10


@pytest.fixture(scope="module")
def runs(outcomes):
    return {printed: run_of(printed, outcomes) for printed in IN_FULL}


def test_commands_are_found():
    pages = {printed.where for printed in IN_FULL}
    assert {"README.md", "docs/benchmarks.md", "configs/trl.py", "tfppo/commands/train_ppo.py"} <= pages
    assert {printed.command for printed in WITH_FLAGS} == set(COMMANDS)


@pytest.mark.parametrize("printed", PRINTED, ids=lambda printed: f"{printed.where}: {printed.command}")
def test_it_is_parsed_and_fits_the_models_that_it_names(printed, outcomes, runs):
    assert printed.command in COMMANDS
    if printed in IN_FULL:
        config, flags = runs[printed]
        check_run(printed, config, flags, models_made(runs))
    elif printed in WITH_FLAGS and "workdir is missing" not in outcomes[printed]:
        run_of(printed, outcomes)  # a fragment may leave the folder out, and nothing else


def test_a_recipe_on_a_model_that_is_too_short_for_it_would_be_noticed():
    """As the recipes' own docstrings had it: 566 positions, of a model that has 64."""
    config = Config()
    config.data.max_prompt_tokens, config.sampling.response_length, config.model.max_sequence_length = 512, 53, 1024
    config.language_model = "runs/quickstart/lm"
    printed, flags = Printed("", "train-ppo", ()), {"workdir": "runs/trl"}
    with pytest.raises(UserError, match="512 that is 566 positions, and the model in .* has 64"):
        check_run(printed, config.validate(), flags, {"runs/quickstart/lm": 64})
    with pytest.raises(KeyError):
        check_run(printed, config, flags, {})


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_name_of_a_command_is_one(path):
    """In messages too, of which only the name is fixed."""
    for command, tool in NAMED.findall(path.read_text(encoding="utf-8").replace("tools/NAME.py", "")):
        assert command in COMMANDS if command else (ROOT / "tools" / f"{tool}.py").is_file(), command or tool


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_that_a_page_sets_is_one(page):
    flags = re.findall(r"--config\.[a-z_]+(?:\.[a-z_0-9]+)?(?==)", page.read_text(encoding="utf-8"))
    check_overrides([flag for flag in flags if not flag.endswith("section.field")])


def test_a_users_own_reward_function_is_shown_where_it_is_named(tmp_path, monkeypatch):
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = {match[1]: match[0] for match in re.finditer(r"^    # (\w+\.py)\n(?:    .*\n)+", page, re.MULTILINE)}
    named = set(re.findall(r"'([^':]+\.py):(\w+)'", page))
    assert named
    monkeypatch.chdir(tmp_path)
    for file, function in named:
        Path(file).write_text(textwrap.dedent(shown[file]))
        scores = runpy.run_path(file)[function](["a", "b"], ["c", "dd"])
        assert len(scores) == 2

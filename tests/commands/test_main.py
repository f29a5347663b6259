"""The command `tfppo`: which commands it lists, and what it says of one that it does not have."""

import sys

import pytest
from binaries import ROOT

from tfppo.commands import main as program


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs tfppo with arguments; returns its exit code, and what it printed on both streams."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["/usr/bin/tfppo", *arguments])
        code = 0
        try:
            program.main()
        except SystemExit as exit:
            code = exit.code
        return (code, *capsys.readouterr())

    return run


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)], ids=str)
def test_help_lists_every_command_with_its_purpose(call, arguments):
    code, out, err = call(*arguments)
    assert (code, err) == (0, "")
    listed = [line.split(maxsplit=1) for line in out.splitlines() if line.startswith("  ") and line[2] != " "]
    assert [name for name, _ in listed] == list(program.COMMANDS)
    assert ["train-ppo", "Fine-tunes a language model with PPO."] in listed
    assert "movie_snippets" in out and "trl" in out


def test_every_command_has_a_module_and_a_file_in_a_checkout():
    names = {name.replace("-", "_") for name in program.COMMANDS}
    modules = {path.stem for path in (ROOT / "tfppo" / "commands").glob("*.py")}
    assert names == modules - {"__init__", "main"}
    assert names <= {path.stem for path in (ROOT / "tools").glob("*.py")}


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("train_ppo", "did you mean tfppo train-ppo?"),
        ("trainlm", "did you mean tfppo train-lm?"),
        ("--quickstart", "did you mean tfppo quickstart?"),
        ("evalute", "did you mean tfppo evaluate?"),
        ("zzz", "tfppo --help lists them"),
    ],
)
def test_a_command_that_there_is_not(call, typed, hint):
    assert call(typed, "--workdir=x") == (1, "", f"error: {typed!r} is no command of tfppo; {hint}\n")


def test_version(call):
    assert call("--version") == (0, "tfppo 0.1.0\n", "")

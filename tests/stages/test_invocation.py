"""Commands that are printed to be typed next: in the form of the call before them, with its settings."""

import shlex
import sys

import pytest

from tfppo.stages.invocation import Invocation, quote

INSTALLED = "/usr/bin/tfppo"


@pytest.mark.parametrize(
    ("program", "typed"),
    [
        (INSTALLED, "tfppo train-ppo"),
        ("/lib/tfppo/__main__.py", "tfppo train-ppo"),
        ("tools/train_lm.py", "py3 tools/train_ppo.py"),
        ("/a b/tools/train_lm.py", "py3 '/a b/tools/train_ppo.py'"),
    ],
)
def test_a_command_is_named_as_the_one_before_was(monkeypatch, program, typed):
    monkeypatch.setattr(sys, "executable", "/opt/bin/py3")
    assert Invocation([program]).named("train-ppo") == typed
    assert Invocation([program]).adapted("    tfppo train-ppo --workdir=x") == f"    {typed} --workdir=x"
    assert Invocation([program]).adapted("the command tfppo train-ppo") == "the command tfppo train-ppo"


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("--workdir=a --config=trl --config.seed=1", "--workdir=a --config=trl --config.seed=1"),
        ("--workdir a --config trl --config.seed 1", "--workdir=a --config=trl --config.seed=1"),
        ("--config.ppo.target_score -4 --workdir=a", "--config.ppo.target_score=-4 --workdir=a"),
        ("--config.reward.whiten --noconfig.reward.normalize --workdir=a",) * 2,
        ("--prompt=x --workdir=a --model=m --prompt y -v 1", "--workdir=a"),
        ("--workdir='a b' --config.ppo.dual_clip=none", "'--workdir=a b' --config.ppo.dual_clip=none"),
    ],
)
def test_the_next_command_has_the_settings_of_the_run(typed, kept):
    assert Invocation([INSTALLED, *shlex.split(typed)]).next("export") == f"tfppo export {kept}"


def test_what_the_next_command_is_not_to_have():
    settings = ["--config.language_model=lm", "--config.reward.functions=('a.py:b',)", "--config.reward.scale=2"]
    invocation = Invocation([INSTALLED, "--workdir=a", *settings])
    assert (
        invocation.next("train-ppo", "--prompt=...", without=("language_model", "reward.functions"))
        == "tfppo train-ppo --workdir=a --config.reward.scale=2 --prompt=..."
    )


@pytest.mark.parametrize(
    "argument",
    [
        "--a=b",
        "--config.reward.functions=('a.py:b',)",
        "--a=it's",
        "--a=$HOME's",
        "--a=x y",
        "--a=",
        'say "hi"',
        "--a=~",
    ],
)
def test_a_shell_reads_back_what_was_quoted(argument):
    assert shlex.split(quote(argument)) == [argument]


def test_a_value_with_quotes_stays_readable():
    assert quote("--config.reward.functions=('a.py:b',)") == """--config.reward.functions="('a.py:b',)\""""

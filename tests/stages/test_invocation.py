"""Commands that are printed to be typed next: in the form of the call before them, with its settings."""

import shlex
import sys

import pytest

from tfppo.stages.cli import AFTER_PPO, AFTER_QUICKSTART, Next, what_next
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
        ("--workdir=a --config.seed=1 --workdir=b --config.seed 2", "--workdir=b --config.seed=2"),
        (
            "--config=a --config.reward.whiten=1 --config=b --noconfig.reward.whiten",
            "--config=b --noconfig.reward.whiten",
        ),
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


SETTINGS = {
    "seed": "2",
    "checkpoint_every": "3",
    "data.source": "a.txt",
    "model.num_layers": "1",
    "model.max_sequence_length": "128",
    "lm.num_steps": "5",
    "sampling.temperature": "0.5",
    "reward.scale": "2.0",
    "reward_model.num_steps": "7",
    "ppo.gamma": "0.9",
    "evaluation.num_samples": "3",
    "language_model": "b/lm",
}


@pytest.mark.parametrize(
    ("command", "left_out"),
    [
        ("train-ppo", {"model.num_layers", "lm.num_steps", "reward_model.num_steps"}),
        ("evaluate", {"model.num_layers", "lm.num_steps", "reward_model.num_steps", "ppo.gamma", "checkpoint_every"}),
        *[
            (name, {name for name in SETTINGS if name[:2] in ("re", "pp", "ev", "lm", "ch")} | {"model.num_layers"})
            for name in ("generate", "export")
        ],
    ],
)
def test_the_next_command_has_only_the_settings_that_it_uses(command, left_out):
    typed = [f"--config.{name}={value}" for name, value in SETTINGS.items()]
    printed = what_next(Invocation([INSTALLED, "--workdir=a", *typed]), [Next("go on", command)], "a", {}).splitlines()[
        0
    ]
    assert printed.split()[2:4] == ["tfppo", command]
    kept = {word.removeprefix("--config.").partition("=")[0] for word in shlex.split(printed)[5:]}
    assert kept == set(SETTINGS) - left_out


def test_the_quickstart_has_exported():
    assert [next.command for next in AFTER_QUICKSTART] == ["evaluate", "generate"]
    assert [next.command for next in AFTER_PPO] == ["evaluate", "generate", "export"]


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

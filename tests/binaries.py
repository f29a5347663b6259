"""Runs the real binaries as subprocesses, at toy size, for the tests that need them."""

import os
import random
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from warm import WarmProcess

ROOT = Path(__file__).resolve().parents[1]
CORES = 2
TINY = (
    "model.vocabulary_size=300",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.hidden_dim=16",
    "model.intermediate_dim=32",
    "lm.num_steps=12",
    "lm.warmup_steps=2",
    "lm.eval_every=6",
    "lm.batch_size=8",
    "ppo.total_episodes=32",
    "ppo.rollout_batch_size=8",
    "ppo.ppo_epochs=2",
    "ppo.num_minibatches=8",  # of one episode, which is not cut by length: less to trace
    "ppo.jit_compile=False",
    "sampling.response_length=8",
    "sampling.jit_compile=False",
    "evaluation.num_prompts=16",
    "evaluation.batch_size=8",
    "evaluation.samples_every=2",
    "checkpoint_every=2",
)
# What TensorFlow and absl log where a fork has it already, and the note of the first run on a machine.
_NOISE = re.compile(r"WARNING: All log messages|[IWEF]\d{4} |building the C\+\+ operations|\s*$")
_WORDS = "the film is a good bad story of love and war with great poor acting that we like hate so much dull bright"


class Finished(NamedTuple):
    code: int
    out: str
    err: list[str]  # lines, without the noise
    raw: str  # stderr as it came


def command(tool, *flags, config=(), python=()):
    """The command line of a binary; `config` holds FIELD=VALUE, which become --config.FIELD=VALUE."""
    overrides = [f"--config.{setting}" for setting in config]
    return [sys.executable, *python, str(ROOT / "tools" / f"{tool}.py"), *flags, *overrides]


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def finish(process) -> Finished:
    out, err = process.communicate(timeout=300)
    lines = [line for line in re.split(r"[\r\n]", err) if not _NOISE.match(line)]
    return Finished(process.returncode, out, lines, err)


def start(argv, fresh=None, **more):
    """The command as a process: in a fork that has TensorFlow already, unless it asks for Python options or variables.

    The quickstart starts from nothing, and with TensorFlow's own log level, as a user's does.

    Args: fresh: whether it starts from nothing, where that is said.
    """
    file, *arguments = argv[1:]
    if fresh is None:
        fresh = file.endswith("quickstart.py") or not file.endswith(".py") or bool(more)
    if not fresh:
        return WarmProcess([file, *arguments], env=environment(), cwd=ROOT)
    variables = environment(**more)
    if file.endswith("quickstart.py"):
        variables.pop("TF_CPP_MIN_LOG_LEVEL", None)
    return subprocess.Popen(argv, cwd=ROOT, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(argv, fresh=None, **more) -> Finished:
    return finish(start(argv, fresh, **more))


def run_all(argvs: dict) -> dict[str, Finished]:
    """Independent commands, as many at a time as there are cores."""
    with ThreadPoolExecutor(CORES) as pool:
        return dict(zip(argvs, pool.map(run, argvs.values()), strict=True))


def write_texts(path, count=400):
    """A text file of random sentences; returns the setting that makes it the source."""
    rng = random.Random(0)
    words = _WORDS.split()
    path.write_text("".join(" ".join(rng.choices(words, k=rng.randint(8, 14))) + "\n" for _ in range(count)))
    return f"data.source={path}"


def succeed(finished: Finished) -> Finished:
    assert finished.code == 0, finished.raw
    return finished

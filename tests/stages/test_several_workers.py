"""Several workers, each a process of the real binary, over the loopback device: they train as one process would.

A reward function writes down who calls it. It waits in the call that a file `hold_N` in its folder numbers (0: while it
is loaded), so that signals come in the middle of an iteration, and errs while there is a file `errs`.
"""

import json
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
from binaries import ROOT, TINY, command, environment, finish, succeed, write_texts
from warm import WarmProcess

from tfppo.models.folder import load_language_model, load_policy

REWARD = """
import os, pathlib, time

FOLDER = pathlib.Path(__file__).parent

def wait_in(call):
    while (FOLDER / f"hold_{call}").exists():
        (FOLDER / f"held_{call}").touch()
        time.sleep(0.02)

wait_in(0)

def toy(prompts, responses):
    with open(FOLDER / "callers", "a") as file:
        file.write(f"{os.getpid()}\\n")
    assert not (FOLDER / "errs").exists()
    wait_in(len((FOLDER / "callers").read_text().split()))
    return [len(response) / 10 for response in responses]
"""
ITERATIONS = 2
EVALUATED = {2: ITERATIONS, 3: 0}  # of so many workers, evaluation.every
SECONDS_TO_END = 20.0


def start(count, argv, other=None, folders=None):
    """A worker for each of `count` addresses.

    Args: other: the command of all but the first; None: the same; folders: that they start in, one each.
    """
    with ExitStack() as sockets:
        free = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in free:
            one.bind(("127.0.0.1", 0))
        hosts = [f"127.0.0.1:{one.getsockname()[1]}" for one in free]
    processes = []
    for index in range(count):
        config = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
        mine = other if other and index else argv
        processes.append(process(mine, (folders or {}).get(index, ROOT), TF_CONFIG=json.dumps(config)))
    return processes


def process(argv, folder=ROOT, **variables):
    return WarmProcess(argv[1:], env=environment(**variables), cwd=folder, as_traced=True)


def finish_all(processes):
    with ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(finish, processes))


def wait_for(path, processes, seconds=120.0):
    """Waits until a file is there, while all processes live."""
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"no {path} after {seconds} s"
        for number, process in enumerate(processes):
            assert process.poll() is None, f"worker {number} has ended: {finish(process)}"
        time.sleep(0.02)


class Case:
    """A PPO run in a folder of its own, with the reward function beside it."""

    def __init__(self, folder, base, name):
        self.folder = folder / name
        self.folder.mkdir()
        (self.folder / "reward.py").write_text(REWARD)
        self.workdir = self.folder / "run"
        config = (*base, f"reward.functions=('{self.folder}/reward.py:toy',)", "seed=3")
        self.argv = command("train_ppo", f"--workdir={self.workdir}", config=config)

    def callers(self):
        return set((self.folder / "callers").read_text().split())

    def held_in(self, call, count):
        """Workers that have come to a call of the reward function, counted over all runs, and wait in it."""
        (self.folder / f"hold_{call}").touch()
        processes = start(count, self.argv)
        wait_for(self.folder / f"held_{call}", processes)
        return processes

    def let_go(self, call):
        (self.folder / f"hold_{call}").unlink()


def weights(case):
    policy, _ = load_policy(case.workdir / "policy")
    return policy.get_weights()


def listing(folder):
    """The files of a run, without what distinguishes the names of event files and checkpoints."""
    paths = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {re.sub(r"(tfevents|ckpt-\d+)\.[^/]*", "", path) for path in paths}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Settings of a run from a language model that two workers have trained; those of its training come first."""
    folder = tmp_path_factory.mktemp("workers")
    config = (
        *(*TINY, write_texts(folder / "texts.txt"), "lm.num_steps=4", "lm.eval_every=4"),
        *("ppo.rollout_batch_size=12", "ppo.num_minibatches=6", "ppo.ppo_epochs=1", "ppo.learning_rate=0.01"),
        *("evaluation.samples_every=0", "checkpoint_every=1", "keep_checkpoints=9"),
    )
    for finished in finish_all(start(2, command("train_lm", f"--workdir={folder}/lm", config=config))):
        succeed(finished)
    return folder, config, (*config, f"language_model={folder}/lm/lm")


def chain_of_two(case):
    """A training of two workers that is ended in every way, and goes on each time; what they said."""
    told = {}
    (case.folder / "errs").touch()
    told["erred"] = finish_all(start(2, case.argv))  # in call 1, which evaluates
    (case.folder / "errs").unlink()
    processes = case.held_in(3, 2)  # call 2 evaluates, and 3 is iteration 1
    processes[1].send_signal(signal.SIGTERM)
    time.sleep(0.5)
    case.let_go(3)
    told["terminated"] = finish_all(processes)
    for gone, call in ((1, 0), (0, 4)):
        processes = case.held_in(call, 2)
        processes[gone].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        case.let_go(call)
        told[f"{gone} killed"] = finish_all(processes)
        told[f"seconds after {gone}"] = time.monotonic() - killed
    told["end"] = finish_all(start(2, case.argv))
    return told


@pytest.fixture(scope="module")
def runs(base):
    """What happened in each run, and the cases at their ends: two workers, three, and one process beside each."""
    folder, config, settings = base

    def of(count):
        # One row a minibatch and replica: nothing is cut by length, and there is less to trace.
        length = f"ppo.num_minibatches={12 // count}", f"ppo.total_episodes={12 * ITERATIONS}"
        return (*settings, *length, f"evaluation.every={EVALUATED[count]}")

    cases = {count: Case(folder, of(count), f"workers_{count}") for count in EVALUATED}
    alone = {count: Case(folder, (*of(count), f"num_replicas={count}"), f"alone_{count}") for count in EVALUATED}
    other = Case(folder, of(2), "other")
    lm = command("train_lm", f"--workdir={folder}/one_lm", config=(*config, "num_replicas=2"))
    with ThreadPoolExecutor(1) as beside:
        chain = beside.submit(chain_of_two, cases[2])
        found = {
            "other": finish_all(start(2, other.argv, [*other.argv, "--config.seed=4"])),
            3: {"end": finish_all(start(3, cases[3].argv))},
        }
        for argv in (lm, *(case.argv for case in alone.values())):
            succeed(finish(process(argv)))
        found[2] = chain.result()
    return found, cases | {"other": other}, alone


def test_the_language_model_of_two_workers_is_that_of_two_replicas(base, runs):
    folder, *_ = base
    models = [load_language_model(folder / name / "lm")[0].get_weights() for name in ("lm", "one_lm")]
    for found, expected in zip(*models, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("count", [2, 3])
def test_after_all_that_happened_the_policy_is_that_of_one_process(runs, count):
    found, cases, alone = runs
    for finished in found[count]["end"]:
        succeed(finished)
    for one, other in zip(weights(cases[count]), weights(alone[count]), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [2, 3])
def test_the_chief_alone_scores_writes_and_prints(runs, count):
    found, cases, alone = runs
    assert listing(cases[count].workdir) == listing(alone[count].workdir)
    chief, *others = found[count]["end"]
    assert "result: " in chief.out and f"worker 0 of {count}, the chief" in chief.out
    assert all(not other.out and not other.err for other in others)
    # One process in each run, as often as it was started.
    assert len(cases[count].callers()) == {2: 4, 3: 1}[count]


def test_sigterm_to_one_worker_saves_and_ends_all(runs):
    found, *_ = runs
    for finished in found[2]["terminated"]:
        assert finished.code == 130 and "saved after 1 of 2 iterations" in finished.err[-1], finished


@pytest.mark.parametrize("gone", [0, 1], ids=["the chief", "another one"])
def test_a_worker_that_is_killed_ends_the_other_in_a_line(runs, gone):
    found, *_ = runs
    assert found[2][f"seconds after {gone}"] < SECONDS_TO_END
    finished = found[2][f"{gone} killed"][1 - gone]
    assert finished.code == 1, finished
    assert re.match(r"error: worker \d is gone: ", finished.err[-1]), finished.err
    assert "same command" in finished.err[-1] and "Traceback" not in finished.raw


def test_where_the_reward_errs_all_end_and_say_so(runs):
    found, *_ = runs
    for number, finished in enumerate(found[2]["erred"]):
        assert finished.code == 1 and "reward toy raised AssertionError" in finished.err[-1], finished
        assert ("the chief, worker 0, ended" in finished.err[-1]) == (number > 0)


def test_workers_with_other_settings_are_told(runs):
    found, cases, _ = runs
    for finished in found["other"]:
        assert finished.code == 1, finished
        assert finished.err[-1].startswith("error: the configuration at worker 1 is not that of worker 0"), finished
    assert not cases["other"].workdir.exists()


def test_a_port_that_another_process_has_is_told(base):
    folder, settings, _ = base
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        hosts = [f"127.0.0.1:{taken.getsockname()[1]}", "127.0.0.1:1"]
        config = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": 0}}
        argv = command("train_lm", f"--workdir={folder}/taken", config=settings)
        finished = finish(process(argv, TF_CONFIG=json.dumps(config)))
    assert finished.code == 1 and "Traceback" not in finished.raw, finished
    assert finished.err[-1].startswith(f"error: worker 0 cannot listen at {hosts[0]}, its address in TF_CONFIG: ")


def test_workers_with_other_texts_are_told(base):
    """At the same path, but not the same: in each of the two folders that they start in."""
    folder, settings, _ = base
    folders = {index: folder / f"texts_{index}" for index in range(2)}
    for index, own in folders.items():
        own.mkdir()
        (own / "mine.txt").write_text("".join(f"film {'abc'[: 1 + index]} {number}\n" for number in range(200)))
    config = (*settings, "data.source=mine.txt")
    for finished in finish_all(
        start(2, command("train_lm", f"--workdir={folder}/unlike", config=config), folders=folders)
    ):
        assert finished.code == 1, finished
        assert finished.err[-1].startswith("error: the tokenizer of the texts at worker 1 is not that"), finished

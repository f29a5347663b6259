"""Several workers, each a process of the real binary, over the loopback device: they train as one process would.

A reward function writes down who calls it. It waits in the call that a file `hold_N` in its folder numbers, so that
signals come in the middle of an iteration, and errs while there is a file `errs`.
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
from binaries import ROOT, TINY, command, environment, finish, run_all, succeed, write_texts
from warm import WarmProcess

from tfppo.models.folder import load_language_model, load_policy

REWARD = """
import os, pathlib, time

FOLDER = pathlib.Path(__file__).parent

def toy(prompts, responses):
    with open(FOLDER / "callers", "a") as file:
        file.write(f"{os.getpid()}\\n")
    assert not (FOLDER / "errs").exists()
    call = len((FOLDER / "callers").read_text().split())
    while (FOLDER / f"hold_{call}").exists():
        (FOLDER / f"held_{call}").touch()
        time.sleep(0.02)
    return [len(response) / 10 for response in responses]
"""
ITERATIONS = 6
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
        processes.append(
            WarmProcess(mine[1:], env=environment(TF_CONFIG=json.dumps(config)), cwd=(folders or {}).get(index, ROOT))
        )
    return processes


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
    """Settings of a run from a language model that two workers have trained."""
    folder = tmp_path_factory.mktemp("workers")
    config = (
        *(*TINY, write_texts(folder / "texts.txt"), "lm.num_steps=6", "lm.eval_every=3"),
        *("ppo.rollout_batch_size=12", "ppo.num_minibatches=6", "ppo.learning_rate=0.01", "evaluation.every=4"),
        *(f"ppo.total_episodes={12 * ITERATIONS}", "checkpoint_every=2", "keep_checkpoints=9"),
    )
    together = start(2, command("train_lm", f"--workdir={folder}/lm", config=config))
    alone = run_all({"lm": command("train_lm", f"--workdir={folder}/one_lm", config=(*config, "num_replicas=2"))})
    for finished in (*finish_all(together), alone["lm"]):
        succeed(finished)
    return folder, (*config, f"language_model={folder}/lm/lm")


@pytest.fixture(scope="module")
def runs(base):
    """What happened in each run, and the cases at their ends: two workers, three, and one process beside each."""
    folder, settings = base
    # One row a minibatch and replica: nothing is cut by length, and there is less to trace.
    of = {count: (*settings, f"ppo.num_minibatches={12 // count}") for count in (2, 3)}
    two, three = Case(folder, of[2], "two"), Case(folder, of[3], "three")
    alone = {count: Case(folder, (*of[count], f"num_replicas={count}"), f"alone_{count}") for count in (2, 3)}

    def of_two():
        told = {}
        (two.folder / "errs").touch()
        told["erred"] = finish_all(start(2, two.argv))
        (two.folder / "errs").unlink()
        # The first call evaluates, each of the next is an iteration, and after four of them there is an evaluation.
        # One call has erred.
        processes = two.held_in(5, 2)
        processes[1].send_signal(signal.SIGTERM)
        time.sleep(0.5)
        two.let_go(5)
        told["terminated"] = finish_all(processes)
        processes = two.held_in(8, 2)
        processes[0].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        told["chief killed"] = finish_all(processes)
        told["seconds after"] = time.monotonic() - killed
        two.let_go(8)
        told["end"] = finish_all(start(2, two.argv))
        return told

    def of_three():
        told = {}
        processes = three.held_in(4, 3)
        processes[2].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        three.let_go(4)
        told["worker killed"] = finish_all(processes)
        told["seconds after"] = time.monotonic() - killed
        told["end"] = finish_all(start(3, three.argv))
        return told

    with ThreadPoolExecutor(2) as pool:
        found = {2: pool.submit(of_two), 3: pool.submit(of_three)}
        found = {count: future.result() for count, future in found.items()}
    for finished in run_all({count: case.argv for count, case in alone.items()}).values():
        succeed(finished)
    return found, {2: two, 3: three}, alone


def test_the_language_model_of_two_workers_is_that_of_two_replicas(base):
    folder, _ = base
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
    assert len(cases[count].callers()) == {2: 4, 3: 2}[count]


def test_sigterm_to_one_worker_saves_and_ends_all(runs):
    found, _, _ = runs
    for finished in found[2]["terminated"]:
        assert finished.code == 130 and "saved after 3 of 6 iterations" in finished.err[-1], finished


@pytest.mark.parametrize(("count", "event", "gone"), [(2, "chief killed", 0), (3, "worker killed", 2)])
def test_a_worker_that_is_killed_ends_the_others_in_a_line(runs, count, event, gone):
    found, _, _ = runs
    assert found[count]["seconds after"] < SECONDS_TO_END
    for number, finished in enumerate(found[count][event]):
        if number != gone:
            assert finished.code == 1, finished
            assert re.match(r"error: worker \d is gone: ", finished.err[-1]), finished.err
            assert "same command" in finished.err[-1] and "Traceback" not in finished.raw


def test_where_the_reward_errs_all_end_and_say_so(runs):
    found, _, _ = runs
    for number, finished in enumerate(found[2]["erred"]):
        assert finished.code == 1 and "reward toy raised AssertionError" in finished.err[-1], finished
        assert ("the chief, worker 0, ended" in finished.err[-1]) == (number > 0)


def test_workers_with_other_settings_are_told(base):
    folder, settings = base
    case = Case(folder, settings, "other")
    for finished in finish_all(start(2, case.argv, [*case.argv, "--config.seed=4"])):
        assert finished.code == 1, finished
        assert finished.err[-1].startswith("error: the configuration at worker 1 is not that of worker 0"), finished
    assert not case.workdir.exists()


def test_a_port_that_another_process_has_is_told(base):
    folder, settings = base
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        hosts = [f"127.0.0.1:{taken.getsockname()[1]}", "127.0.0.1:1"]
        config = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": 0}}
        argv = command("train_lm", f"--workdir={folder}/taken", config=settings)
        finished = finish(WarmProcess(argv[1:], env=environment(TF_CONFIG=json.dumps(config)), cwd=ROOT))
    assert finished.code == 1 and "Traceback" not in finished.raw, finished
    assert finished.err[-1].startswith(f"error: worker 0 cannot listen at {hosts[0]}, its address in TF_CONFIG: ")


def test_workers_with_other_texts_are_told(base):
    """At the same path, but not the same: in each of the two folders that they start in."""
    folder, settings = base
    folders = {index: folder / f"texts_{index}" for index in range(2)}
    for index, own in folders.items():
        own.mkdir()
        (own / "mine.txt").write_text("".join(f"film {'abc'[: 1 + index]} {number}\n" for number in range(200)))
    config = (*settings[:-1], "data.source=mine.txt")
    for finished in finish_all(
        start(2, command("train_lm", f"--workdir={folder}/unlike", config=config), folders=folders)
    ):
        assert finished.code == 1, finished
        assert finished.err[-1].startswith("error: the tokenizer of the texts at worker 1 is not that"), finished

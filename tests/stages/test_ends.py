"""How the real binaries end and what they refuse: a folder in use, signals, checkpoints that are gone."""

import os
import re
import shutil
import signal
import time

import pytest
from binaries import TINY, command, finish, run, start, succeed, write_texts

# Hangs in its second call while the file is there, as a reward does that waits for a server.
REWARD = """
import os, time

calls = 0


def waiting(prompts, responses):
    global calls
    calls += 1
    while calls == 2 and os.path.exists({flag!r}):
        open({flag!r} + ".seen", "w").close()
        time.sleep(0.01)
    return [0.0] * len(responses)
"""


def wait_for(condition, process):
    ends = time.monotonic() + 120
    while not condition() and process.poll() is None and time.monotonic() < ends:
        time.sleep(0.01)
    assert condition()


def err_of(process):
    return process._streams[1].read_text()


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """A PPO run that hangs, and what happens to it and beside it."""
    folder = tmp_path_factory.mktemp("ends")
    workdir, flag = folder / "a[1] b", folder / "flag"
    (folder / "reward.py").write_text(REWARD.format(flag=str(flag)))
    flag.touch()
    settings = (
        *TINY,
        write_texts(folder / "texts.txt"),
        f"reward.functions=('{folder / 'reward.py'}:waiting',)",
        "evaluation.every=0",  # which calls the reward, too
    )
    here = f"--workdir={workdir}"
    succeed(run(command("train_lm", here, config=settings)))
    first = start(command("train_ppo", here, config=settings))
    wait_for((folder / "flag.seen").exists, first)
    results = {
        # From nothing, and with all that TensorFlow says: a start of it would show.
        "second": run(command("train_lm", here, config=settings), TF_CPP_MIN_LOG_LEVEL="0"),
        "beside": run(command("generate", here, "--prompt=the film", config=settings)),
        "pid": first._process.pid,
    }
    first.send_signal(signal.SIGTERM)
    wait_for(lambda: "stopping" in err_of(first), first)
    time.sleep(0.3)  # what comes sooner is taken for the same signal
    first.send_signal(signal.SIGINT)
    results["first"] = finish(first)
    flag.unlink()
    (workdir / "config.json.tmp").write_text("half")
    results["resumed"] = run(command("train_ppo", here, config=settings))
    results["left"] = sorted(path.name for path in workdir.iterdir())
    shutil.rmtree(workdir / "lm_checkpoints")
    os.mkdir(workdir / "lm_checkpoints")
    results["emptied"] = run(command("train_lm", here, config=settings))
    return workdir, results


def test_a_second_process_is_refused_before_tensorflow_starts(ends):
    workdir, results = ends
    second = results["second"]
    assert second.code == 1
    assert re.fullmatch(
        rf"error: --workdir '{re.escape(str(workdir))}' is in use by process {results['pid']} on \S+ since .* "
        r"\(.*/tools/train_ppo\.py .*\.\.\.\); wait for its end, stop it, or choose another\n",
        second.raw,
    )


def test_what_only_reads_may_run_beside(ends):
    assert succeed(ends[1]["beside"]).out.startswith("the film|")


def test_the_second_signal_ends_a_hanging_reward(ends):
    first = ends[1]["first"]
    assert first.code == 130
    asked, last = first.err
    assert re.match(r"stopping: finishing iteration 2, about \d+ s; press Ctrl-C again", asked)
    assert last == "stopped at once; run the same command again to go on from what was saved"


def test_the_run_goes_on_and_sweeps(ends):
    workdir, results = ends
    succeed(results["resumed"])
    assert len((workdir / "ppo.jsonl").read_text().splitlines()) == 4
    assert not [name for name in results["left"] if name.endswith((".tmp", ".saving", ".old"))]


def test_checkpoints_that_are_gone_end_it_by_name(ends):
    workdir, results = ends
    emptied = results["emptied"]
    assert emptied.code == 1 and len(emptied.err) == 1
    assert "lm_checkpoints' holds no checkpoint, but " in emptied.err[0] and "12 steps" in emptied.err[0]
    assert len((workdir / "lm_training.jsonl").read_text().splitlines()) == 12

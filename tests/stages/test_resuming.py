"""One workdir, of any name, under the real binaries: in use, ended by signals, gone on with, and after losses."""

import json
import re
import shutil
import signal
import time

import pytest
from binaries import TINY, command, finish, run, start, succeed, write_texts

from tfppo.training.metrics import read_metrics

NAME = "a[1] b*c? {d} дом"
FRESH = "new/and deep"
BASE = ("ppo.learning_rate=0.003", "ppo.kl_coef=0.05", "ppo.schedule=linear", "ppo.gamma=1.0", "ppo.ema_decay=0.0")
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
    """How commands on one workdir ended, one after the other, and what was there at some of those times."""
    folder = tmp_path_factory.mktemp("resuming")
    workdir, flag = folder / NAME, folder / "flag"
    (folder / "reward.py").write_text(REWARD.format(flag=str(flag)))
    reward = f"reward.functions=('{folder / 'reward.py'}:waiting',)"
    settings = (*TINY, write_texts(folder / "texts.txt"), "keep_checkpoints=1", reward, "evaluation.every=0", *BASE)

    def argv(tool, *more, where=workdir, flags=()):
        return command(tool, f"--workdir={where}", *flags, config=(*settings, *more))

    found = {"lm": succeed(run(argv("train_lm")))}
    # A neighbour that the name, taken for a pattern, would match.
    neighbour = folder / "a1 b_c! {d} дом" / "checkpoints"
    neighbour.mkdir(parents=True)
    (neighbour / "ckpt-2.index").touch()

    ppo = argv("train_ppo", "ppo.adaptive_kl_target=0.5")
    flag.touch()
    hanging = start(ppo)
    wait_for((folder / "flag.seen").exists, hanging)
    # From nothing, and with all that TensorFlow says: a start of it would show.
    found["second"] = run(argv("train_lm"), TF_CPP_MIN_LOG_LEVEL="0")
    found["beside"] = run(argv("generate", flags=["--prompt=the film"]))
    found["pid"] = hanging._process.pid
    hanging.send_signal(signal.SIGTERM)
    wait_for(lambda: "stopping" in err_of(hanging), hanging)
    time.sleep(0.3)  # what comes sooner is taken for the same signal
    hanging.send_signal(signal.SIGINT)
    found["hanging"] = finish(hanging)
    flag.unlink()
    (workdir / "config.json.tmp").write_text("half")

    found["ppo"] = succeed(run(ppo))
    found["checkpoints"] = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    found["neighbour"] = list(neighbour.iterdir())
    found["left"] = sorted(path.name for path in workdir.iterdir())
    first = (workdir / "ppo.jsonl").read_text()
    longer = ("ppo.total_episodes=48", "ppo.adaptive_kl_target=0.5")
    found["config"] = json.loads((workdir / "config.json").read_text())
    more = (*longer, "ppo.learning_rate=0.02", "ppo.kl_coef=0.3", "ppo.schedule=constant")
    # None of these may change anything.
    refused = {
        "seed": argv("train_ppo", *more, "seed=1"),
        "heads": argv("train_lm", "model.num_heads=4"),
        "fresh": argv("train_ppo", where=folder / FRESH),
    }
    found.update({name: run(refusal) for name, refusal in refused.items()})  # a folder is one run's at a time
    found["config after refusals"] = json.loads((workdir / "config.json").read_text())
    found["longer"] = succeed(run(argv("train_ppo", *more)))
    rows = read_metrics(workdir / "ppo.jsonl")
    shutil.rmtree(workdir / "policy")
    shutil.rmtree(workdir / "lm")
    found["lm again"] = succeed(run(argv("train_lm")))
    found["finished"] = succeed(run(argv("train_ppo", *more, "ppo.gamma=0.9")))
    found["export"] = succeed(run(argv("export")))
    shutil.rmtree(workdir / "lm_checkpoints")
    (workdir / "lm_checkpoints").mkdir()
    found["emptied"] = run(argv("train_lm"))
    return folder, workdir, {**found, "first": first, "rows": rows}


def test_a_second_process_is_refused_before_tensorflow_starts(ends):
    _, workdir, found = ends
    second = found["second"]
    assert second.code == 1
    assert re.fullmatch(
        rf"error: --workdir '{re.escape(str(workdir))}' is in use by process {found['pid']} on \S+ since .* "
        r"\(.*/tools/train_ppo\.py .*\.\.\.\); wait for its end, stop it, or choose another\n",
        second.raw,
    )


def test_what_only_reads_may_run_beside(ends):
    assert succeed(ends[2]["beside"]).out.startswith("the film|")


def test_the_second_signal_ends_a_hanging_reward(ends):
    hanging = ends[2]["hanging"]
    assert hanging.code == 130
    asked, last = hanging.err
    assert re.match(r"stopping: finishing iteration 2, about \d+ s; press Ctrl-C again", asked)
    assert last == "stopped at once; run the same command again to go on from what was saved"


def test_the_run_can_be_started_again_and_sweeps(ends):
    _, _, found = ends
    assert len(found["first"].splitlines()) == 4
    assert not [name for name in found["left"] if name.endswith((".tmp", ".saving", ".old"))]


def test_a_run_that_was_made_longer_goes_on(ends):
    _, workdir, found = ends
    changes = ("total_episodes 32 -> 48", "kl_coef 0.05 -> 0.3", "learning_rate 0.003 -> 0.02", "schedule linear -> ")
    for change in changes:
        assert f"ppo.{change}" in found["longer"].out
    assert "from iteration 5" in found["longer"].out and "(it had come to 0.0" in found["longer"].out
    rows = found["rows"]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert "".join(json.dumps(row) + "\n" for row in rows[:4]) == found["first"]
    assert rows[4]["objective/kl_coef"] == pytest.approx(0.3) and rows[4]["policy/learning_rate"] == 0.02


def test_the_configuration_says_what_was_trained(ends):
    _, workdir, found = ends
    assert found["config"]["ppo"]["total_episodes"] == 32 and found["config"]["model"]["hidden_dim"] == 16
    assert found["config after refusals"] == found["config"]
    config = json.loads((workdir / "config.json").read_text())
    # gamma was said when nothing was left to train
    assert (config["ppo"]["total_episodes"], config["ppo"]["kl_coef"], config["ppo"]["gamma"]) == (48, 0.3, 1.0)
    lines = [json.loads(line) for line in (workdir / "config_history.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["from"]) for line in lines] == [("language model", 1), ("PPO", 1), ("PPO", 5)]
    assert lines[2]["settings"] == {
        "ppo.total_episodes": 48,
        "ppo.kl_coef": 0.3,
        "ppo.learning_rate": 0.02,
        "ppo.critic_learning_rate": 0.2,  # follows
        "ppo.schedule": "constant",
    }


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("seed", "seed is 1, not 0"),
        ("heads", "model.num_heads is 4, not 2"),
    ],
)
def test_what_cannot_be_is_refused_by_name(ends, end, words):
    finished = ends[2][end]
    assert finished.code == 1 and len(finished.err) == 1, finished.raw
    assert words in finished.err[0] and "remove" not in finished.err[0]


def test_a_refused_run_leaves_no_empty_folder(ends):
    folder, _, found = ends
    assert found["fresh"].code == 1 and "there is no model" in found["fresh"].err[0]
    assert not (folder / FRESH).parent.exists()


def test_the_name_of_a_folder_is_no_pattern(ends):
    _, workdir, found = ends
    assert found["checkpoints"] == ["checkpoint", "ckpt-4.data-00000-of-00001", "ckpt-4.index", "ckpt-4.json"]
    assert len(found["neighbour"]) == 1


def test_outputs_that_are_gone_are_written_again(ends):
    _, workdir, found = ends
    assert "was missing, and is written again" in found["lm again"].out
    assert "ppo.gamma 1.0 -> 0.9 has no effect" in found["finished"].out
    for name in ("lm", "policy"):
        assert (workdir / name / "model.keras").is_file()
    assert (workdir / "export" / "1" / "saved_model.pb").is_file()


def test_checkpoints_that_are_gone_end_it_by_name(ends):
    _, workdir, found = ends
    emptied = found["emptied"]
    assert emptied.code == 1 and len(emptied.err) == 1
    assert "lm_checkpoints' holds no checkpoint, but " in emptied.err[0] and "12 steps" in emptied.err[0]
    assert len((workdir / "lm_training.jsonl").read_text().splitlines()) == 12

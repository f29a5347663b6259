"""The real binaries go on with a run: in a workdir of any name, with other settings, after its outputs are gone."""

import json
import shutil

import pytest
from binaries import TINY, command, run, succeed, write_texts

from tfppo.training.metrics import read_metrics

NAME = "a[1] b*c? {d} дом"
FRESH = "new/and deep"
BASE = ("ppo.learning_rate=0.003", "ppo.kl_coef=0.05", "ppo.schedule=linear", "ppo.gamma=1.0", "ppo.ema_decay=0.0")


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """How commands on one workdir ended, one after the other, and what was there at some of those times."""
    folder = tmp_path_factory.mktemp("resuming")
    workdir = folder / NAME
    texts = write_texts(folder / "texts.txt")
    settings = (*TINY, texts, "keep_checkpoints=1", *BASE)

    def argv(tool, *more, where=workdir):
        return command(tool, f"--workdir={where}", config=(*settings, *more))

    found = {"lm": succeed(run(argv("train_lm")))}
    # A neighbour that the name, taken for a pattern, would match.
    neighbour = folder / "a1 b_c! {d} дом" / "checkpoints"
    neighbour.mkdir(parents=True)
    (neighbour / "ckpt-2.index").touch()
    found["ppo"] = succeed(run(argv("train_ppo", "ppo.adaptive_kl_target=0.5")))
    found["checkpoints"] = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    found["neighbour"] = list(neighbour.iterdir())
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
    return folder, workdir, {**found, "first": first, "rows": rows}


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

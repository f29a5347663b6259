"""What a run was trained with is written down with its checkpoints, and compared when it goes on."""

import json

import pytest
from config_cases import configured

from tfppo.config.resuming import LANGUAGE_MODEL, PPO
from tfppo.errors import UserError
from tfppo.stages.history import SettingsHistory, content_of


class Keeper:
    """As much of a CheckpointKeeper as the history uses: numbers, and files of which only the names count."""

    def __init__(self, folder, kl_coef=0.05):
        self.folder, self.scalars, self.on_save = folder, {"kl_coef": kl_coef}, None

    def override(self, name, value):
        self.scalars[name] = value

    def save(self, step):
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"ckpt-{step}.index").touch()
        self.on_save(step)


# What the tests change; other settings stay at their defaults.
BASE = dict(ppo__kl_coef=0.05, ppo__learning_rate=3e-4, ppo__gamma=1.0, ppo__critic="shared")


def go_on(folder, done, *saves, stage=PPO, left=True, kl_coef=0.05, **settings):
    """A command with these settings, from a checkpoint of `done` steps; returns what it says, and its keeper."""
    said, keeper = [], Keeper(folder / stage.checkpoints, kl_coef)
    history = SettingsHistory(configured(**{**BASE, **settings}), folder, stage)
    history.resume(keeper, done, left=left, say=said.append)
    for step in saves:
        keeper.save(step)
    return said, keeper


def lines(folder):
    return [json.loads(line) for line in (folder / "config_history.jsonl").read_text().splitlines()]


def config(folder):
    return json.loads((folder / "config.json").read_text())


def test_nothing_is_claimed_before_a_checkpoint_was_trained_so(tmp_path):
    said, keeper = go_on(tmp_path, 0, ppo__learning_rate=0.5)
    assert said == [] and list(tmp_path.iterdir()) == []
    keeper.save(16)
    (first,) = lines(tmp_path)
    assert (first["stage"], first["from"]) == ("PPO", 1)
    assert first["settings"]["ppo.learning_rate"] == config(tmp_path)["ppo"]["learning_rate"] == 0.5
    # Of what PPO does not depend on, nothing is claimed.
    assert not {"model", "lm", "reward_model"} & config(tmp_path).keys()


def test_a_free_setting_is_taken_and_said(tmp_path):
    go_on(tmp_path, 0, 16, 28, ppo__learning_rate=1e-4)
    said, keeper = go_on(tmp_path, 28, ppo__learning_rate=2e-3)
    assert said == ["ppo.learning_rate 0.0001 -> 0.002 from iteration 29"]
    assert config(tmp_path)["ppo"]["learning_rate"] == 1e-4  # nothing was trained so yet
    keeper.save(32)
    keeper.save(48)
    expected = {"stage": "PPO", "from": 29, "settings": {"ppo.learning_rate": 2e-3}, "contents": {}}
    assert lines(tmp_path)[1:] == [expected]
    assert config(tmp_path)["ppo"]["learning_rate"] == 2e-3
    assert go_on(tmp_path, 48, 64, ppo__learning_rate=2e-3)[0] == []
    assert len(lines(tmp_path)) == 2


def test_where_nothing_is_left_to_train_a_change_is_said_to_have_no_effect(tmp_path):
    go_on(tmp_path, 0, 16)
    said, keeper = go_on(tmp_path, 16, left=False, ppo__learning_rate=0.1, ppo__kl_coef=0.2, kl_coef=0.7)
    # An evaluation may well follow it, which uses sampling.temperature.
    assert said == [
        "ppo.kl_coef 0.05 -> 0.2 has no effect on the training, which is over",
        "ppo.learning_rate 0.0003 -> 0.1 has no effect on the training, which is over",
    ]
    assert keeper.scalars == {"kl_coef": 0.7} and len(lines(tmp_path)) == 1


def test_a_fixed_setting_is_refused(tmp_path):
    go_on(tmp_path, 0, 16, ppo__critic="separate")
    with pytest.raises(UserError, match="fixed: ppo.critic is shared, not separate; go on"):
        SettingsHistory(configured(**BASE), tmp_path, PPO)
    assert SettingsHistory(configured(seed=5), tmp_path, LANGUAGE_MODEL).changes() == []  # which has no checkpoint yet


def test_a_changed_coefficient_replaces_the_adapted_one_once(tmp_path):
    go_on(tmp_path, 0, 16)
    said, keeper = go_on(tmp_path, 16, kl_coef=0.08)
    assert said == [] and keeper.scalars == {"kl_coef": 0.08}  # adapted, and not changed by the user
    said, keeper = go_on(tmp_path, 16, 32, kl_coef=0.08, ppo__kl_coef=0.2)
    assert said == ["ppo.kl_coef 0.05 -> 0.2 from iteration 17 (it had come to 0.08)"]
    assert keeper.scalars == {"kl_coef": 0.2}
    said, keeper = go_on(tmp_path, 32, kl_coef=0.25, ppo__kl_coef=0.2)  # the same command again
    assert said == [] and keeper.scalars == {"kl_coef": 0.25}


def test_what_was_lost_with_its_checkpoint_counts_no_more(tmp_path):
    go_on(tmp_path, 0, 16)
    go_on(tmp_path, 16, 32, ppo__kl_coef=0.2)
    (tmp_path / "checkpoints" / "ckpt-32.index").unlink()
    said, keeper = go_on(tmp_path, 16, 20, ppo__kl_coef=0.2, ppo__gamma=0.9)
    assert said == ["ppo.gamma 1.0 -> 0.9 from iteration 17", "ppo.kl_coef 0.05 -> 0.2 from iteration 17"]
    assert keeper.scalars == {"kl_coef": 0.2}
    assert [(line["from"], len(line["settings"])) for line in lines(tmp_path)[1:]] == [(17, 2)]


def test_a_run_without_a_history_goes_on(tmp_path):
    """Its config.json may be of another stage, whose data were other ones: what is fixed is not known."""
    (tmp_path / "config.json").write_text(configured(**{**BASE, "seed": 3, "ppo__kl_coef": 0.1}).to_json())
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "ckpt-8.index").touch()
    said, keeper = go_on(tmp_path, 8, 16, kl_coef=0.13, ppo__kl_coef=0.1)
    assert said == [] and keeper.scalars == {"kl_coef": 0.13}
    assert lines(tmp_path)[0]["from"] == 9 and config(tmp_path)["seed"] == 0
    with pytest.raises(UserError, match="seed is 1, not 0"):
        go_on(tmp_path, 16, seed=1, ppo__kl_coef=0.1)


def test_stages_share_the_files_and_not_their_settings(tmp_path):
    go_on(tmp_path, 0, 100, stage=LANGUAGE_MODEL, data__source="a.txt", lm__learning_rate=0.1)
    go_on(tmp_path, 0, 16, stage=PPO, data__source="b.txt", lm__learning_rate=0.2)
    assert config(tmp_path)["data"]["source"] == "b.txt" and config(tmp_path)["lm"]["learning_rate"] == 0.1
    assert list(config(tmp_path))[:2] == ["seed", "language_model"]  # in the order of the settings
    settings = dict(data__source="a.txt", lm__learning_rate=0.1, ppo__critic="separate")
    assert go_on(tmp_path, 100, stage=LANGUAGE_MODEL, **settings)[0] == []


def test_a_file_of_the_same_content_may_have_another_name(tmp_path):
    old, new, other = (tmp_path / name for name in ("old.txt", "new.txt", "other.txt"))
    for path in (old, new):
        path.write_text("one\ntwo\n")
    other.write_text("one\nthree\n")
    run = tmp_path / "run"
    go_on(run, 0, 16, data__source=str(old))
    old.unlink()
    assert go_on(run, 16, data__source=str(new))[0] == [f"data.source {old} -> {new} from iteration 17"]
    with pytest.raises(UserError, match=f"data.source is {other}, not {old}"):
        go_on(run, 16, data__source=str(other))
    assert content_of(str(tmp_path)) == content_of(str(run)) != content_of("tfds:x") == "tfds:x"


def test_a_model_to_start_from_may_move_but_not_come_or_go(tmp_path):
    first, moved = tmp_path / "first", tmp_path / "moved"
    moved.mkdir()
    first.mkdir()
    run = tmp_path / "run"
    go_on(run, 0, 16, language_model=str(first))
    assert go_on(run, 16, language_model=str(moved))[0] == [f"language_model {first} -> {moved} from iteration 17"]
    with pytest.raises(UserError, match=f"language_model is .., not {first}; go on with --config.lang"):
        go_on(run, 16)


def test_damaged_lines_are_left_out(tmp_path):
    go_on(tmp_path, 0, 16)
    path = tmp_path / "config_history.jsonl"
    path.write_text("[1]\n" + path.read_text() + '{"stage": "PPO", "from": 9, "sett')
    with pytest.raises(UserError, match="seed is 1, not 0"):
        go_on(tmp_path, 16, seed=1)


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe\x00", b'{"stage": "PPO", "from": "9", "settings": {}}', b'{"stage": "PPO", "from": 9, "settings": 1}'],
)
def test_a_line_that_is_no_text_or_of_another_form_is_left_out_too(tmp_path, line):
    go_on(tmp_path, 0, 16)
    with (tmp_path / "config_history.jsonl").open("ab") as file:
        file.write(line + b"\n")
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    damage, change = go_on(tmp_path, 16, 32, ppo__gamma=0.9)[0]
    assert (
        damage == f"{tmp_path / 'config_history.jsonl'} has damaged lines (2): settings that they held are not compared"
    )
    assert change == "ppo.gamma 1.0 -> 0.9 from iteration 17"
    assert config(tmp_path)["ppo"]["gamma"] == 0.9 and [line["from"] for line in lines(tmp_path)] == [1, 17]


def test_a_file_of_the_home_directory_is_known_by_either_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    run = tmp_path / "run"
    go_on(run, 0, 16, data__source="~/a.txt")
    assert go_on(run, 16, data__source=str(tmp_path / "a.txt"))[0] != []


def test_a_history_that_was_emptied_is_said(tmp_path):
    go_on(tmp_path, 0, 16)
    (tmp_path / "config_history.jsonl").write_text("")
    (damage,) = go_on(tmp_path, 16, 32)[0]
    assert damage == f"{tmp_path / 'config_history.jsonl'} is empty: settings that it held are not compared"
    assert go_on(tmp_path, 32)[0] == []

"""The small tasks: rewards by hand, demonstrations that leave room to learn, and the settings and table of the tool."""

import itertools
import sys

import numpy as np
import pytest
from binaries import ROOT, command, run

sys.path.append(str(ROOT / "tools"))

import learning_tasks  # noqa: E402  the path comes first
from tasks import TASKS, animals, level, paths, sums  # noqa: E402

from tfppo.config.validation import validate_for_ppo  # noqa: E402


def test_sums_by_hand():
    prompts = ["12+34=", "99+99=", "99+99=", "10+10="]
    assert sums.exact(prompts, ["46", "198", "1980", ""]) == [1.0, 1.0, 0.0, 0.0]


def test_animals_by_hand():
    assert animals.fits(["b07:", "b07:", "b07:", "b99:"], ["bear", "bee", "cat", "bea"]) == [1.0, 1.0, 0.0, 0.0]


def test_paths_by_hand(monkeypatch):
    monkeypatch.setattr(paths, "graph", lambda: {"a": "bc", "b": "c", "c": "d", "d": "a"})
    paths.shortest.cache_clear()
    responses = ["acd", "abcd", "ad", "abc", "bcd", ""]  # shortest, longer, no edge, not the goal, not the start
    assert paths.optimality(["a>d:"] * 6, responses) == [1.0, 0.75, 0.0, 0.0, 0.0, 0.0]
    paths.shortest.cache_clear()


def test_every_goal_can_be_reached():
    longest = max(paths.shortest(*pair) for pair in itertools.permutations(paths.NODES, 2))
    assert 3 <= longest <= paths.LONGEST


def test_level_by_hand():
    scores = level.nearness(["2>4:"], ["uux"], [["u", "u", "x", "s", ""]])[0]
    np.testing.assert_allclose(scores, np.array([1 - 1 / 3, 1.0, 0.0, 1.0, 0.0]) / 48)


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.demonstrations])
def test_demonstrations_leave_room_to_learn(name, tmp_path):
    task = TASKS[name]
    records = list(task.demonstrations(np.random.default_rng(0)))
    prompts, responses = ([record[field] for record in records] for field in ("prompt", "response"))
    tokens = {"tokens": [list(response) for response in responses]} if name == "level" else {}
    module, _, function = task.reward.partition(":")
    scores = getattr(sys.modules[module], function)(prompts, responses, **tokens)
    assert 0.4 < np.mean([np.sum(score) for score in scores]) < 0.9
    assert max(map(len, prompts)) <= task.max_prompt_tokens
    assert max(map(len, responses)) <= task.response_length - (name != "level")  # with room for the end
    assert task.write_data(tmp_path) == task.write_data(tmp_path)
    assert len((tmp_path / f"{name}.jsonl").read_text().splitlines()) == len(records)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("setting", learning_tasks.SETTINGS)
def test_every_setting_is_valid_for_every_task(name, setting):
    config = learning_tasks.apply(TASKS[name].config("tasks.jsonl"), learning_tasks.SETTINGS[setting])
    validate_for_ppo(config.validate())


def test_a_setting_is_read():
    name, settings = learning_tasks.parse_setting("fast: ppo.learning_rate=1e-3 ppo.estimator=grpo ppo.target_kl=None")
    assert (name, settings) == ("fast", {"ppo.learning_rate": 1e-3, "ppo.estimator": "grpo", "ppo.target_kl": None})


def test_the_table_has_medians_and_ranges():
    figures = {"before": 0.5, "kl": 1.0, "entropy_before": 2.0, "entropy": 1.0, "seconds": 9.6}
    rows = [{"task": "sums", "setting": "grpo", "seed": s, "score": 0.7 + s / 10, **figures} for s in range(3)]
    assert "| sums | grpo | 0.50 | 0.800 | 0.700 to 0.900 | 1.0 | 2.00 to 1.00 | 10 | 3 |" in learning_tasks.table(rows)


def test_the_yardstick_needs_the_language_model(tmp_path):
    finished = run(command("grpo_in_pytorch", f"--workdir={tmp_path}"))
    assert finished.code == 1
    assert finished.err == [f"error: --workdir '{tmp_path}' has no language model of sums; run learning_tasks.py first"]


@pytest.mark.parametrize("tool", ["grpo_in_pytorch", "learning_tasks"])
@pytest.mark.parametrize("seeds", ["x", "0,,1", "1.5"])
def test_a_seed_is_a_whole_number(tool, seeds, tmp_path):
    finished = run(command(tool, f"--workdir={tmp_path / 'new'}", f"--seeds={seeds}"))
    assert finished.code == 1 and len(finished.err) == 1
    assert "--seeds" in finished.err[0] and "they must be whole numbers, as 0,1,2" in finished.err[0]
    assert not (tmp_path / "new").exists()

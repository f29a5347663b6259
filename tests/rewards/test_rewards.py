"""Rewards: the default one, finding one by name, and what a bad one is told."""

import os
import sys

import numpy as np
import pytest
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from tfppo.errors import UserError
from tfppo.rewards.loading import load_reward
from tfppo.rewards.vader import vader_sentiment

GOOD = ["What a great, wonderful film!", "I love it.", "a delightful and charming comedy"]
BAD = ["What a terrible, awful film!", "I hate it.", "not good at all, a boring disaster"]
NEUTRAL = ["The film is two hours long.", ""]


def test_vader_knows_good_from_bad():
    texts = [*GOOD, *BAD, *NEUTRAL]
    scores = vader_sentiment([""] * len(texts), texts)
    assert np.sign(scores).tolist() == [1, 1, 1, -1, -1, -1, 0, 0]
    assert min(scores) >= -1 and max(scores) <= 1


def test_vader_is_the_compound_score_of_the_package():
    texts = [*GOOD, *BAD, *NEUTRAL, "VERY good!!! :)", "good, but awful"]
    analyzer = SentimentIntensityAnalyzer()
    expected = [analyzer.polarity_scores(text)["compound"] for text in texts]
    assert vader_sentiment(["x"] * len(texts), texts) == expected
    # By hand: "good" is 1.9 in the lexicon, and a sum x becomes x / sqrt(x^2 + 15).
    assert vader_sentiment([""], ["good"]) == [round(1.9 / (1.9**2 + 15) ** 0.5, 4)] == [0.4404]


def test_only_the_response_counts():
    assert vader_sentiment(["awful terrible"], ["good"]) == vader_sentiment(["great"], ["good"])


def test_load_by_module():
    assert load_reward("tfppo.rewards.vader:vader_sentiment") is vader_sentiment


def test_load_by_file(tmp_path):
    path = tmp_path / "json.py"  # a name that must hide no other module
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Weights:\n"
        "    of_length: float = 0.5\n"
        "def length(prompts, responses):\n"
        "    return [Weights().of_length * len(response) for response in responses]\n"
        "number = 3\n"
    )
    assert load_reward(f"{path}:length")(["", ""], ["ab", "abc"]) == [1.0, 1.5]
    import json

    assert json.loads("[1]") == [1]
    for attribute in ("width", "number", ""):
        with pytest.raises(UserError, match=rf"has no function '{attribute}'; it has length$"):
            load_reward(f"{path}:{attribute}")
    with pytest.raises(UserError, match="has no function 'lenght'; did you mean 'length'[?]$"):
        load_reward(f"{path}:lenght")


@pytest.mark.parametrize(
    "name", ["tfppo.rewards.nothing:f", "no_such_module:f", "nowhere/reward.py:f", ":f", ".relative:f", "plain"]
)
def test_a_reward_that_is_not_there(name):
    with pytest.raises(UserError) as error:
        load_reward(name)
    assert f"reward.functions has {name!r}" in str(error.value) and "\n" not in str(error.value)


def test_a_reward_file_with_a_mistake(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("def f(:\n")
    with pytest.raises(UserError, match=r"broken.py.*line 1"):
        load_reward(f"{path}:f")


@pytest.mark.parametrize("line", ["import sys; sys.exit(0)", "1 / 0", "raise RuntimeError('two\\nlines')"])
def test_a_reward_file_that_cannot_run(tmp_path, line):
    path = tmp_path / "ends.py"
    path.write_text(f"{line}\ndef f(prompts, responses): return [0.0]\n")
    with pytest.raises(UserError, match="ends.py' cannot be imported: (SystemExit|ZeroDiv|RuntimeError: two lines)"):
        load_reward(f"{path}:f")


def test_a_file_runs_once_until_it_changes(tmp_path):
    path = tmp_path / "counts.py"
    path.write_text("calls = []\ndef f(prompts, responses): calls.append(1); return calls\nclass Judge: pass\n")
    assert load_reward(f"{path}:f")([], []) is load_reward(f"{path}:f")([], [])
    path.write_text("def f(prompts, responses): return 'new'\n")
    os.utime(path, ns=(1, 1))
    assert load_reward(f"{path}:f")([], []) == "new"


def test_a_class_is_no_function(tmp_path):
    path = tmp_path / "judges.py"
    path.write_text("class Judge: pass\n")
    with pytest.raises(UserError, match="which is a class; name a function"):
        load_reward(f"{path}:Judge")


def test_two_files_of_one_name_are_two_modules(tmp_path):
    functions = []
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "judge.py"
        path.write_text(f"class Judge: where = '{folder}'\ndef f(prompts, responses): return Judge()\n")
        functions.append(load_reward(f"{path}:f"))
    for folder, function in zip(("first", "second"), functions, strict=True):
        module = sys.modules[function.__module__]
        assert module.Judge.where == folder and module.f is function


def test_a_module_of_the_current_folder_is_found_as_python_m_would(tmp_path, monkeypatch):
    (tmp_path / "judges").mkdir()
    (tmp_path / "judges" / "of_length.py").write_text("def f(prompts, responses): return [1.0]\n")
    (tmp_path / "json.py").write_text("def f(prompts, responses): return [2.0]\n")
    monkeypatch.chdir(tmp_path)
    # As an installed command has it: the folder of the command itself in place of the current one.
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    assert load_reward("judges.of_length:f")([], []) == [1.0]
    with pytest.raises(UserError, match="'json' has no function 'f'"):  # which is installed
        load_reward("json:f")


def test_a_reward_file_of_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text("def f(prompts, responses): return [1.0]\n")
    assert load_reward("~/mine.py:f")([], []) == [1.0]

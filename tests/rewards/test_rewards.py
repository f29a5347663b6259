"""Rewards: the default one, finding one by name, and what a bad one is told."""

import numpy as np
import pytest
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from tfppo.errors import UserError
from tfppo.rewards.loading import load_reward, score
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
        with pytest.raises(UserError, match=rf"has no function '{attribute}'"):
            load_reward(f"{path}:{attribute}")


@pytest.mark.parametrize(
    "name", ["tfppo.rewards.nothing:f", "no_such_module:f", "nowhere/reward.py:f", ":f", ".relative:f", "plain"]
)
def test_a_reward_that_is_not_there(name):
    with pytest.raises(UserError) as error:
        load_reward(name)
    assert f"reward is {name!r}" in str(error.value) and "\n" not in str(error.value)


def test_a_reward_file_with_a_mistake(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("def f(:\n")
    with pytest.raises(UserError, match=r"broken.py.*line 1"):
        load_reward(f"{path}:f")


@pytest.mark.parametrize("scores", [[1, 2.5], (1, 2.5), np.array([1, 2.5]), np.float32([1, 2.5])])
def test_score_takes_any_list_of_numbers(scores):
    result = score(lambda prompts, responses: scores, ["a", "b"], ["c", "d"])
    assert result.dtype == np.float32 and result.tolist() == [1.0, 2.5]


def test_score_hands_over_prompts_and_responses():
    seen = []
    score(lambda prompts, responses: seen.append((prompts, responses)) or [0, 0], ["a", "b"], ["c", "d"])
    assert seen == [(["a", "b"], ["c", "d"])]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0], r"shape \[1\] for 2 responses"),
        ([1.0, 2.0, 3.0], r"shape \[3\] for 2 responses"),
        ([[1.0], [2.0]], r"shape \[2, 1\] for 2 responses"),
        (3.0, r"shape \[\] for 2 responses"),
        (None, r"shape \[\] for 2 responses"),
        (["good", "bad"], r"must return a list of numbers, not \['good', 'bad'\]"),
        ([[1.0], [2.0, 3.0]], r"must return a list of numbers"),
        ({"a": 1}, r"must return a list of numbers"),
        ([1.0, float("nan")], r"the reward is nan for prompt 'second' and response 'two\\nlines'; it must be finite"),
        ([1.0, float("-inf")], r"the reward is -inf for prompt 'second'"),
        ([float("inf"), 1.0], r"the reward is inf for prompt 'first' and response 'one'"),
    ],
)
def test_score_refuses(scores, message):
    with pytest.raises(UserError, match=message) as error:
        score(lambda prompts, responses: scores, ["first", "second"], ["one", "two\nlines"])
    assert "\n" not in str(error.value)

"""What reward functions get by the names of their parameters, and what is refused before anything is loaded."""

import functools

import pytest
from reward_cases import make_batch

from tfppo.errors import UserError
from tfppo.rewards.scoring import TextReward
from tfppo.rewards.signature import Signature

COLUMNS = {"answer": [4, 9], "level": ["easy", None]}


def called(function, columns=COLUMNS):
    """What a function is called with; it returns its local variables."""
    by_position, by_name = Signature("f", function).arguments(make_batch(columns=columns))
    return function(*by_position, **by_name)


def test_columns_come_by_name_in_the_order_of_the_rows():
    def exact(prompts, responses, answer):
        return prompts, responses, answer

    assert called(exact) == (["first", "second"], ["one", "two\nlines"], [4, 9])


@pytest.mark.parametrize(
    "function",
    [
        lambda responses, answer: (responses, answer),  # by name, whatever the order
        lambda answer, prompts, responses: (responses, answer),
        lambda prompts, completions, answer: (completions, answer),  # TRL's name
        lambda completions, answer, **rest: (completions, answer),
        lambda *, responses, answer: (responses, answer),
        lambda first, second, answer: (second, answer),  # without known names, the first two are prompts and responses
        lambda prompt, response, /, answer: (response, answer),
        lambda first, second, answer, /: (second, answer),
        functools.partial(lambda scale, prompts, responses, answer: (responses, answer), 3),
    ],
)
def test_ways_to_take_responses_and_a_column(function):
    assert called(function) == (["one", "two\nlines"], [4, 9])


def test_what_has_a_default_may_be_missing():
    def optional(prompts, responses, answer=None, other="none"):
        return answer, other

    assert called(optional) == ([4, 9], "none")
    assert called(optional, {}) == (None, "none")
    assert called(lambda prompts, responses, other=None, answer=None, /: (other, answer)) == (None, [4, 9])


def test_all_columns_without_a_parameter_go_to_kwargs():
    def everything(prompts, responses, answer, **columns):
        return columns

    assert called(everything) == {"level": ["easy", None]}
    assert called(lambda prompt, response, **columns: columns, {"prompt": ["x", "y"], "answer": [1, 2]}) == {
        "answer": [1, 2]
    }
    assert called(lambda *texts, **columns: (texts, columns), {"a": [1, 2]}) == (
        (["first", "second"], ["one", "two\nlines"]),
        {"a": [1, 2]},
    )


def test_a_function_gets_lists_of_its_own():
    columns = {"answer": [4, 9]}
    Signature("f", lambda prompts, responses, answer: None).arguments(make_batch(columns=columns))[1]["answer"].clear()
    assert columns == {"answer": [4, 9]}


@pytest.mark.parametrize("function", [lambda: 0, lambda prompts: 0, lambda x: 0, lambda prompts, texts: 0])
def test_a_function_without_responses_is_refused_at_once(function):
    with pytest.raises(UserError, match=r"reward f takes \(.*write def f\(prompts, responses\)"):
        TextReward("f", function)


RECORDS = [{"prompt": "p", "answer": 1}, {"prompt": "q", "answer": 2}, {"prompt": "r", "answer": None, "level": 2}]
PLACES = ["line 4", "line 5", "line 7"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda prompts, responses, label: 0,
            "a column 'label', which d.jsonl has not; .*: answer, level, prompt;",
        ),
        (
            lambda prompts, responses, level: 0,
            r"column 'level', which 2 of 3 records of d.jsonl lack \(the first: line 4\)",
        ),
        (  # null, or an empty cell of a table
            lambda prompts, responses, answer: 0,
            r"column 'answer', which 1 of 3 records of d.jsonl lack \(the first: line 7\)",
        ),
        (
            lambda answer, responses_of_model: 0,
            "'answer' is a column of d.jsonl; write def f.prompts, responses",
        ),
    ],
)
def test_columns_that_the_data_lack(function, message):
    signature = Signature("f", function)
    assert signature.needs_check()
    with pytest.raises(UserError, match=f"reward f.*{message}"):
        signature.check(RECORDS, PLACES, "d.jsonl")


def test_a_column_that_is_empty_in_every_record_is_not_there():
    """As a TFDS feature that is no single string or number is."""
    records = [{"prompt": "p", "answers": None}, {"prompt": "q", "answers": None}]
    with pytest.raises(UserError, match="a column 'answers', which d has not; the columns are: prompt;"):
        Signature("f", lambda prompts, responses, answers: 0).check(records, PLACES[:2], "d")


@pytest.mark.parametrize(
    "function",
    [
        lambda prompts, responses, prompt: 0,
        lambda prompts, responses, tokens, answer=0, label=1: 0,
        lambda prompt, response: 0,
        lambda x, y, **columns: 0,
    ],
)
def test_columns_that_the_data_have(function):
    Signature("f", function).check(RECORDS, PLACES, "d.jsonl")


def test_the_data_are_not_read_for_a_function_without_columns():
    assert not Signature("f", lambda prompts, responses, tokens, label=1, **columns: 0).needs_check()
    assert not Signature("f", lambda prompt, response: 0).needs_check()

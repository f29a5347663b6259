"""How reward functions are called, what they may return, and how several are added up."""

import asyncio
import inspect
import os
import re
import sys
import threading
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf
from reward_cases import EOS, FIRST_BYTE, make_batch

from tfppo.config import RewardConfig
from tfppo.errors import UserError
from tfppo.models.language_model import LanguageModel
from tfppo.rewards import calling
from tfppo.rewards.calling import Patience
from tfppo.rewards.likelihood import LikelihoodReward
from tfppo.rewards.scoring import TextReward, name_apart, total_scores


def constant(scores, name="fixed"):
    return TextReward(name, lambda prompts, responses: scores)


def test_lengths_and_tokens_of_a_batch():
    batch = make_batch()
    assert batch.lengths.tolist() == [4, 9]
    assert batch.tokens == [["o", "n", "e", ""], ["t", "w", "o", "\n", "l", "i", "n", "e", "s"]]


@pytest.mark.parametrize(
    "scores",
    [
        [1, 2.5],
        (1, 2.5),
        np.array([1, 2.5]),
        np.float32([1, 2.5]),
        iter([1, 2.5]),
        [Fraction(1), Decimal("2.5")],
        [tf.constant(1.0), tf.constant(2.5, tf.bfloat16)],
        tf.constant([1.0, 2.5]),
    ],
)
def test_any_list_of_numbers_will_do(scores):
    result = constant(scores)(make_batch())
    assert result.dtype == np.float32 and result.tolist() == [1.0, 2.5]


def test_truth_values_are_1_and_0():
    assert constant([True, False])(make_batch()).tolist() == [1.0, 0.0]
    assert constant(np.array([False, True]))(make_batch()).tolist() == [0.0, 1.0]


def test_the_largest_number_of_float32_is_one():
    largest = float(np.finfo(np.float32).max)
    assert constant([largest, -largest])(make_batch()).tolist() == [largest, -largest]


def test_a_function_gets_prompts_and_responses():
    seen = []
    TextReward("f", lambda prompts, responses: seen.append((prompts, responses)) or [0, 0])(make_batch())
    assert seen == [(["first", "second"], ["one", "two\nlines"])]


def test_a_function_with_a_parameter_tokens_gets_them():
    def count(prompts, responses, tokens):
        return [sum(token in "aeiou" and token != "" for token in row) for row in tokens]

    assert TextReward("count", count)(make_batch()).tolist() == [2.0, 3.0]


def test_dense_scores_are_padded():
    def vowels(prompts, responses, tokens):
        return [[float(token in ("o", "e")) for token in row] for row in tokens]

    scores = TextReward("vowels", vowels)(make_batch())
    assert scores.dtype == np.float32
    assert scores.tolist() == [[1, 0, 1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 1, 0, 0]]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0], r"returned 1 scores for 2 responses"),
        ([1.0, 2.0, 3.0], r"returned 3 scores for 2 responses"),
        ([[1.0], [2.0]], r"returned scores of shape \[1\] for the response 'one' of 4 tokens"),
        ([[1.0] * 4, [2.0] * 8], r"returned scores of shape \[8\] for the response 'two\\nlines' of 9 tokens"),
        ([[1.0] * 4, [2.0] * 10], r"returned scores of shape \[10\] for the response"),
        ([[1.0] * 4, 2.0], r"returned scores of shape \[\] for the response .* for every response"),
        ([[[1.0] * 4], [[2.0] * 9]], r"returned scores of shape \[1, 4\] for the response"),
        ([[1.0] * 4, [2.0] * 8 + [float("nan")]], r"is nan at token 9 for prompt 'second'"),
        (3.0, r"must return a list of numbers, not 3\.0"),
        (None, r"must return a list of numbers, not None"),
        (["good", "bad"], r"must return a list of numbers, not \['good', 'bad'\]"),
        ({"a": 1}, r"must return a list of numbers"),
        ({0: 1.0, 1: 2.0}, r"must return a list of numbers, not {0: 1.0, 1: 2.0}"),
        ({1.0, 2.0}, r"must return a list of numbers, not {1.0, 2.0}"),
        ("12", r"must return a list of numbers, not '12'"),
        (["1", "2"], r"must return a list of numbers.*for prompt 'first' and response 'one' it is '1'"),
        (
            [1.0, None],
            r"must return a list of numbers.*for prompt 'second' and response .* it is None; make it a number",
        ),
        ([1.0, {"score": 2.0}], r"must return a list of numbers.*for prompt 'second'"),
        ([1.0, 2j], r"must return a list of numbers.*for prompt 'second'"),
        ([[1.0] * 4, [None] * 9], r"must return a list of numbers.*for prompt 'second'"),
        ([1e39, 1.0], r"is 1e\+39 for prompt 'first' .*largest number of float32: scale it"),
        ([1.0, 10**400], r"must return a list of numbers.*for prompt 'second'.*too large"),
        ([[1.0] * 4, [0.0] * 8 + [-1e39]], r"is -1e\+39 at token 9 for prompt 'second' .*float32"),
        ([1.0, float("nan")], r"is nan for prompt 'second' and response 'two\\nlines'; it must be finite"),
        ([1.0, float("-inf")], r"is -inf for prompt 'second'"),
        ([float("inf"), 1.0], r"is inf for prompt 'first' and response 'one'"),
    ],
)
def test_what_is_refused(scores, message):
    with pytest.raises(UserError, match=f"reward fixed {message}") as error:
        constant(scores)(make_batch())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("scores", [None, [1.0]])
def test_what_is_refused_comes_with_the_place_of_the_function(scores):
    def mine(prompts, responses):
        return scores

    file, line = os.path.relpath(__file__), mine.__code__.co_firstlineno
    with pytest.raises(UserError, match=f"^reward mine .*; the function is at {file}:{line}$"):
        TextReward("mine", mine)(make_batch())


def test_a_generator_and_an_async_function_will_do():
    def lengths(prompts, responses):
        for response in responses:
            yield len(response)

    async def later(prompts, responses):
        await asyncio.sleep(0)
        return [len(response) for response in responses]

    for function in (lengths, later):
        assert TextReward("f", function)(make_batch()).tolist() == [3.0, 9.0]


def number_after_space(response):
    return float(response.split()[1])


class Judge:
    def __call__(self, prompts, responses):
        return [number_after_space(response) for response in responses]


LINE = inspect.getsourcelines(number_after_space)[1] + 1


@pytest.mark.parametrize("function", [Judge(), lambda prompts, responses: map(number_after_space, responses)])
@pytest.mark.parametrize("timeout", [None, 20.0])
def test_what_a_function_raises_is_told_with_its_place_and_row(function, timeout):
    batch = make_batch(("p", "q", "r"), ("a 1", "b\n2", "x"))
    with pytest.raises(UserError) as error:
        TextReward("judge", function, Patience(timeout=timeout))(batch)
    assert re.fullmatch(
        rf"reward judge raised IndexError: list index out of range at \S*test_scoring.py:{LINE}, "
        r"at prompt 'r' and response 'x'; mend the function, or let it be called again with reward.retries",
        str(error.value),
    )


def test_where_no_row_shows_the_beginning_of_the_batch_is_told():
    def breaks(prompts, responses):
        raise OSError("two\n lines")

    with pytest.raises(UserError, match="raised OSError: two lines at .*, called with 2 responses, the first"):
        TextReward("f", breaks)(make_batch())


def test_of_equal_responses_which_may_be_one_object_none_is_named():
    same = "x"
    with pytest.raises(UserError, match="raised IndexError.*, called with 3 responses, the first being prompt 'p' and"):
        TextReward("judge", Judge())(make_batch(("p", "q", "r"), ("a 1", same, same)))


def test_a_function_that_changes_what_it_gets_changes_nothing_else():
    def spoils(prompts, responses, tokens):
        scores = [len(response) for response in responses]
        prompts[:], tokens[0][:] = [], ["?"]
        tokens.clear()
        responses.clear()
        return scores

    batch, untouched = make_batch(), make_batch()
    assert TextReward("f", spoils)(batch).tolist() == [3.0, 9.0]
    assert (batch.texts, batch.responses) == (untouched.texts, untouched.responses)
    assert batch.tokens == untouched.tokens


def test_a_function_that_is_called_again_gets_the_same_again(monkeypatch):
    monkeypatch.setattr(calling, "FIRST_WAIT", 0.001)
    calls = []

    def spoils(prompts, responses):
        calls.append(list(responses))
        responses.clear()
        return [len(response) / (len(calls) - 1) for response in calls[-1]]

    assert TextReward("f", spoils, Patience(retries=1))(make_batch()).tolist() == [3.0, 9.0]


def test_an_error_that_cannot_be_told_is_told_by_its_type():
    class Mute(Exception):
        def __str__(self):
            raise ValueError

    def breaks(prompts, responses):
        raise Mute

    with pytest.raises(UserError, match="reward f raised Mute at"):
        TextReward("f", breaks)(make_batch())


@pytest.mark.parametrize("end", [sys.exit, lambda: sys.exit(3), lambda: exec("assert 0")])
def test_a_function_that_ends_the_program_does_not(end):
    with pytest.raises(UserError, match="raised (SystemExit|AssertionError)"):
        TextReward("f", lambda prompts, responses: end())(make_batch())


def test_a_function_that_hangs_is_left_behind():
    release = threading.Event()
    with pytest.raises(UserError, match=r"f has not returned after reward.timeout 0.05 s, called with 2 .*left behind"):
        TextReward("f", lambda prompts, responses: release.wait(), Patience(timeout=0.05))(make_batch())
    release.set()


def test_a_function_is_called_again(monkeypatch, capfd):
    monkeypatch.setattr(calling, "FIRST_WAIT", 0.001)
    calls = []

    def second_time(prompts, responses):
        calls.append(responses)
        return [1 / (len(calls) - 1)] * 2

    assert TextReward("f", second_time, Patience(retries=1))(make_batch()).tolist() == [1.0, 1.0]
    assert re.search(r"reward f: ZeroDivisionError: .* at \S*:\d+; calling it again in 0.001 s", capfd.readouterr().err)


def test_several_functions_are_weighed_and_their_means_kept():
    rewards = [constant([1.0, 3.0], "one"), constant([10.0, -20.0], "other")]
    scores, means = total_scores(rewards, (2.0, 0.5), make_batch())
    assert scores.dtype == np.float32 and scores.tolist() == [7.0, -4.0]
    assert means == {"reward/one": 2.0, "reward/other": -5.0}


def test_functions_of_one_name_are_logged_each_by_itself():
    rewards = [constant([1.0, 3.0], "one"), constant([10.0, -20.0], "one"), constant([0.0, 1.0], "other")]
    name_apart(rewards)
    _, means = total_scores(rewards, (1.0, 1.0, 1.0), make_batch())
    assert means == {"reward/one": 2.0, "reward/one_2": -5.0, "reward/other": 0.5}


def test_scores_a_response_stand_at_the_last_token_beside_dense_ones():
    dense = constant([[1.0, 2.0, 3.0, 4.0], [1.0] * 9], "dense")
    scores, means = total_scores([constant([10.0, -20.0], "whole"), dense], (0.5, 2.0), make_batch())
    assert scores.tolist() == [[2, 4, 6, 13, 0, 0, 0, 0, 0, 0], [2, 2, 2, 2, 2, 2, 2, 2, -8, 0]]
    assert means == {"reward/whole": -5.0, "reward/dense": 9.5}  # (10 + 9) / 2, a response's parts summed


@pytest.mark.parametrize("jit_compile", [False, True])
def test_likelihood_is_the_summed_log_softmax(jit_compile):
    rng = np.random.default_rng(0)
    scorer = LanguageModel(258, 1, 2, 8, 16, 20)
    scorer.set_weights([rng.normal(0.0, 0.4, weight.shape) for weight in scorer.weights])
    batch = make_batch()
    expected = []
    for prompt, response, end in zip(batch.texts, batch.responses, (True, False), strict=True):
        prompt_ids = [EOS, *(FIRST_BYTE + byte for byte in prompt.encode())]
        ids = [FIRST_BYTE + byte for byte in response.encode()] + [EOS] * end
        logits = np.asarray(scorer(np.array([prompt_ids + ids])), np.float64)[0]
        states = logits[len(prompt_ids) - 1 : -1]
        logprobs = states - np.log(np.exp(states).sum(-1, keepdims=True))
        expected.append(sum(logprobs[t, token] for t, token in enumerate(ids)))
    assert abs(expected[0] - expected[1]) > 1
    scores = LikelihoodReward(scorer, jit_compile)(batch)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert total_scores([LikelihoodReward(scorer, False)], RewardConfig().weights, batch)[1].keys() == {
        "reward/likelihood"
    }

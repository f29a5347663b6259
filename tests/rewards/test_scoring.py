"""How reward functions are called, what they may return, and how several are added up."""

import numpy as np
import pytest

from tfppo.config import RewardConfig
from tfppo.data.prompts import pad_left
from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError
from tfppo.models.language_model import LanguageModel
from tfppo.rewards.likelihood import LikelihoodReward
from tfppo.rewards.scoring import Batch, TextReward, name_apart, total_scores

EOS, FIRST_BYTE = 1, 2


def make_batch(prompts=("first", "second"), responses=("one", "two\nlines"), ended=(True, False), room=10):
    """A batch of texts with a token a byte; `ended` responses have a stop token."""
    ids, mask = np.zeros([2, len(responses), room], np.int32)
    for row, (response, end) in enumerate(zip(responses, ended, strict=True)):
        tokens = [FIRST_BYTE + byte for byte in response.encode()] + [EOS] * end
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    rows = [[EOS, *(FIRST_BYTE + byte for byte in prompt.encode())] for prompt in prompts]
    return Batch(list(prompts), list(responses), pad_left(rows, 0, 8), ids, mask.astype(np.float32), Tokenizer([]))


def constant(scores, name="fixed"):
    return TextReward(name, lambda prompts, responses: scores)


def test_lengths_and_tokens_of_a_batch():
    batch = make_batch()
    assert batch.lengths.tolist() == [4, 9]
    assert batch.tokens == [["o", "n", "e", ""], ["t", "w", "o", "\n", "l", "i", "n", "e", "s"]]


@pytest.mark.parametrize("scores", [[1, 2.5], (1, 2.5), np.array([1, 2.5]), np.float32([1, 2.5])])
def test_any_list_of_numbers_will_do(scores):
    result = constant(scores)(make_batch())
    assert result.dtype == np.float32 and result.tolist() == [1.0, 2.5]


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
        ([[1.0] * 4, [2.0] * 8 + [float("nan")]], r"is \[.*nan\] for prompt 'second'"),
        (3.0, r"must return a list of numbers, not 3\.0"),
        (None, r"must return a list of numbers, not None"),
        (["good", "bad"], r"must return a list of numbers, not \['good', 'bad'\]"),
        ({"a": 1}, r"must return a list of numbers"),
        ([1.0, float("nan")], r"is nan for prompt 'second' and response 'two\\nlines'; it must be finite"),
        ([1.0, float("-inf")], r"is -inf for prompt 'second'"),
        ([float("inf"), 1.0], r"is inf for prompt 'first' and response 'one'"),
    ],
)
def test_what_is_refused(scores, message):
    with pytest.raises(UserError, match=f"reward fixed {message}") as error:
        constant(scores)(make_batch())
    assert "\n" not in str(error.value)


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

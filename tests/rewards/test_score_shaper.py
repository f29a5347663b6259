"""From raw scores to what PPO sees, by hand and against the moments of all scores at once."""

import numpy as np
import pytest

from tfppo.config import RewardConfig
from tfppo.rewards.shaping import ScoreShaper, merge_moments, penalise_missing_stop

STOPPED, LENGTHS = np.array([True, False, False]), np.array([2, 3, 1])
DENSE = np.array([[1.0, 2.0, 0.0], [3.0, 4.0, 5.0], [6.0, 0.0, 0.0]], np.float32)


@pytest.mark.parametrize(
    ("scores", "mode", "expected"),
    [
        ([5.0, 6.0, 7.0], "replace", [5.0, -1.0, -1.0]),
        ([5.0, 6.0, 7.0], "subtract", [5.0, 7.0, 8.0]),
        (DENSE, "replace", [[1, 2, 0], [0, 0, -1], [-1, 0, 0]]),
        (DENSE, "subtract", [[1, 2, 0], [3, 4, 6], [7, 0, 0]]),
    ],
)
def test_missing_stop_by_hand(scores, mode, expected):
    scores = np.array(scores, np.float32)
    before = scores.copy()
    penalised = penalise_missing_stop(scores, STOPPED, LENGTHS, -1.0, mode)
    np.testing.assert_array_equal(penalised, np.array(expected, np.float32))
    np.testing.assert_array_equal(scores, before)  # what came in is as it was


def test_a_positive_penalty_lowers_the_score():
    penalised = penalise_missing_stop(np.array([5.0, 6.0, 7.0]), STOPPED, LENGTHS, 2.0, "subtract")
    assert penalised.tolist() == [5.0, 4.0, 5.0]


def test_running_moments_are_those_of_all_scores():
    rng = np.random.default_rng(0)
    parts = [rng.normal(100.0 * number, 1.0 + number, size) for number, size in enumerate((1, 7, 3, 20))]
    moments = (0.0, 0.0, 0.0)
    for number, part in enumerate(parts, start=1):
        moments = merge_moments(*moments, part)
        so_far = np.concatenate(parts[:number])
        np.testing.assert_allclose(moments, [len(so_far), so_far.mean(), so_far.var()], rtol=1e-12)


def shape(config, *batches, stopped=STOPPED):
    shaper = ScoreShaper(RewardConfig(**config))
    return [shaper(np.array(scores, np.float32), stopped, LENGTHS) for scores in batches], shaper


def test_as_it_is_by_default():
    (scores,), shaper = shape({}, [5.0, -600.0, 7.0])
    assert scores.dtype == np.float32 and scores.tolist() == [5.0, -600.0, 7.0]
    assert set(shaper.state.values()) == {0.0}


def test_normalised_by_all_scores_so_far():
    first, second = [1.0, 2.0, 6.0], [10.0, -4.0, 3.0]
    shaped, shaper = shape({"normalize": True}, first, second)
    np.testing.assert_allclose(shaped[0], (np.array(first) - 3.0) / np.std(first), rtol=1e-6)
    together = np.array(first + second)
    np.testing.assert_allclose(shaped[1], (np.array(second) - together.mean()) / together.std(), rtol=1e-6)
    moments = {"score_count": 6.0, "score_mean": together.mean(), "score_variance": together.var()}
    assert shaper.state == pytest.approx(moments)
    # Its state is all that it remembers.
    other = ScoreShaper(RewardConfig(normalize=True))
    other.state = shaper.state
    third = np.array([0.5, 0.1, 9.0], np.float32)
    np.testing.assert_array_equal(other(third, STOPPED, LENGTHS), shaper(third, STOPPED, LENGTHS))


def test_dense_scores_are_divided_by_the_deviation_of_their_sums():
    (scores,), shaper = shape({"normalize": True}, DENSE)
    np.testing.assert_allclose(scores, DENSE / np.std([3.0, 12.0, 6.0]), rtol=1e-6)
    assert shaper.state == pytest.approx({"score_count": 3.0, "score_mean": 7.0, "score_variance": 14.0})


def test_equal_scores_normalise_to_zero():
    (scores,), _ = shape({"normalize": True}, [4.0, 4.0, 4.0])
    assert scores.tolist() == [0.0, 0.0, 0.0]


def test_the_order_is_normalise_scale_clip_penalise():
    """Scores 0, 3, 6: mean 3, variance 6; -1.22, 0, 1.22 times 2 is -2.45, 0, 2.45; within 2; then the penalty."""
    config = dict(normalize=True, scale=2.0, clip=2.0, missing_stop_penalty=5.0)
    (scores,), _ = shape(config, [0.0, 3.0, 6.0])
    np.testing.assert_allclose(scores, [-2.0, -5.0, -3.0], atol=1e-6)
    (scores,), _ = shape({**config, "missing_stop_mode": "replace"}, [0.0, 3.0, 6.0])
    np.testing.assert_allclose(scores, [-2.0, 5.0, 5.0], atol=1e-6)
    (scores,), _ = shape({**config, "clip": 2.4}, [0.0, 3.0, 6.0], stopped=np.array([True] * 3))
    np.testing.assert_allclose(scores, [-2.4, 0.0, 2.4], atol=1e-6)
    (scores,), _ = shape({"scale": 0.5}, [1.0, 2.0, 3.0])
    assert scores.tolist() == [0.5, 1.0, 1.5]

"""Where scores go among the tokens, by hand."""

import numpy as np
import pytest
import tensorflow as tf

from tfppo.ops.shaping import mask_after_last, place_scores

MASK = [[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]]
PLACES = {
    "last_token": [1, 0, 2, 3],
    "after_last": [2, 1, 3, 3],  # a row that fills R has no room
    "last_position": [3, 3, 3, 3],
}


@pytest.mark.parametrize("placement", PLACES)
def test_a_score_a_response(placement):
    scores = [0.5, -2.0, 3.0, 7.0]
    expected = np.zeros([4, 4])
    for row, place in enumerate(PLACES[placement]):
        expected[row, place] = scores[row]
    placed = place_scores(tf.constant(scores), tf.constant(MASK), placement)
    assert placed.dtype == tf.float32
    np.testing.assert_array_equal(placed, expected)


@pytest.mark.parametrize("placement", PLACES)
def test_a_score_a_token_stays_where_it_is(placement):
    scores = np.arange(1.0, 17.0, dtype=np.float32).reshape(4, 4)
    scores[1, 2] = np.nan
    expected = [[1, 2, 0, 0], [5, 0, 0, 0], [9, 10, 11, 0], [13, 14, 15, 16]]
    np.testing.assert_array_equal(place_scores(tf.constant(scores), tf.constant(MASK), placement), expected)


def test_an_unknown_placement_is_refused():
    with pytest.raises(ValueError, match="'first'; choose one of .*last_token"):
        place_scores(tf.zeros([4]), tf.constant(MASK), "first")


def test_the_mask_with_the_state_after_the_last_token():
    expected = [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    np.testing.assert_array_equal(mask_after_last(tf.constant(MASK)), expected)

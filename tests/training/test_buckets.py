"""Tensors in buckets: where each one is, and that they come back."""

import numpy as np
import pytest
import tensorflow as tf

from tfppo.training.buckets import flatten, layout_of, sum_in_buckets, unflatten

SHAPES = [(2, 3), (), (4,), (5, 2), (1,), (0, 3)]


def tensors(scale=1.0):
    rng = np.random.default_rng(0)
    return [tf.constant(scale * rng.normal(size=shape), tf.float32) for shape in SHAPES]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (100, [[0, 1, 2, 3, 4, 5]]),
        (11, [[0, 1, 2], [3, 4, 5]]),  # 6 + 1 + 4 elements, then 10 + 1 + 0
        (10, [[0, 1], [2], [3], [4, 5]]),
        (1, [[0], [1], [2], [3], [4, 5]]),  # each larger one has its own
    ],
)
def test_neighbours_share_a_bucket_up_to_the_limit(limit, expected):
    layout = layout_of(tensors(), limit)
    assert [list(bucket) for bucket in layout.buckets] == expected
    assert [len(bucket) for bucket in flatten(tensors(), layout)] == [
        sum(int(np.prod(SHAPES[number])) for number in bucket) for bucket in expected
    ]


@pytest.mark.parametrize("limit", [1, 10, 11, 100])
def test_what_went_in_comes_back(limit):
    layout = layout_of(tensors(), limit)
    for found, expected in zip(unflatten(flatten(tensors(), layout), layout), tensors(), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.shape == expected.shape


def test_bfloat16_and_tokens_come_back_exactly_in_float32():
    values = [tf.constant([0.1, -3.0], tf.bfloat16), tf.constant([[2**24 - 1, 0]]), tf.constant([True, False])]
    layout = layout_of(values)
    for found, expected in zip(unflatten(flatten(values, layout), layout), values, strict=True):
        np.testing.assert_array_equal(tf.cast(found, expected.dtype), expected)


@pytest.mark.parametrize("limit", [1, 100])
def test_sums_are_those_of_the_tensors(limit):
    other = tensors(-2.0)

    def total(buckets):
        return [a + b for a, b in zip(buckets, flatten(other, layout_of(other, limit)), strict=True)]

    for found, mine in zip(sum_in_buckets(total, tensors(), limit), tensors(), strict=True):
        np.testing.assert_array_equal(found, mine.numpy() - 2.0 * mine.numpy())


def test_a_shape_that_is_not_known_is_refused():
    @tf.function(input_signature=[tf.TensorSpec([None, 2])], autograph=False)
    def traced(tensor):
        with pytest.raises(ValueError, match="known shapes"):
            layout_of([tensor])
        return tensor

    traced(tf.zeros([1, 2]))

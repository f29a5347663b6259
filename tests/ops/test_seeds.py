"""Seeds and index streams: everything random follows from a seed, a purpose and a position."""

import numpy as np
import pytest

from tfppo.ops.seeds import permutation, seed_for, stream_indices


def test_seed_is_a_function_of_all_three_parts():
    seed = seed_for(7, "sample", 3)
    assert seed.shape == (2,) and seed.dtype == np.int32
    np.testing.assert_array_equal(seed, seed_for(7, "sample", 3))
    others = [seed_for(8, "sample", 3), seed_for(7, "shuffle", 3), seed_for(7, "sample", 4)]
    assert len({tuple(pair.tolist()) for pair in [seed, *others]}) == 4


def test_no_two_steps_share_a_seed():
    pairs = {tuple(seed_for(0, purpose, step).tolist()) for purpose in ("sample", "shuffle") for step in range(2000)}
    assert len(pairs) == 4000


def test_permutation_holds_each_index_once_in_an_order_of_its_own():
    orders = [permutation(0, "prompts", epoch, 50) for epoch in range(3)] + [permutation(0, "texts", 0, 50)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(50))
    assert len({tuple(order) for order in orders}) == 4
    assert not np.array_equal(orders[0], np.arange(50))


def test_every_epoch_of_a_stream_visits_each_index_once():
    stream = stream_indices(3, "prompts", 0, 35, 7).reshape(5, 7)
    for epoch in stream:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(7))
    assert len({tuple(epoch) for epoch in stream}) == 5


def test_the_position_alone_determines_a_batch():
    whole = stream_indices(3, "prompts", 0, 60, 7)
    # Batches that cross one border of an epoch, or two, or none.
    for start, count in [(0, 4), (4, 4), (5, 16), (21, 7), (59, 1)]:
        np.testing.assert_array_equal(stream_indices(3, "prompts", start, count, 7), whole[start : start + count])


def test_purposes_and_seeds_have_streams_of_their_own():
    stream = stream_indices(3, "prompts", 0, 30, 10)
    assert not np.array_equal(stream, stream_indices(3, "texts", 0, 30, 10))
    assert not np.array_equal(stream, stream_indices(4, "prompts", 0, 30, 10))


def test_nothing_depends_on_the_global_random_state():
    np.random.seed(1)
    first = stream_indices(3, "prompts", 0, 30, 10)
    np.random.seed(2)
    permutation.cache_clear()
    np.testing.assert_array_equal(first, stream_indices(3, "prompts", 0, 30, 10))


def test_an_order_is_drawn_once_and_nobody_can_change_it():
    order = permutation(3, "prompts", 0, 10)
    assert permutation(3, "prompts", 0, 10) is order
    with pytest.raises(ValueError, match="read-only"):
        order[0] = 5

"""Ways to compute a minibatch (in parts, cut to length, in bfloat16, by recomputation) lead to the same weights."""

import numpy as np
import pytest
import tensorflow as tf
from ppo_cases import BATCH_SIZE, assert_same_weights, largest_change, make_learner, make_rollout, run

from tfppo.ppo.minibatches import cut_responses, last_position, places_of
from tfppo.ppo.types import Targets


@pytest.mark.parametrize(
    "changes",
    [
        {"lengths_vary": True, "accumulation_steps": 2},
        {"lengths_vary": True, "jit_compile": True},
    ],
    ids=["accumulation", "xla"],
)
def test_parameters_do_not_depend_on_how_a_minibatch_is_computed(changes):
    whole = make_learner(max_grad_norm=0.05)
    parts = make_learner(max_grad_norm=0.05, **changes)
    expected, statistics = run(whole, make_rollout())
    weights, same = run(parts, make_rollout())
    assert statistics["policy/gradient_norm"] > 0.1  # the clip is active, so it must come after the sum
    assert largest_change(expected, whole.start) > 1e-2
    assert_same_weights(weights, expected, atol=1e-5)
    for name, value in statistics.items():
        np.testing.assert_allclose(same[name], value, rtol=1e-4, atol=2e-6, err_msg=name)


def test_a_ratio_that_is_off_is_seen_in_whichever_part_it_is():
    """One token of one row was likelier when it was sampled, by half a nat: e^0.5 - 1 = 0.6487."""
    learner = make_learner(accumulation_steps=4, num_minibatches=1, ppo_epochs=1)
    rollout = make_rollout()
    for row in range(BATCH_SIZE):
        logprobs = rollout.logprobs.numpy()
        logprobs[row, 0] -= 0.5
        _, statistics = run(learner, rollout._replace(logprobs=tf.constant(logprobs)))
        np.testing.assert_allclose(statistics["policy/first_ratio_error"], 0.648721, rtol=1e-3, err_msg=str(row))


def test_responses_are_cut_to_the_longest_of_their_part_and_no_shorter():
    """Three rows of 2, 5 and 0 tokens; the critic learns one position more of the first (after_last)."""
    mask = tf.constant([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0], [0] * 6], tf.float32)
    critic_mask = tf.constant([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0], [0] * 6], tf.float32)
    assert (last_position(mask, critic_mask) + 1).numpy().tolist() == [3, 5, 0]
    targets = Targets(*[tf.ones([3, 4])] * 2, *[mask] * 8)
    for length, buckets, expected in ((3, 6, 3), (3, 3, 4), (5, 2, 6), (0, 6, 1), (5, 8, 5)):
        cut, (weights,) = cut_responses((targets, (mask,)), tf.constant(length), buckets)
        assert {tensor.shape[1] for tensor in cut[2:]} == {weights.shape[1]} == {expected}
        assert cut.prompt_ids.shape == cut.prompt_mask.shape == [3, 4]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 8, 9])
def test_places_are_those_of_a_mask_and_pads_that_fill_a_bucket(count):
    """Of 9 places, with counts that are 3 apart."""
    mask, other = np.zeros([3, 3], np.float32), np.zeros([3, 3], np.float32)
    chosen = np.random.default_rng(count).permutation(9)[:count]
    mask.ravel()[chosen[::2]], other.ravel()[chosen[1::2]] = 1, 1
    places = places_of(tf.constant(mask), tf.constant(other), buckets=4).numpy()
    assert len(places) == {0: 3, 1: 3, 3: 3, 4: 6, 8: 9, 9: 9}[count]
    assert places[:count].tolist() == sorted(chosen.tolist())
    assert not (mask + other).ravel()[places[count:]].any()


def test_update_in_bfloat16_is_near_the_one_in_float32_and_leaves_weights_in_float32():
    exact, rough = make_learner(), make_learner(critic="shared", dtype="mixed_bfloat16")
    expected, statistics = run(exact, make_rollout())
    weights, rounded = run(rough, make_rollout())
    assert all(weight.dtype == np.float32 for weight in weights)
    assert rough.policy.dtype_policy.name == "float32"  # sampling stays in float32
    change = largest_change(expected, exact.start)
    assert 0 < largest_change(weights, expected) < change
    assert 1e-4 < rounded["policy/first_ratio_error"] < 0.1 and statistics["policy/first_ratio_error"] < 1e-4
    np.testing.assert_allclose(rounded["loss/value"], statistics["loss/value"], rtol=0.05)
    np.testing.assert_allclose(rounded["policy/entropy"], statistics["policy/entropy"], rtol=0.02)


@pytest.mark.parametrize(("critic", "dtype"), [("separate", None), ("shared", "mixed_bfloat16")])
def test_checkpointed_gradients_are_the_same(critic, dtype):
    rollout, settings = make_rollout(), dict(critic=critic, dtype=dtype)
    learner = make_learner(**settings)
    expected, statistics = run(learner, rollout)
    weights, recomputed = run(make_learner(**settings, gradient_checkpointing=True), rollout)
    tolerance = dict(rtol=1e-5) if dtype is None else dict(atol=2e-3)
    np.testing.assert_allclose(recomputed["loss/total"], statistics["loss/total"], **tolerance)
    if dtype is None:
        for one, other in zip(weights, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    else:  # XLA rounds other intermediate results to bfloat16, and Adam's steps are as large for small gradients
        steps = [
            np.concatenate([x.ravel() - y.ravel() for x, y in zip(w, learner.start, strict=True)])
            for w in (weights, expected)
        ]
        assert np.linalg.norm(steps[0] - steps[1]) < 0.4 * np.linalg.norm(steps[1])

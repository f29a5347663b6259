"""Losses and their gradients with respect to the logits: the rows L1 to L11, against PyTorch's autograd."""

import numpy as np
import pytest
import tensorflow as tf
from reference_numbers import assert_close, float32, load, mask_of

from tfppo.config import PpoConfig, RewardConfig
from tfppo.config.presets import openai_2019, trl
from tfppo.ops.kl import kl_estimate
from tfppo.ops.logprobs import entropy, token_logprobs
from tfppo.ops.losses import (
    clipped_surrogate_loss,
    clipped_value_loss,
    importance_ratio,
    is_clipped,
    is_value_clipped,
    token_weights,
)
from tfppo.ops.masking import masked_sum
from tfppo.ppo.targets import prepare_targets
from tfppo.ppo.types import Rollout


def value_and_gradient(function, numbers):
    """A function of float32 numbers, and the gradient of its sum."""
    numbers = tf.constant(float32(numbers))
    with tf.GradientTape() as tape:
        tape.watch(numbers)
        result = function(numbers)
    return result.numpy(), tape.gradient(result, numbers).numpy()


def surrogate_of(ratio, advantage, **arguments):
    return value_and_gradient(
        lambda r: clipped_surrogate_loss(r, tf.constant([advantage]), **dict(clip_range=0.2) | arguments), [ratio]
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.5, 1.0, -1.2, 0.0),
        (1.5, -1.0, 1.5, 1.0),
        (0.5, 1.0, -0.5, -1.0),
        (0.5, -1.0, 0.8, 0.0),
        (1.1, 2.0, -2.2, -2.0),
    ],
)
def test_L1_clipped_surrogate(ratio, advantage, loss, gradient):
    result, slope = surrogate_of(ratio, advantage)
    np.testing.assert_allclose(result, [loss], rtol=1e-6)
    np.testing.assert_array_equal(slope, float32([gradient]))


@pytest.mark.parametrize("number", range(4))
def test_L1_L4_surrogate_and_its_gradient(number):
    """Plain; with a temperature; with another upper clip; with dual clip."""
    fixture = load("losses")
    case, advantages = fixture["surrogates"][number], float32(fixture["advantages"])
    low, high, dual = case["clip_range"], case["clip_range_high"], case["dual_clip"]

    def losses(logits):
        logprobs = token_logprobs(logits, tf.constant(fixture["actions"]), case["temperature"])
        ratio = importance_ratio(logprobs, float32(case["old_logprobs"]))
        return clipped_surrogate_loss(ratio, advantages, clip_range=low, clip_range_high=high, dual_clip=dual)

    result, gradients = value_and_gradient(losses, fixture["logits"])
    assert_close(result, case["losses"])
    assert_close(gradients, case["gradients"])
    # Where the reference has no gradient, there is none; is_clipped says so (dual clip cuts some more).
    flat = ~np.any(case["gradients"], axis=1)
    np.testing.assert_array_equal(~np.any(gradients, axis=1), flat)
    logprobs = token_logprobs(float32(fixture["logits"]), tf.constant(fixture["actions"]), case["temperature"])
    clipped = is_clipped(
        tf.exp(logprobs - float32(case["old_logprobs"])), advantages, clip_range=low, clip_range_high=high
    ).numpy()
    assert 0 < clipped.sum() < len(clipped) and np.all(flat >= clipped)
    if dual is None:
        np.testing.assert_array_equal(clipped, flat)


def test_L2_value_clipping():
    loss = clipped_value_loss(tf.constant(0.5), 0.0, 1.0, value_clip_range=0.2)
    np.testing.assert_allclose(loss, 0.32, rtol=1e-6)


@pytest.mark.parametrize("number", range(3))
def test_L2_value_loss_and_its_gradient(number):
    fixture = load("losses")["values"]
    case = fixture["cases"][number]
    old_values, returns = float32(fixture["old_values"]), float32(fixture["returns"])
    result, gradients = value_and_gradient(
        lambda values: clipped_value_loss(values, old_values, returns, value_clip_range=case["clip"]), fixture["values"]
    )
    assert_close(result, case["losses"])
    assert_close(gradients, case["gradients"])
    if case["clip"] is not None:
        clipped = is_value_clipped(float32(fixture["values"]), old_values, returns, value_clip_range=case["clip"])
        np.testing.assert_array_equal(clipped, np.array(case["gradients"]) == 0)


def test_L2_a_value_inside_the_range_is_not_clipped():
    """old + (value - old) is another float32 number than the value, by rounding alone."""
    rng = np.random.default_rng(0)
    old_values, shifts, returns = rng.normal(0, 0.1, 1000), rng.uniform(-0.19, 0.19, 1000), rng.normal(0, 1, 1000)
    values = float32(old_values + shifts)
    clipped = is_value_clipped(values, float32(old_values), float32(returns), value_clip_range=0.2)
    assert not np.any(clipped)


def test_L3_total_has_a_tenth_of_the_value_loss_and_no_entropy():
    for config in (openai_2019().ppo, trl().ppo):
        assert (config.value_coef, config.entropy_coef, config.kl_loss_coef) == (0.1, 0.0, 0.0)
        assert (config.clip_range, config.value_clip_range, config.ppo_epochs) == (0.2, 0.2, 4)


def test_L4_dual_clip():
    np.testing.assert_allclose(surrogate_of(5.0, -1.0, dual_clip=3.0)[0], [3.0])
    np.testing.assert_allclose(surrogate_of(2.0, -1.0, dual_clip=3.0)[0], [2.0])
    np.testing.assert_allclose(surrogate_of(5.0, 1.0, dual_clip=3.0)[0], [-1.2])


def test_L5_log_ratio_is_bounded():
    ratio, gradient = value_and_gradient(lambda x: importance_ratio(x, tf.zeros(2)), [100.0, -100.0])
    assert np.all(np.isfinite(ratio)) and np.all(np.isfinite(gradient))


def test_L7_C8_gradient_at_ratio_1_is_that_of_reinforce():
    """The example of the blog post "Putting RL back in RLHF": one state, four actions, advantage 1."""
    fixture = load("losses")["reinforce"]
    action, advantage = tf.constant([fixture["action"]]), tf.ones([1])

    def ppo(logits):
        logprobs = token_logprobs(logits[None], action)
        ratio = importance_ratio(logprobs, tf.stop_gradient(logprobs))
        return clipped_surrogate_loss(ratio, advantage, clip_range=0.2)

    _, gradient = value_and_gradient(ppo, fixture["logits"])
    np.testing.assert_allclose(-gradient, [-0.1749, 0.5246, -0.1749, -0.1749], atol=6e-5)
    assert_close(-gradient, fixture["gradient"])


def test_L10_L11_explained_variance():
    values, scores = float32([[0.5, 1.0], [0.0, 9.0]]), float32([2.0, 1.0])
    zeros, mask = tf.zeros([2, 2]), tf.constant(mask_of([2, 1], 2))
    rollout = Rollout(
        zeros, zeros, zeros, mask, zeros, tf.constant(values), zeros, tf.constant(scores), zeros[:, 0] > 0
    )
    _, statistics = prepare_targets(rollout, PpoConfig(gae_lambda=1.0), RewardConfig(), 0.0)
    # Returns 2, 2, 1 against values .5, 1, 0.
    error, variance = np.mean([1.5**2, 1.0, 1.0]), np.var([2, 2, 1])
    assert_close(statistics["value/explained_variance"], 1 - error / variance)
    assert_close(statistics["value/mean"], 0.5)


@pytest.mark.parametrize("number", range(2))
def test_entropy_and_its_gradient(number):
    fixture = load("losses")
    case = fixture["entropies"][number]
    result, gradients = value_and_gradient(
        lambda logits: entropy(logits, case["temperature"]), 2 * np.array(fixture["logits"][:6])
    )
    assert np.all(result >= 0)
    assert_close(result, case["entropy"])
    assert_close(gradients, case["gradients"])


@pytest.mark.parametrize("number", range(2))
def test_kl_loss_and_its_gradient(number):
    fixture = load("losses")
    kl, case = fixture["kl"], fixture["kl"]["cases"][number]

    def losses(logits):
        logprobs = token_logprobs(logits, tf.constant(fixture["actions"][:8]), kl["temperature"])
        return kl_estimate(logprobs - float32(kl["ref_logprobs"]), case["estimator"])

    result, gradients = value_and_gradient(losses, fixture["logits"][:8])
    assert_close(result, case["losses"])
    assert_close(gradients, case["gradients"])


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "sequence_sum"])
def test_L9_aggregations(aggregation):
    fixture = load("losses")["aggregation"]
    mask = mask_of(fixture["lengths"])
    per_token = np.where(mask > 0, float32(fixture["per_token"]), np.nan)
    weights = token_weights(tf.constant(mask), aggregation)
    assert_close(masked_sum(per_token, weights), fixture[aggregation])
    # The parts of a minibatch add up to the whole, however it is cut.
    parts = [masked_sum(per_token[rows], weights[rows]) for rows in (slice(0, 1), slice(1, 4))]
    assert_close(sum(parts), fixture[aggregation])

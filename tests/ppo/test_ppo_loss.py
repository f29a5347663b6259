"""The loss of a minibatch, its statistics and its gradients, against plain loops over its tokens."""

import numpy as np
import pytest
import tensorflow as tf
from ppo_cases import (
    KL_COEF,
    TEMPERATURE,
    loss_of,
    make_config,
    make_learner,
    make_rollout,
    old_policy_batch,
    run,
    weights_of,
)
from ppo_reference import naive_gradients, naive_statistics, naive_targets

from tfppo.config import RewardConfig
from tfppo.ppo.loss import STEP_STATISTICS, make_loss
from tfppo.ppo.targets import prepare_targets
from tfppo.training.optimization import gradients_of


@pytest.mark.parametrize("changes", [{}, {"clip_range_high": 0.5, "dual_clip": 1.25}], ids=str)
def test_loss_and_statistics_of_a_minibatch_are_those_of_the_equations(changes):
    rollout, policy, config = make_rollout(), make_learner().policy, make_config(value_coef=0.3, **changes)
    policy.set_weights(make_learner().start)
    batch = old_policy_batch(rollout, 5)
    logits, values = (output.numpy() for output in policy.response_outputs(*rollout[:4]))
    expected, largest = naive_statistics(logits, values, batch, config)
    loss, (statistics, ratio_error) = loss_of(policy, batch, config)
    assert 0 < expected[4] < 1 and 0 < expected[7] < 1  # both clips cut some and leave some
    for name, value, naive in zip(STEP_STATISTICS, statistics.numpy(), expected, strict=True):
        np.testing.assert_allclose(value, naive, rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(loss, expected[2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ratio_error, largest, rtol=1e-4)
    # A share of a minibatch with twice the tokens is half of it.
    halves = tuple(0.5 * weights for weights in weights_of(batch))
    outputs = policy.response_outputs(*batch[:4])
    half, (shares, _) = make_loss(batch, halves, config, TEMPERATURE, tf.constant(1.0)).of_logits(*outputs)
    np.testing.assert_allclose([half, *shares], [0.5 * loss, *(0.5 * statistics)], rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"entropy_coef": 0.5},
        {"kl_loss_coef": 0.5},
        {"kl_loss_coef": 0.5, "kl_loss_estimator": "k2"},
        {"clip_range_high": 0.5},
        {"dual_clip": 1.25},
        {"value_clip_range": None},
        {"loss_aggregation": "sequence_mean"},
        {"loss_aggregation": "sequence_sum"},
        {"loss_aggregation": "sequence_mean", "entropy_coef": 0.3, "kl_loss_coef": 0.2, "dual_clip": 1.25},
    ],
    ids=str,
)
def test_loss_and_gradients_are_those_of_a_loop_over_tokens(changes):
    config, policy = make_config(value_coef=0.3, **changes), make_learner().policy
    policy.set_weights(make_learner().start)
    batch = old_policy_batch(make_rollout(), 5)
    variables = [variable.value for variable in policy.trainable_variables]
    expected_loss, expected = naive_gradients(policy, batch, config)

    def loss_fn():
        loss, _ = loss_of(policy, batch, config)
        return loss, loss

    gradients, loss = gradients_of(loss_fn, variables)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-4, atol=1e-5)
    if changes:  # each of them makes a difference
        plain_loss, _ = naive_gradients(policy, batch, make_config(value_coef=0.3))
        assert abs(expected_loss - plain_loss) > 1e-3
    for variable, gradient, naive in zip(policy.trainable_variables, gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, naive, rtol=1e-3, atol=1e-5, err_msg=variable.path)


def test_the_entropy_has_a_gradient_only_where_it_counts():
    """Finite differences of the entropy term, along a random direction."""
    policy, batch = make_learner().policy, old_policy_batch(make_rollout(), 5)
    config = make_config(value_coef=0.0, entropy_coef=1.0)
    batch = batch._replace(advantages=tf.zeros_like(batch.advantages))
    policy.set_weights(make_learner().start)
    rng, variables = np.random.default_rng(11), policy.trainable_variables
    direction = [rng.normal(0.0, 1.0, variable.shape).astype(np.float32) for variable in variables]
    gradients, _ = gradients_of(lambda: loss_of(policy, batch, config), [variable.value for variable in variables])
    slope = sum((gradient.numpy() * d).sum() for gradient, d in zip(gradients, direction, strict=True))

    def mean_entropy(shift):
        for variable, start, d in zip(variables, starts, direction, strict=True):
            variable.assign(start + shift * d)
        scaled = np.asarray(policy.response_outputs(*batch[:4])[0], np.float64) / TEMPERATURE
        logprobs = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
        entropies = -(np.exp(logprobs) * logprobs).sum(-1)
        return entropies[batch.response_mask.numpy() == 1].mean()

    starts = [variable.numpy() for variable in variables]
    difference = (mean_entropy(2e-3) - mean_entropy(-2e-3)) / 4e-3
    assert abs(difference) > 0.05
    np.testing.assert_allclose(slope, -difference, rtol=0.02)


def test_first_minibatch_has_ratio_one():
    """Every later step moves away from 1, and only the first one is reported."""
    learner, rollout = make_learner(), make_rollout()
    _, statistics = run(learner, rollout)
    assert statistics["policy/first_ratio_error"] < 1e-4 < abs(statistics["policy/ratio"] - 1)
    # The check has power: without the temperature the ratio is far off.
    learner.policy.set_weights(learner.start)
    targets, _ = prepare_targets(rollout, learner.config, learner.reward, KL_COEF)
    _, (_, error) = loss_of(learner.policy, targets, learner.config, temperature=1.0)
    assert error > 0.1


def test_gradient_at_ratio_one_is_that_of_reinforce():
    learner, rollout = make_learner(), make_rollout()
    learner.policy.set_weights(learner.start)
    config = make_config(value_coef=0.0)
    targets, _ = prepare_targets(rollout, config, RewardConfig(), KL_COEF)
    variables = [variable.value for variable in learner.policy.trainable_variables]
    gradients, _ = gradients_of(lambda: loss_of(learner.policy, targets, config), variables)
    advantages, _ = naive_targets(rollout, config, 0.1)
    with tf.GradientTape() as tape:
        logits, _ = learner.policy.response_outputs(*rollout[:4])
        logprobs = tf.nn.log_softmax(logits / TEMPERATURE)
        chosen = [(b, t, rollout.response_ids[b, t]) for b, t in np.argwhere(rollout.response_mask.numpy() == 1)]
        loss = -sum(advantages[b, t] * logprobs[b, t, token] for b, t, token in chosen) / len(chosen)
    reinforce = tape.gradient(loss, variables)
    assert max(np.abs(gradient).max() for gradient in gradients) > 1e-3
    for gradient, expected in zip(gradients, reinforce, strict=True):
        expected = tf.zeros_like(gradient) if expected is None else tf.convert_to_tensor(expected)
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)

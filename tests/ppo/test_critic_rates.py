"""The critic's own update: its start, its warm-up, and learning rates of its own and of the embeddings."""

import math

import numpy as np
import pytest
import tensorflow as tf
from ppo_cases import KL_COEF, SEED, largest_change, make_learner, make_rollout, run, targets_of
from ppo_reference import naive_gradients, naive_targets


def test_separate_critic_starts_at_zero_and_learns():
    learner = make_learner("separate", value_head=False, ppo_epochs=1, num_minibatches=1)
    rollout, policy = make_rollout(), learner.policy
    policy.set_weights(learner.start)
    _, values = policy.response_outputs(*rollout[:4])
    np.testing.assert_array_equal(values, np.zeros(rollout.values.shape))
    rollout = rollout._replace(values=values)
    _, returns = naive_targets(rollout, learner.config, 0.1)
    weights, statistics = run(learner, rollout)
    real = rollout.response_mask.numpy() == 1
    np.testing.assert_allclose(statistics["loss/value"], 0.5 * np.mean(returns[real] ** 2), rtol=1e-4)
    assert statistics["policy/first_ratio_error"] < 1e-4
    policy.set_weights(weights)
    _, values = policy.response_outputs(*rollout[:4])
    assert np.mean((values.numpy() - returns)[real] ** 2) < np.mean(returns[real] ** 2)
    # Behind a head of zeros the critic's trunk moves with the second step; the actor's moves with the first.
    critic = policy.critic.get_weights()
    run(learner, rollout, num_updates=2)
    assert largest_change(policy.critic.get_weights(), critic) > 1e-3


WARMS_UP = {
    # All that a step has beside its gradient; the critic is clipped apart, and so has no say in the policy's steps.
    "separate": dict(optimizer="adamw", weight_decay=0.1, max_grad_norm=0.05, critic_learning_rate=1e-2),
    "shared": dict(ppo_epochs=1, num_minibatches=1, max_grad_norm=0.0),  # later steps' values reach the trunk
}


@pytest.mark.parametrize("critic", WARMS_UP)
def test_the_critic_alone_learns_while_it_warms_up(critic):
    learner, rollout = make_learner(critic, **WARMS_UP[critic]), make_rollout()
    _, statistics = run(learner, rollout, num_updates=2, policy_coef=0.0)
    policy = learner.policy
    critics = [policy.value_kernel, policy.value_bias, *(policy.critic.variables if policy.critic else [])]
    for variable, before in zip(policy.variables, learner.start, strict=True):
        change = np.abs(variable.numpy() - before).max()
        if any(variable is own for own in critics):
            assert change > 1e-4, variable.path
        else:
            assert change == 0.0, variable.path  # to the last bit
    np.testing.assert_allclose(
        statistics["loss/total"], learner.config.value_coef * statistics["loss/value"], rtol=1e-5
    )
    assert statistics["policy/gradient_norm"] > 0


@pytest.mark.parametrize("critic", WARMS_UP)
def test_a_policy_moves_after_a_warm_up_as_it_would_without_one(critic):
    learner, rollout = make_learner(critic, **WARMS_UP[critic]), make_rollout()
    expected, _ = run(learner, rollout)
    policy, iterations = learner.policy, learner.optimizer.iterations
    run(learner, rollout, num_updates=5, policy_coef=0.0)
    assert iterations.numpy() == 5 * learner.config.ppo_epochs * learner.config.num_minibatches
    if critic == "shared":
        policy.set_weights(learner.start)  # the head, whose weights reach the trunk's gradient
    learner.update(rollout, SEED, KL_COEF, tf.constant(1.0), tf.constant(iterations.numpy()))
    own = {id(variable) for variable in policy.critic_variables()}
    moved = 0
    for variable, weight, before in zip(policy.variables, expected, learner.start, strict=True):
        if id(variable) not in own:
            np.testing.assert_array_equal(variable, weight, err_msg=variable.path)
            moved += np.abs(weight - before).max() > 1e-3
    assert moved > 10


# One step of PyTorch's AdamW, with an epsilon so large that a step shows the size of its gradient.
ONE_STEP = dict(ppo_epochs=1, num_minibatches=1, optimizer="adamw", adam_epsilon=10.0, learning_rate=10.0)


def gradients_at_the_start(learner, rollout):
    learner.policy.set_weights(learner.start)
    batch = targets_of(rollout, *naive_targets(rollout, learner.config, 0.1))
    return naive_gradients(learner.policy, batch, learner.config)[1]


def embeddings_of(policy):
    trunk = policy.language_model.trunk
    return [trunk.token_embedding, trunk.position_embedding]


def is_among(variable, others):
    return any(variable is other for other in others)


def test_policy_critic_and_embeddings_learn_at_rates_of_their_own_and_policy_and_critic_are_clipped_apart():
    rates = dict(critic_learning_rate=20.0, embedding_learning_rate=30.0)
    learner = make_learner("separate", **ONE_STEP, **rates, value_coef=50.0, max_grad_norm=0.05)
    policy, rollout = learner.policy, make_rollout()
    gradients = gradients_at_the_start(learner, rollout)
    start = [variable.numpy() for variable in policy.trainable_variables]
    _, statistics = run(learner, rollout)
    critics = [policy.value_kernel, policy.value_bias, *policy.critic.variables]
    is_critic = [is_among(variable, critics) for variable in policy.trainable_variables]
    norms = [
        math.sqrt(sum((g**2).sum() for g, own in zip(gradients, is_critic, strict=True) if own == part))
        for part in (False, True)
    ]
    assert norms[0] > 0.05 and norms[1] > 50 * norms[0]  # clipped together, the policy would hardly move
    np.testing.assert_allclose(statistics["policy/gradient_norm"], math.hypot(*norms), rtol=1e-4)
    for variable, before, gradient, own in zip(policy.trainable_variables, start, gradients, is_critic, strict=True):
        gradient = gradient * 0.05 / norms[own]
        rate = 20.0 if own else 30.0 if is_among(variable, embeddings_of(policy)) else 10.0
        step = rate * gradient / (np.abs(gradient) + 10.0)
        np.testing.assert_allclose(before - variable.numpy(), step, rtol=1e-3, atol=3e-7, err_msg=variable.path)


def test_embeddings_at_a_rate_of_0_stay():
    learner = make_learner(**ONE_STEP, embedding_learning_rate=0.0, max_grad_norm=0.0)
    policy, rollout = learner.policy, make_rollout()
    gradients = gradients_at_the_start(learner, rollout)
    start = [variable.numpy() for variable in policy.trainable_variables]
    run(learner, rollout)
    for variable, before, gradient in zip(policy.trainable_variables, start, gradients, strict=True):
        rate = 0.0 if is_among(variable, embeddings_of(policy)) else 10.0
        step = rate * gradient / (np.abs(gradient) + 10.0)
        np.testing.assert_allclose(before - variable.numpy(), step, rtol=1e-3, atol=3e-7, err_msg=variable.path)

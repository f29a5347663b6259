"""A whole PPO update: against one computed by hand, its epochs, and when they end."""

import math

import numpy as np
import tensorflow as tf
from ppo_cases import (
    BATCH_SIZE,
    SEED,
    assert_same_weights,
    largest_change,
    make_learner,
    make_rollout,
    run,
    targets_of,
)
from ppo_reference import naive_gradients, naive_targets


def test_an_update_is_the_one_computed_by_hand():
    """Three epochs over the whole rollout: tape, clipping by the global norm, and Adam as in its paper's section 2.

    A `target_kl` that is never reached changes nothing.
    """
    settings = dict(ppo_epochs=3, num_minibatches=1, max_grad_norm=0.05, gamma=0.97, value_coef=0.5)
    learner, rollout = make_learner(whiten_rewards=True, target_kl=1e6, **settings), make_rollout()
    config = learner.config
    updated, statistics = run(learner, rollout)
    advantages, returns = naive_targets(rollout, config, 0.1, whiten_rewards=True)
    batch = targets_of(rollout, advantages, returns)
    policy = learner.policy
    policy.set_weights(learner.start)
    weights = [variable.numpy().astype(np.float64) for variable in policy.trainable_variables]
    first, second = [[np.zeros(w.shape) for w in weights] for _ in range(2)]
    norms = []
    for step in range(1, 4):
        for variable, weight in zip(policy.trainable_variables, weights, strict=True):
            variable.assign(weight)
        _, gradients = naive_gradients(policy, batch, config)
        norms.append(math.sqrt(sum((gradient**2).sum() for gradient in gradients)))
        scale = min(1.0, 0.05 / norms[-1])
        rate = config.learning_rate * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        for i, gradient in enumerate(gradients):
            first[i] = 0.9 * first[i] + 0.1 * scale * gradient
            second[i] = 0.999 * second[i] + 0.001 * (scale * gradient) ** 2
            weights[i] = weights[i] - rate * first[i] / (np.sqrt(second[i]) + config.adam_epsilon)
    assert min(norms) > 0.05  # the clip was active in every step
    assert statistics["policy/clip_fraction"] > 0  # and so was the other one
    np.testing.assert_allclose(statistics["policy/gradient_norm"], np.mean(norms), rtol=1e-4)
    assert statistics["policy/steps_taken"] == 1.0 and statistics["policy/epochs"] == 3.0
    assert largest_change(updated, learner.start) > 1e-2
    policy.set_weights(updated)
    assert_same_weights([variable.numpy() for variable in policy.trainable_variables], weights, atol=2e-5)


def test_every_epoch_visits_every_row_once_in_an_order_of_its_own():
    learner = make_learner()
    rows = learner._minibatches(SEED).numpy()
    assert rows.shape == (4, BATCH_SIZE // 2)
    epochs = rows.reshape(2, BATCH_SIZE)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), [np.arange(BATCH_SIZE)] * 2)
    assert not np.array_equal(*epochs)
    assert not np.array_equal(rows, learner._minibatches(SEED + 7).numpy())


def test_updates_are_traced_once():
    learner, rollout = make_learner(), make_rollout()
    run(learner, rollout, num_updates=2)
    traces = learner.update.experimental_get_tracing_count()
    run(learner, rollout._replace(scores=rollout.scores + 1.0), kl_coef=tf.constant(0.2), policy_coef=0.0)
    learner.optimizer.learning_rate.assign(5e-3)
    run(learner, rollout)
    learner.optimizer.learning_rate.assign(1e-2)
    assert learner.update.experimental_get_tracing_count() == traces


def test_a_rewarded_token_becomes_likelier():
    learner, rollout = make_learner(), make_rollout()
    token = int(np.bincount(rollout.response_ids.numpy()[rollout.response_mask.numpy() == 1]).argmax())
    count = tf.reduce_sum(tf.cast(rollout.response_ids == token, tf.float32), axis=1)
    rollout = rollout._replace(scores=count, ref_logprobs=rollout.logprobs)

    def mean_logprob(weights):
        learner.policy.set_weights(weights)
        logits, _ = learner.policy.response_outputs(*rollout[:4])
        return tf.reduce_mean(tf.nn.log_softmax(logits)[..., token][rollout.response_mask > 0]).numpy()

    rewarded, _ = run(learner, rollout)
    punished, _ = run(learner, rollout._replace(scores=-count))
    assert mean_logprob(rewarded) > mean_logprob(learner.start) + 0.05
    assert mean_logprob(punished) < mean_logprob(learner.start) - 0.05


def test_the_epochs_end_before_the_step_that_is_too_far():
    rollout, settings = make_rollout(), dict(num_minibatches=1, max_grad_norm=0.0)
    one, _ = run(make_learner(ppo_epochs=1, **settings), rollout)
    learner = make_learner(ppo_epochs=4, target_kl=1e-5, **settings)
    weights, statistics = run(learner, rollout)
    # The first step has an approx_kl of 0; the second is seen to be too far, and is not taken.
    assert statistics["policy/epochs"] == 2.0 and statistics["policy/steps_taken"] == 0.5
    assert learner.optimizer.iterations.numpy() == 1
    assert largest_change(weights, learner.start) > 1e-3
    assert_same_weights(weights, one)
    # The mean is over the two steps that were looked at.
    assert statistics["policy/approx_kl"] > 0.5e-5

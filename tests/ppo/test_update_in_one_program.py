"""The update as on a GPU, one program of XLA, gives what the steps one by one give, which others check by hand."""

import numpy as np
import pytest
import tensorflow as tf
from ppo_cases import KL_COEF, SEED, assert_same_weights, largest_change, make_learner, make_rollout, run

# Settings that go together, so that few programs are compiled.
SETTINGS = {
    "separate critic, minibatches whitened, parts recomputed, clipping, decay": dict(
        lengths_vary=True,
        num_layers=3,
        critic="separate",
        whiten_scope="minibatch",
        gradient_checkpointing=True,
        accumulation_steps=2,
        max_grad_norm=0.05,
        optimizer="adamw",
        weight_decay=0.1,
        embedding_learning_rate=3e-3,
    ),
    "top block, limit of the KL": dict(trainable_blocks=1, entropy_coef=0.1, target_kl=0.05),
}
FULL, LIMITED = SETTINGS.values()


def both(settings, **arguments):
    """Weights, statistics and the optimizer's state after two updates, by steps one by one and in one program."""
    results = []
    for on_gpu in (False, True):
        learner = make_learner(on_gpu=on_gpu, **settings)
        weights, statistics = run(learner, make_rollout(), num_updates=2, **arguments)
        state = [variable.numpy() for variable in learner.optimizer.variables]
        results.append((weights, statistics, state))
    assert largest_change(results[0][0], learner.start) > 1e-3
    return results


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_it_is_the_update_of_steps_one_by_one(settings):
    (weights, statistics, state), (same, same_statistics, same_state) = both(settings)
    assert_same_weights(same, weights)
    assert_same_weights(same_state, state)
    for name, value in statistics.items():
        np.testing.assert_allclose(same_statistics[name], value, rtol=1e-4, atol=2e-6, err_msg=name)


def test_it_ends_early_where_the_policy_has_moved_too_far():
    (_, statistics, _), _ = both(LIMITED)
    assert 0.5 < statistics["policy/epochs"] < 2.0 and 0.0 < statistics["policy/steps_taken"] < 1.0


def test_what_rests_keeps_its_last_bit():
    (weights, _, _), (same, _, _) = both(FULL, policy_coef=0.0)
    assert_same_weights(same, weights)
    learner = make_learner(on_gpu=True, **FULL)
    own = {id(variable) for variable in learner.policy.critic_variables()}
    for variable, before, after in zip(learner.policy.variables, learner.start, same, strict=True):
        if id(variable) not in own:
            np.testing.assert_array_equal(after, before)


def test_a_step_without_a_finite_gradient_changes_nothing():
    learner = make_learner(on_gpu=True, **FULL)
    rollout = make_rollout()
    scores = rollout.scores.numpy()
    scores[3] = np.nan
    weights, statistics = run(learner, rollout._replace(scores=tf.constant(scores)))
    assert statistics["policy/steps_taken"] == 0.5  # one of the two minibatches of each epoch has the row
    state = [variable.numpy() for variable in learner.optimizer.variables]
    assert all(np.isfinite(value).all() for value in [*weights, *state])
    assert largest_change(weights, learner.start) > 1e-3


def test_no_branch_is_left_in_it_and_its_loops_have_a_known_end():
    """A condition that depends on what is computed makes a GPU wait for its host."""
    learner = make_learner(on_gpu=True, accumulation_steps=2)
    arguments = make_rollout(), learner._minibatches(SEED), KL_COEF, tf.constant(1.0), tf.constant(0)
    with tf.distribute.ReplicaContext(learner.strategy, 0):
        program = learner._epochs.compiled.experimental_get_compiler_ir(*arguments)(stage="optimized_hlo")
    assert " conditional(" not in program
    loops = [line for line in program.splitlines() if " while(" in line]
    assert len(loops) == 3 and all("known_trip_count" in line for line in loops)  # steps, parts, GAE

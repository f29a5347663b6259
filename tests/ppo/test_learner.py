"""The PPO update, against a re-implementation in plain loops and NumPy, and its invariances."""

import functools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfppo.config import PpoConfig, RewardConfig, SamplingConfig
from tfppo.data.prompts import Prompts
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.ppo.learner import STEP_STATISTICS, Learner, cut_responses, last_position, places_of, ppo_loss
from tfppo.ppo.rollout import Sampler
from tfppo.ppo.targets import prepare_targets
from tfppo.ppo.types import Rollout, Targets
from tfppo.training.optimization import gradients_of
from tfppo.training.replicas import make_strategy

VOCABULARY_SIZE, BATCH_SIZE, PROMPT_LENGTH, RESPONSE_LENGTH = 24, 8, 4, 5
TEMPERATURE = 0.7
KL_COEF = tf.constant(0.1)
SEED = np.array([1, 2], np.int32)


def make_policy(separate_critic=False):
    """A policy whose weights are large enough for every detail of the input to show in its outputs."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    language_model = LanguageModel(VOCABULARY_SIZE, 1, 2, 8, 16, 16)
    language_model.set_weights([w + rng.normal(0.0, 0.3, w.shape) for w in language_model.get_weights()])
    return Policy(language_model, separate_critic)


def make_config(**changes):
    defaults = dict(rollout_batch_size=BATCH_SIZE, ppo_epochs=2, num_minibatches=2, learning_rate=1e-2)
    config = PpoConfig(**{**defaults, "total_episodes": BATCH_SIZE, "jit_compile": False, **changes})
    config.validate()
    return config


@functools.cache
def make_learner(critic="shared", value_head=True, whiten_rewards=False, lengths_vary=False, dtype=None, **changes):
    """A learner, compiled once for all the tests that ask for the same settings."""
    strategy = make_strategy(1)
    with strategy.scope():
        policy = make_policy(critic == "separate")
        if value_head:
            rng = np.random.default_rng(1)
            policy.value_kernel.assign(rng.normal(0.0, 0.3, policy.value_kernel.shape))
            policy.value_bias.assign([0.2])
    reward = RewardConfig(whiten=whiten_rewards)
    config = make_config(critic=critic, **changes)
    learner = Learner(policy, config, reward, strategy, TEMPERATURE, dtype, lengths_vary)
    learner.start = policy.get_weights()
    return learner


def run(learner, rollout, num_updates=1, kl_coef=KL_COEF, policy_coef=1.0):
    """Weights and statistics after updates from the same fresh start."""
    policy_coef = tf.constant(policy_coef)
    learner.policy.set_weights(learner.start)
    for variable in learner.optimizer.variables:
        if variable is not learner.optimizer._learning_rate:
            variable.assign(tf.zeros_like(variable))
    for _ in range(num_updates):
        statistics = learner.update(rollout, SEED, kl_coef, policy_coef)
    return learner.policy.get_weights(), {name: float(value) for name, value in statistics.items()}


@functools.cache
def make_rollout():
    """A rollout with prompts of 1 to 4 tokens, of which some responses stop early."""
    learner = make_learner()
    run_weights = learner.policy.get_weights()
    learner.policy.set_weights(learner.start)
    rng = np.random.default_rng(2)
    sizes = np.array([4, 1, 3, 2, 4, 4, 1, 2])
    prompt_mask = (np.arange(PROMPT_LENGTH) >= PROMPT_LENGTH - sizes[:, None]).astype(np.int32)
    prompt_ids = rng.integers(2, VOCABULARY_SIZE, prompt_mask.shape).astype(np.int32) * prompt_mask
    prompts = Prompts(tf.constant(prompt_ids), tf.constant(prompt_mask))
    sampling = SamplingConfig(
        response_length=RESPONSE_LENGTH, temperature=TEMPERATURE, stop_at_eos=True, jit_compile=False
    )
    sampler = Sampler(learner.policy, sampling, eos_id=1, pad_id=0, strategy=learner.strategy)
    samples = sampler(prompts, np.array([3, 4], np.int32))
    learner.policy.set_weights(run_weights)
    noise = rng.normal(0.0, 0.3, samples.logprobs.shape).astype(np.float32)
    scores = tf.constant(rng.normal(0.5, 1.0, BATCH_SIZE).astype(np.float32))
    ref_logprobs = (samples.logprobs + noise) * samples.response_mask
    rollout = Rollout(*prompts, *samples[:4], ref_logprobs, scores, samples.stopped)
    lengths = rollout.response_mask.numpy().sum(axis=1)
    assert len(set(lengths)) > 1 and 0 < rollout.stopped.numpy().sum() < BATCH_SIZE  # ragged, as the tests need it
    return rollout


def assert_same_weights(first, second, atol=2e-6):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol)


def largest_change(first, second):
    return max(np.abs(a - b).max() for a, b in zip(first, second, strict=True))


# The re-implementation: float64, one token at a time.


KL_ESTIMATES = {"k1": lambda d: d, "k2": lambda d: d * d / 2, "k3": lambda d: math.exp(-d) - 1 + d, "abs": abs}


def naive_targets(rollout, config, kl_coef, whiten_rewards=False):
    """Advantages and returns [B, R], from the equations: KL reward, whitening, GAE, whitening."""
    mask = rollout.response_mask.numpy().astype(int)
    logprobs, ref_logprobs, values, scores = (
        array.numpy().astype(np.float64)
        for array in (rollout.logprobs, rollout.ref_logprobs, rollout.values, rollout.scores)
    )
    tokens = [(b, t) for b in range(mask.shape[0]) for t in range(mask[b].sum())]
    rewards, advantages, returns = np.zeros([3, *mask.shape])
    for b, t in tokens:
        rewards[b, t] = -kl_coef * KL_ESTIMATES[config.kl_estimator](logprobs[b, t] - ref_logprobs[b, t])
        if scores.ndim == 2:
            rewards[b, t] += scores[b, t]
        elif t == mask[b].sum() - 1:
            rewards[b, t] += scores[b]

    def naive_whiten(numbers, keep_mean):
        real = np.array([numbers[token] for token in tokens])
        deviation = math.sqrt(real.var(ddof=int(config.whiten_unbiased)) + 1e-8)
        whitened = np.zeros(mask.shape)
        for token in tokens:
            whitened[token] = (numbers[token] - real.mean()) / deviation + keep_mean * real.mean()
        return whitened

    if whiten_rewards:
        rewards = naive_whiten(rewards, keep_mean=True)
    for b in range(mask.shape[0]):
        advantage, next_value = 0.0, 0.0
        for t in reversed(range(mask[b].sum())):
            delta = rewards[b, t] + config.gamma * next_value - values[b, t]
            advantage = delta + config.gamma * config.gae_lambda * advantage
            advantages[b, t], returns[b, t], next_value = advantage, advantage + values[b, t], values[b, t]
    if config.whiten_advantages:
        advantages = naive_whiten(advantages, keep_mean=False)
    return advantages, returns


def clip_ranges(config):
    return config.clip_range, config.clip_range if config.clip_range_high is None else config.clip_range_high


def naive_statistics(logits, values, batch, config):
    """STEP_STATISTICS of rows as means over their real tokens, and the largest distance of a ratio from 1."""
    sums, count, largest = np.zeros(len(STEP_STATISTICS)), 0, 0.0
    mask = batch.response_mask.numpy()
    low, high = clip_ranges(config)
    for b, t in np.argwhere(mask == 1):
        scaled = logits[b, t].astype(np.float64) / TEMPERATURE
        probabilities = np.exp(scaled - scaled.max())
        probabilities /= probabilities.sum()
        value, old_value = float(values[b, t]), float(batch.old_values[b, t])
        advantage, target = float(batch.advantages[b, t]), float(batch.returns[b, t])
        log_ratio = math.log(probabilities[int(batch.response_ids[b, t])]) - float(batch.old_logprobs[b, t])
        ratio = math.exp(log_ratio)
        kept = min(max(ratio, 1 - low), 1 + high)
        policy_loss = -min(ratio * advantage, kept * advantage)
        if config.dual_clip is not None and advantage < 0:
            policy_loss = min(policy_loss, -config.dual_clip * advantage)
        near = min(max(value, old_value - config.value_clip_range), old_value + config.value_clip_range)
        value_loss = 0.5 * max((value - target) ** 2, (near - target) ** 2)
        sums += [
            policy_loss,
            value_loss,
            policy_loss + config.value_coef * value_loss,
            0.5 * log_ratio**2,
            ratio > 1 + high if advantage > 0 else ratio < 1 - low,
            -sum(p * math.log(p) for p in probabilities if p > 0),
            ratio,
            (near - target) ** 2 > (value - target) ** 2,
        ]
        count, largest = count + 1, max(largest, abs(ratio - 1))
    return sums / count, largest


def naive_mean(terms, mask, aggregation):
    """The terms {(b, t): number} of real tokens as one number, by the definition of an aggregation."""
    rows = [[terms[b, t] for t in range(mask.shape[1]) if mask[b, t]] for b in range(mask.shape[0])]
    if aggregation == "token_mean":
        return sum(sum(row) for row in rows) / sum(len(row) for row in rows)
    if aggregation == "sequence_mean":
        return sum(sum(row) / len(row) for row in rows) / len(rows)
    return sum(sum(row) for row in rows) / len(rows)


def naive_gradients(policy, batch, config, policy_coef=1.0):
    """The loss of a minibatch and its gradients, summed up one token at a time on one tape."""
    variables = [variable.value for variable in policy.trainable_variables]
    mask = batch.response_mask.numpy()
    low, high = clip_ranges(config)
    with tf.GradientTape() as tape:
        logits, values = policy.response_outputs(*batch[:4])
        objectives, value_losses = {}, {}
        for b, t in np.argwhere(mask == 1):
            logprobs = logits[b, t] / TEMPERATURE - tf.reduce_logsumexp(logits[b, t] / TEMPERATURE)
            logprob = logprobs[batch.response_ids[b, t]]
            ratio = tf.exp(logprob - batch.old_logprobs[b, t])
            advantage = batch.advantages[b, t]
            loss = -ratio * advantage
            if float(ratio) > 1 + high:
                loss = max(loss, -(1 + high) * advantage)
            if float(ratio) < 1 - low:
                loss = max(loss, -(1 - low) * advantage)
            if config.dual_clip is not None and advantage < 0:
                loss = min(loss, -config.dual_clip * advantage)
            probabilities = tf.exp(logprobs[1:])  # PAD is impossible
            loss += config.entropy_coef * tf.reduce_sum(probabilities * logprobs[1:])
            d = logprob - batch.ref_logprobs[b, t]
            kl = 0.5 * d * d if config.kl_loss_estimator == "k2" else tf.exp(-d) - 1.0 + d
            objectives[b, t] = loss + config.kl_loss_coef * kl
            squared_error = (values[b, t] - batch.returns[b, t]) ** 2
            shift = float(values[b, t] - batch.old_values[b, t])
            if config.value_clip_range is not None and abs(shift) > config.value_clip_range:
                near = batch.old_values[b, t] + math.copysign(config.value_clip_range, shift)
                squared_error = max(squared_error, (near - batch.returns[b, t]) ** 2)
            value_losses[b, t] = 0.5 * squared_error
        total = policy_coef * naive_mean(objectives, mask, config.loss_aggregation)
        total += config.value_coef * naive_mean(value_losses, mask, "token_mean")
    gradients = tape.gradient(total, variables, unconnected_gradients="zero")
    return total.numpy(), [tf.convert_to_tensor(gradient).numpy().astype(np.float64) for gradient in gradients]


def old_policy_batch(rollout, seed):
    """Targets as if an older policy had drawn the rollout: ratios and values on both sides of their clips."""
    rng = np.random.default_rng(seed)
    noise, shift, advantages, returns = rng.normal(0.0, 0.4, [4, *rollout.values.shape]).astype(np.float32)
    mask = rollout.response_mask
    return Targets(
        *rollout[:4],
        critic_mask=mask,
        old_logprobs=(rollout.logprobs + noise) * mask,
        old_values=(rollout.values + shift) * mask,
        ref_logprobs=rollout.ref_logprobs,
        advantages=advantages * mask,
        returns=returns * mask,
    )


def targets_of(rollout, advantages, returns):
    """Targets of a rollout with these advantages and returns."""
    return Targets(
        *rollout[:4],
        critic_mask=rollout.response_mask,
        old_logprobs=rollout.logprobs,
        old_values=rollout.values,
        ref_logprobs=rollout.ref_logprobs,
        advantages=advantages.astype(np.float32),
        returns=returns.astype(np.float32),
    )


def weights_of(batch, aggregation="token_mean"):
    """The three weights that `ppo_loss` takes, for a whole minibatch, in NumPy."""
    mask = batch.response_mask.numpy()
    means = mask / mask.sum()
    policy = {
        "token_mean": means,
        "sequence_mean": mask / mask.sum(axis=1, keepdims=True) / len(mask),
        "sequence_sum": mask / len(mask),
    }
    return tuple(map(tf.constant, (policy[aggregation], means, means)))


def loss_of(policy, batch, config, policy_coef=1.0, temperature=TEMPERATURE):
    policy_coef = tf.constant(policy_coef)
    outputs = policy.response_outputs(*batch[:4], trunk_coef=policy_coef)
    return ppo_loss(*outputs, batch, weights_of(batch, config.loss_aggregation), config, temperature, policy_coef)


@pytest.mark.parametrize("whiten_rewards", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"whiten_advantages": False},
        {},
        {"whiten_unbiased": True},
        {"kl_estimator": "k2"},
        {"kl_estimator": "k3", "whiten_advantages": False},
        {"kl_estimator": "abs"},
    ],
    ids=str,
)
def test_targets_are_those_of_the_equations(whiten_rewards, changes):
    rollout = make_rollout()
    config = make_config(gamma=0.97, **changes)
    targets, _ = prepare_targets(rollout, config, RewardConfig(whiten=whiten_rewards), 0.3)
    advantages, returns = naive_targets(rollout, config, 0.3, whiten_rewards)
    np.testing.assert_allclose(targets.advantages, advantages, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(targets.returns, returns, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(targets.critic_mask, rollout.response_mask)
    np.testing.assert_array_equal(targets.ref_logprobs, rollout.ref_logprobs)


def test_targets_of_dense_scores():
    rollout, config = make_rollout(), make_config(whiten_advantages=False)
    scores = np.random.default_rng(8).normal(0.0, 1.0, rollout.values.shape).astype(np.float32)
    rollout = rollout._replace(scores=tf.constant(scores))
    targets, statistics = prepare_targets(rollout, config, RewardConfig(), 0.3)
    advantages, returns = naive_targets(rollout, config, 0.3)
    np.testing.assert_allclose(targets.advantages, advantages, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(targets.returns, returns, rtol=1e-4, atol=1e-5)
    total = (scores * rollout.response_mask.numpy()).sum(axis=1).mean()
    np.testing.assert_allclose(statistics["objective/score"], total, rtol=1e-5)


def test_the_penalty_is_the_estimate_that_was_chosen():
    rollout, coefficient = make_rollout(), 0.3
    mask, d = rollout.response_mask.numpy(), (rollout.logprobs - rollout.ref_logprobs).numpy()
    k3 = ((np.exp(-d) - 1 + d) * mask).sum(axis=1)
    _, statistics = prepare_targets(rollout, make_config(kl_estimator="k3"), RewardConfig(), coefficient)
    expected = (rollout.scores.numpy() - coefficient * k3).mean()
    np.testing.assert_allclose(statistics["objective/rlhf_reward"], expected, rtol=1e-4)
    # What is reported, and what the controller follows, is the summed log-ratio all the same.
    np.testing.assert_allclose(statistics["objective/kl"], (d * mask).sum(axis=1).mean(), rtol=1e-4)


def test_statistics_of_a_rollout():
    rollout = make_rollout()
    _, statistics = prepare_targets(rollout, make_config(), RewardConfig(), 0.3)
    advantages, returns = naive_targets(rollout, make_config(whiten_advantages=False), 0.3)
    mask = rollout.response_mask.numpy() == 1
    logprobs, ref_logprobs, values = (
        array.numpy().astype(np.float64) for array in (rollout.logprobs, rollout.ref_logprobs, rollout.values)
    )
    kl = [sum((logprobs[b] - ref_logprobs[b])[mask[b]]) for b in range(BATCH_SIZE)]
    error = np.mean((values[mask] - returns[mask]) ** 2)
    expected = {
        "objective/kl": np.mean(kl),
        "objective/kl_coef": 0.3,
        "objective/entropy": np.mean([-sum(logprobs[b][mask[b]]) for b in range(BATCH_SIZE)]),
        "objective/score": rollout.scores.numpy().mean(),
        "objective/rlhf_reward": np.mean(rollout.scores.numpy() - 0.3 * np.array(kl)),
        "objective/largest_advantage": np.abs(advantages).max(),
        "value/explained_variance": 1 - error / np.var(returns[mask]),
        "value/mean": values[mask].mean(),
        "response/length": mask.sum() / BATCH_SIZE,
        "response/stopped": np.mean([1 in row for row in rollout.response_ids.numpy().tolist()]),
    }
    assert statistics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(statistics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


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
    half, (shares, _) = ppo_loss(*outputs, batch, halves, config, TEMPERATURE, tf.constant(1.0))
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
    learner, rollout = make_learner(ppo_epochs=1, num_minibatches=1), make_rollout()
    _, statistics = run(learner, rollout)
    assert statistics["policy/first_ratio_error"] < 1e-4
    assert statistics["policy/clip_fraction"] == statistics["value/clip_fraction"] == 0.0
    assert statistics["policy/approx_kl"] < 1e-9
    np.testing.assert_allclose(statistics["policy/ratio"], 1.0, rtol=1e-5)
    # The check has power: without the temperature the ratio is far off.
    learner.policy.set_weights(learner.start)
    targets, _ = prepare_targets(rollout, learner.config, learner.reward, KL_COEF)
    _, (_, error) = loss_of(learner.policy, targets, learner.config, temperature=1.0)
    assert error > 0.1
    # Every later step moves away from 1; only the first one is reported.
    _, later = run(make_learner(), rollout)
    assert later["policy/first_ratio_error"] < 1e-4 < abs(later["policy/ratio"] - 1)


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


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.05])
def test_an_update_is_the_one_computed_by_hand(max_grad_norm):
    """Three epochs over the whole rollout: tape, clipping by the global norm, and Adam as in its paper's section 2."""
    settings = dict(ppo_epochs=3, num_minibatches=1, max_grad_norm=max_grad_norm, gamma=0.97, value_coef=0.5)
    learner, rollout = make_learner(whiten_rewards=True, **settings), make_rollout()
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
        scale = min(1.0, max_grad_norm / norms[-1]) if max_grad_norm else 1.0
        rate = config.learning_rate * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        for i, gradient in enumerate(gradients):
            first[i] = 0.9 * first[i] + 0.1 * scale * gradient
            second[i] = 0.999 * second[i] + 0.001 * (scale * gradient) ** 2
            weights[i] = weights[i] - rate * first[i] / (np.sqrt(second[i]) + config.adam_epsilon)
    assert min(norms) > 0.05  # the clip was active in every step
    assert statistics["policy/clip_fraction"] > 0  # and so was the other one
    np.testing.assert_allclose(statistics["policy/gradient_norm"], np.mean(norms), rtol=1e-4)
    assert statistics["policy/steps_taken"] == 1.0
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


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulation_steps": 4},
        {"jit_compile": True},
        {"lengths_vary": True},
        {"lengths_vary": True, "jit_compile": True, "accumulation_steps": 2},
    ],
    ids=["accumulation", "xla", "lengths", "lengths_and_accumulation_under_xla"],
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


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_update_in_bfloat16_is_near_the_one_in_float32_and_leaves_weights_in_float32(critic):
    exact, rough = make_learner(critic=critic), make_learner(critic=critic, dtype="mixed_bfloat16")
    expected, statistics = run(exact, make_rollout())
    weights, rounded = run(rough, make_rollout())
    assert all(weight.dtype == np.float32 for weight in weights)
    assert rough.policy.dtype_policy.name == "float32"  # sampling stays in float32
    change = largest_change(expected, exact.start)
    assert 0 < largest_change(weights, expected) < change
    assert 1e-4 < rounded["policy/first_ratio_error"] < 0.1 and statistics["policy/first_ratio_error"] < 1e-4
    np.testing.assert_allclose(rounded["loss/value"], statistics["loss/value"], rtol=0.05)
    np.testing.assert_allclose(rounded["policy/entropy"], statistics["policy/entropy"], rtol=0.02)


def test_more_padding_on_the_right_changes_nothing():
    rollout, learner = make_rollout(), make_learner()
    wider = {}
    for name, value in rollout._asdict().items():
        if name.startswith("prompt") or value.shape.rank == 1:
            wider[name] = value
        else:
            wider[name] = tf.pad(value, [[0, 0], [0, 3]])
    expected, statistics = run(learner, rollout)
    weights, same = run(learner, Rollout(**wider))
    assert_same_weights(weights, expected)
    for name, value in statistics.items():
        np.testing.assert_allclose(same[name], value, rtol=1e-4, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("garbage", [50.0, -1e9, np.nan], ids=str)
def test_what_stands_at_the_padding_changes_nothing(garbage):
    rollout, learner = make_rollout(), make_learner()
    real = rollout.response_mask > 0
    dirty = rollout._replace(
        prompt_ids=tf.where(rollout.prompt_mask > 0, rollout.prompt_ids, 7),
        response_ids=tf.where(real, rollout.response_ids, 9),
        **{name: tf.where(real, getattr(rollout, name), garbage) for name in ("logprobs", "values", "ref_logprobs")},
    )
    expected, statistics = run(learner, rollout)
    weights, same = run(learner, dirty)
    assert same["policy/steps_taken"] == 1.0
    assert_same_weights(weights, expected)
    for name, value in statistics.items():
        np.testing.assert_allclose(same[name], value, rtol=1e-4, atol=2e-6, err_msg=name)


def test_a_rollout_that_is_not_finite_changes_nothing():
    learner, rollout = make_learner(), make_rollout()
    poisoned = rollout._replace(scores=tf.fill([BATCH_SIZE], np.nan))
    weights, statistics = run(learner, poisoned)
    assert statistics["policy/steps_taken"] == 0.0
    for weight, start in zip(weights, learner.start, strict=True):
        np.testing.assert_array_equal(weight, start)
    assert learner.optimizer.iterations.numpy() == 0
    for variable in learner.optimizer.variables:
        assert np.isfinite(variable.numpy()).all()
    # And the next rollout is learned from as if the bad one had not been.
    learner.update(rollout, SEED, KL_COEF, tf.constant(1.0))
    after = learner.policy.get_weights()
    expected, _ = run(learner, rollout)
    assert_same_weights(after, expected, atol=0.0)


def test_only_the_minibatch_that_is_not_finite_is_skipped():
    learner, rollout = make_learner(whiten_advantages=False), make_rollout()
    scores = rollout.scores.numpy()
    scores[3] = np.inf
    weights, statistics = run(learner, rollout._replace(scores=tf.constant(scores)))
    assert statistics["policy/steps_taken"] == 0.5  # one of the two minibatches of each epoch
    assert learner.optimizer.iterations.numpy() == 2
    assert all(np.isfinite(weight).all() for weight in weights)
    assert largest_change(weights, learner.start) > 1e-3


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


def test_a_target_that_is_never_reached_changes_nothing():
    expected, statistics = run(make_learner(), make_rollout())
    weights, same = run(make_learner(target_kl=1e6), make_rollout())
    assert_same_weights(weights, expected, atol=0.0)
    assert same == statistics and statistics["policy/epochs"] == 2.0


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_the_critic_alone_learns_while_it_warms_up(critic):
    learner, rollout = make_learner(critic), make_rollout()
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


def test_policy_and_critic_learn_at_rates_of_their_own_and_are_clipped_apart():
    """One step of PyTorch's AdamW, with an epsilon so large that a step shows the size of its gradient."""
    settings = dict(ppo_epochs=1, num_minibatches=1, value_coef=50.0, optimizer="adamw", adam_epsilon=10.0)
    rates = dict(learning_rate=10.0, critic_learning_rate=20.0, max_grad_norm=0.05)
    learner, rollout = make_learner("separate", **settings, **rates), make_rollout()
    policy, config = learner.policy, learner.config
    policy.set_weights(learner.start)
    batch = targets_of(rollout, *naive_targets(rollout, config, 0.1))
    _, gradients = naive_gradients(policy, batch, config)
    start = [variable.numpy() for variable in policy.trainable_variables]
    _, statistics = run(learner, rollout)
    critics = [policy.value_kernel, policy.value_bias, *policy.critic.variables]
    is_critic = [any(variable is own for own in critics) for variable in policy.trainable_variables]
    norms = [
        math.sqrt(sum((g**2).sum() for g, own in zip(gradients, is_critic, strict=True) if own == part))
        for part in (False, True)
    ]
    assert norms[0] > 0.05 and norms[1] > 50 * norms[0]  # clipped together, the policy would hardly move
    np.testing.assert_allclose(statistics["policy/gradient_norm"], math.hypot(*norms), rtol=1e-4)
    for variable, before, gradient, own in zip(policy.trainable_variables, start, gradients, is_critic, strict=True):
        gradient = gradient * 0.05 / norms[own]
        step = rates["critic_learning_rate" if own else "learning_rate"] * gradient / (np.abs(gradient) + 10.0)
        np.testing.assert_allclose(before - variable.numpy(), step, rtol=1e-3, atol=3e-7, err_msg=variable.path)


@pytest.mark.parametrize("rate", [20.0, 0.0])
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_embeddings_learn_at_a_rate_of_their_own(critic, rate):
    """One step of PyTorch's AdamW, with an epsilon so large that a step shows the size of its gradient."""
    settings = dict(ppo_epochs=1, num_minibatches=1, optimizer="adamw", adam_epsilon=10.0, max_grad_norm=0.0)
    learner = make_learner(critic, **settings, learning_rate=10.0, embedding_learning_rate=rate)
    policy, rollout = learner.policy, make_rollout()
    policy.set_weights(learner.start)
    _, gradients = naive_gradients(
        policy, targets_of(rollout, *naive_targets(rollout, learner.config, 0.1)), learner.config
    )
    start = [variable.numpy() for variable in policy.trainable_variables]
    run(learner, rollout)
    trunk = policy.language_model.trunk
    for variable, before, gradient in zip(policy.trainable_variables, start, gradients, strict=True):
        is_embedding = variable is trunk.token_embedding or variable is trunk.position_embedding
        step = (rate if is_embedding else 10.0) * gradient / (np.abs(gradient) + 10.0)
        np.testing.assert_allclose(before - variable.numpy(), step, rtol=1e-3, atol=3e-7, err_msg=variable.path)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(("critic", "dtype"), [("shared", None), ("separate", None), ("shared", "mixed_bfloat16")])
def test_checkpointed_gradients_are_the_same(critic, dtype, jit_compile):
    rollout, settings = make_rollout(), dict(critic=critic, dtype=dtype, ratio_tolerance=1.0, jit_compile=jit_compile)
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

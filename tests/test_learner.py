"""The PPO update, against a re-implementation in plain loops and NumPy, and its invariances."""

import functools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfppo.config import PpoConfig, SamplingConfig
from tfppo.distribute import make_strategy
from tfppo.learner import STEP_STATISTICS, Learner, ppo_loss, prepare_targets
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.optimization import Adam, clip_by_global_norm, gradients_of
from tfppo.rollout import Sampler
from tfppo.types import Prompts, Rollout, Targets

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
def make_learner(separate_critic=False, **changes):
    """A learner, compiled once for all the tests that ask for the same settings."""
    strategy = make_strategy(1)
    with strategy.scope():
        policy = make_policy(separate_critic)
        if not separate_critic:
            rng = np.random.default_rng(1)
            policy.value_kernel.assign(rng.normal(0.0, 0.3, policy.value_kernel.shape))
            policy.value_bias.assign([0.2])
    learner = Learner(policy, make_config(**changes), strategy, temperature=TEMPERATURE)
    learner.start = policy.get_weights()
    return learner


def run(learner, rollout, num_updates=1, kl_coef=KL_COEF):
    """Weights and statistics after updates from the same fresh start."""
    learner.policy.set_weights(learner.start)
    for variable in learner.optimizer.variables:
        if variable is not learner.optimizer._learning_rate:
            variable.assign(tf.zeros_like(variable))
    for _ in range(num_updates):
        statistics = learner.update(rollout, SEED, kl_coef)
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


def naive_targets(rollout, config, kl_coef):
    """Advantages and returns [B, R], from the equations: KL reward, whitening, GAE, whitening."""
    mask = rollout.response_mask.numpy().astype(int)
    logprobs, ref_logprobs, values, scores = (
        array.numpy().astype(np.float64)
        for array in (rollout.logprobs, rollout.ref_logprobs, rollout.values, rollout.scores)
    )
    tokens = [(b, t) for b in range(mask.shape[0]) for t in range(mask[b].sum())]
    rewards, advantages, returns = np.zeros([3, *mask.shape])
    for b, t in tokens:
        rewards[b, t] = -kl_coef * (logprobs[b, t] - ref_logprobs[b, t])
        if t == mask[b].sum() - 1:
            rewards[b, t] += scores[b]

    def naive_whiten(numbers, keep_mean):
        real = np.array([numbers[token] for token in tokens])
        whitened = np.zeros(mask.shape)
        for token in tokens:
            whitened[token] = (numbers[token] - real.mean()) / math.sqrt(real.var() + 1e-8) + keep_mean * real.mean()
        return whitened

    if config.whiten_rewards:
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


def naive_statistics(logits, values, batch, config):
    """STEP_STATISTICS of rows as means over their real tokens, and the largest distance of a ratio from 1."""
    sums, count, largest = np.zeros(len(STEP_STATISTICS)), 0, 0.0
    mask = batch.response_mask.numpy()
    for b, t in np.argwhere(mask == 1):
        scaled = logits[b, t].astype(np.float64) / TEMPERATURE
        probabilities = np.exp(scaled - scaled.max())
        probabilities /= probabilities.sum()
        value, old_value = float(values[b, t]), float(batch.old_values[b, t])
        advantage, target = float(batch.advantages[b, t]), float(batch.returns[b, t])
        log_ratio = math.log(probabilities[int(batch.response_ids[b, t])]) - float(batch.old_logprobs[b, t])
        ratio = math.exp(log_ratio)
        kept = min(max(ratio, 1 - config.clip_range), 1 + config.clip_range)
        policy_loss = -min(ratio * advantage, kept * advantage)
        near = min(max(value, old_value - config.value_clip_range), old_value + config.value_clip_range)
        value_loss = 0.5 * max((value - target) ** 2, (near - target) ** 2)
        sums += [
            policy_loss,
            value_loss,
            policy_loss + config.value_coef * value_loss,
            0.5 * log_ratio**2,
            abs(ratio - 1) > config.clip_range,
            -sum(p * math.log(p) for p in probabilities if p > 0),
            ratio,
            abs(value - old_value) > config.value_clip_range,
        ]
        count, largest = count + 1, max(largest, abs(ratio - 1))
    return sums / count, largest


def naive_gradients(policy, rollout, advantages, returns, config):
    """Gradients of the mean loss over tokens, summed up one token at a time on one tape."""
    variables = [variable.value for variable in policy.trainable_variables]
    mask = rollout.response_mask.numpy()
    with tf.GradientTape() as tape:
        logits, values = policy.response_outputs(*rollout[:4])
        total = 0.0
        for b, t in np.argwhere(mask == 1):
            scaled = logits[b, t] / TEMPERATURE
            logprob = scaled[rollout.response_ids[b, t]] - tf.reduce_logsumexp(scaled)
            ratio = tf.exp(logprob - rollout.logprobs[b, t])
            gain = ratio * advantages[b, t]
            if abs(float(ratio) - 1) > config.clip_range:
                edge = 1 + math.copysign(config.clip_range, float(ratio) - 1)
                gain = min(gain, edge * advantages[b, t])
            squared_error = (values[b, t] - returns[b, t]) ** 2
            shift = float(values[b, t] - rollout.values[b, t])
            if abs(shift) > config.value_clip_range:
                near = rollout.values[b, t] + math.copysign(config.value_clip_range, shift)
                squared_error = max(squared_error, (near - returns[b, t]) ** 2)
            total += -gain + config.value_coef * 0.5 * squared_error
        loss = total / mask.sum()
    return [tf.convert_to_tensor(gradient).numpy().astype(np.float64) for gradient in tape.gradient(loss, variables)]


def old_policy_batch(rollout, seed):
    """Targets as if an older policy had drawn the rollout: ratios and values on both sides of their clips."""
    rng = np.random.default_rng(seed)
    noise, shift, advantages, returns = rng.normal(0.0, 0.4, [4, *rollout.values.shape]).astype(np.float32)
    mask = rollout.response_mask
    return Targets(
        *rollout[:4],
        old_logprobs=(rollout.logprobs + noise) * mask,
        old_values=(rollout.values + shift) * mask,
        advantages=advantages * mask,
        returns=returns * mask,
    )


@pytest.mark.parametrize("whiten_rewards", [False, True])
@pytest.mark.parametrize("whiten_advantages", [False, True])
def test_targets_are_those_of_the_equations(whiten_rewards, whiten_advantages):
    rollout = make_rollout()
    config = make_config(whiten_rewards=whiten_rewards, whiten_advantages=whiten_advantages, gamma=0.97)
    targets, _ = prepare_targets(rollout, config, 0.3)
    advantages, returns = naive_targets(rollout, config, 0.3)
    np.testing.assert_allclose(targets.advantages, advantages, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(targets.returns, returns, rtol=1e-4, atol=1e-5)


def test_statistics_of_a_rollout():
    rollout = make_rollout()
    _, statistics = prepare_targets(rollout, make_config(), 0.3)
    _, returns = naive_targets(rollout, make_config(), 0.3)
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
        "value/explained_variance": 1 - error / np.var(returns[mask]),
        "value/mean": values[mask].mean(),
        "response/length": mask.sum() / BATCH_SIZE,
        "response/stopped": np.mean([1 in row for row in rollout.response_ids.numpy().tolist()]),
    }
    assert statistics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(statistics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_loss_and_statistics_of_a_minibatch_are_those_of_the_equations():
    rollout, policy, config = make_rollout(), make_learner().policy, make_config(value_coef=0.3)
    policy.set_weights(make_learner().start)
    batch = old_policy_batch(rollout, 5)
    logits, values = (output.numpy() for output in policy.response_outputs(*rollout[:4]))
    expected, largest = naive_statistics(logits, values, batch, config)
    num_tokens = tf.reduce_sum(rollout.response_mask)
    loss, (statistics, ratio_error) = ppo_loss(policy, batch, num_tokens, config, TEMPERATURE)
    assert 0 < expected[4] < 1 and 0 < expected[7] < 1  # both clips cut some and leave some
    for name, value, naive in zip(STEP_STATISTICS, statistics.numpy(), expected, strict=True):
        np.testing.assert_allclose(value, naive, rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(loss, expected[2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ratio_error, largest, rtol=1e-4)
    # A share of a minibatch with twice the tokens is half of it.
    half, (shares, _) = ppo_loss(policy, batch, 2.0 * num_tokens, config, TEMPERATURE)
    np.testing.assert_allclose([half, *shares], [0.5 * loss, *(0.5 * statistics)], rtol=1e-5)


def test_first_minibatch_has_ratio_one():
    learner, rollout = make_learner(ppo_epochs=1, num_minibatches=1), make_rollout()
    _, statistics = run(learner, rollout)
    assert statistics["policy/first_ratio_error"] < 1e-4
    assert statistics["policy/clip_fraction"] == statistics["value/clip_fraction"] == 0.0
    assert statistics["policy/approx_kl"] < 1e-9
    np.testing.assert_allclose(statistics["policy/ratio"], 1.0, rtol=1e-5)
    # The check has power: without the temperature the ratio is far off.
    learner.policy.set_weights(learner.start)
    targets, _ = prepare_targets(rollout, learner.config, KL_COEF)
    _, (_, error) = ppo_loss(learner.policy, targets, 1.0, learner.config, 1.0)
    assert error > 0.1
    # Every later step moves away from 1; only the first one is reported.
    _, later = run(make_learner(), rollout)
    assert later["policy/first_ratio_error"] < 1e-4 < abs(later["policy/ratio"] - 1)


def test_gradient_at_ratio_one_is_that_of_reinforce():
    learner, rollout = make_learner(), make_rollout()
    learner.policy.set_weights(learner.start)
    config = make_config(value_coef=0.0)
    targets, _ = prepare_targets(rollout, config, KL_COEF)
    variables = [variable.value for variable in learner.policy.trainable_variables]
    num_tokens = tf.reduce_sum(rollout.response_mask)
    gradients, _ = gradients_of(lambda: ppo_loss(learner.policy, targets, num_tokens, config, TEMPERATURE), variables)
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
    advantages, returns = naive_targets(rollout, config, 0.1)
    advantages, returns = advantages.astype(np.float32), returns.astype(np.float32)
    policy = learner.policy
    policy.set_weights(learner.start)
    weights = [variable.numpy().astype(np.float64) for variable in policy.trainable_variables]
    first, second = [[np.zeros(w.shape) for w in weights] for _ in range(2)]
    norms = []
    for step in range(1, 4):
        for variable, weight in zip(policy.trainable_variables, weights, strict=True):
            variable.assign(weight)
        gradients = naive_gradients(policy, rollout, advantages, returns, config)
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
    run(learner, rollout._replace(scores=rollout.scores + 1.0), kl_coef=tf.constant(0.2))
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


@pytest.mark.parametrize("changes", [{"accumulation_steps": 4}, {"jit_compile": True}], ids=["accumulation", "xla"])
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
    learner.update(rollout, SEED, KL_COEF)
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
    learner, rollout = make_learner(separate_critic=True, ppo_epochs=1, num_minibatches=1), make_rollout()
    policy = learner.policy
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


@pytest.mark.parametrize(("gradient", "share"), [(1e-4, 0.2403), (1e-3, 0.7597), (1e-5, 0.0307)])
def test_first_step_of_adam_gives_the_published_table(gradient, share):
    weight = tf.Variable([2.0, 2.0])
    Adam(0.5, epsilon=1e-5).apply([tf.constant([gradient, -gradient])], [weight])
    np.testing.assert_allclose(2.0 - weight.numpy(), [0.5 * share, -0.5 * share], atol=4e-5)


def test_gradients_are_clipped_by_their_common_norm():
    gradients = [tf.constant([3.0]), tf.constant([[0.0, 4.0]])]
    clipped, norm = clip_by_global_norm(gradients, 1.0)
    np.testing.assert_allclose([norm, clipped[0][0], clipped[1][0, 1]], [5.0, 0.6, 0.8], rtol=1e-6)
    for max_norm in (0.0, 6.0):
        same, norm = clip_by_global_norm(gradients, max_norm)
        np.testing.assert_allclose([norm, same[0][0], same[1][0, 1]], [5.0, 3.0, 4.0], rtol=1e-6)
    zeros, norm = clip_by_global_norm([tf.zeros([2])], 1.0)
    np.testing.assert_array_equal([norm, *zeros[0]], [0.0, 0.0, 0.0])

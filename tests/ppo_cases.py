"""What the tests of the PPO update share: a small policy, learners, a ragged rollout and batches of it."""

import functools

import keras
import numpy as np
import tensorflow as tf
from computations import build_learner, build_sampler
from config_cases import ORIGINAL

from tfppo.config import PpoConfig, RewardConfig, SamplingConfig
from tfppo.data.prompts import Prompts
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.ppo.loss import make_loss
from tfppo.ppo.types import Rollout, Targets
from tfppo.training.replicas import make_strategy

VOCABULARY_SIZE, BATCH_SIZE, PROMPT_LENGTH, RESPONSE_LENGTH = 24, 8, 4, 5
TEMPERATURE = 0.7
KL_COEF = tf.constant(0.1)
SEED = np.array([1, 2], np.int32)


def make_policy(separate_critic=False, num_layers=1):
    """A policy whose weights are large enough for every detail of the input to show in its outputs."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    language_model = LanguageModel(VOCABULARY_SIZE, num_layers, 2, 8, 16, 16)
    language_model.set_weights([w + rng.normal(0.0, 0.3, w.shape) for w in language_model.get_weights()])
    return Policy(language_model, separate_critic)


def make_config(**changes):
    defaults = ORIGINAL | dict(rollout_batch_size=BATCH_SIZE, ppo_epochs=2, num_minibatches=2, learning_rate=1e-2)
    if changes.get("critic") == "separate":
        defaults |= dict(value_coef=0.1, critic_learning_rate=1e-2)
    config = PpoConfig(**{**defaults, "total_episodes": BATCH_SIZE, "jit_compile": False, **changes})
    config.validate()
    return config


@functools.cache
def make_learner(
    critic="shared",
    value_head=True,
    whiten_rewards=False,
    lengths_vary=False,
    dtype=None,
    on_gpu=False,
    num_layers=1,
    **changes,
):
    """A learner, compiled once for all the tests that ask for the same settings.

    Args: on_gpu: whether it computes as on a GPU, with an engine of `fixed_shapes`.
    """
    strategy = make_strategy(1)
    with strategy.scope():
        policy = make_policy(critic == "separate", num_layers)
        if value_head:
            rng = np.random.default_rng(1)
            policy.value_kernel.assign(rng.normal(0.0, 0.3, policy.value_kernel.shape))
            policy.value_bias.assign([0.2])
    reward = RewardConfig(whiten=whiten_rewards)
    config = make_config(critic=critic, **changes)
    learner = build_learner(policy, config, reward, strategy, TEMPERATURE, dtype, lengths_vary, on_gpu=on_gpu)
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
    sampler = build_sampler(learner.policy, sampling, eos_id=1, pad_id=0, strategy=learner.strategy)
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
    """The three weights that `make_loss` takes, for a whole minibatch, in NumPy."""
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
    weights = weights_of(batch, config.loss_aggregation)
    return make_loss(batch, weights, config, temperature, policy_coef).of_logits(*outputs)

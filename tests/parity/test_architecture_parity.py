"""Initialisation and heads: the rows I1 to I8."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference_numbers import assert_close, float32

from tfppo.config import PpoConfig, RewardConfig
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.models.reward_model import RewardModel
from tfppo.models.transformer import Transformer
from tfppo.ops.logprobs import token_logprobs
from tfppo.targets import prepare_targets
from tfppo.types import Rollout

SIZES = dict(num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=32, max_sequence_length=12)
TOKENS = tf.constant(np.random.default_rng(0).integers(1, 20, [3, 8]), tf.int32)
PROMPTS, RESPONSES, ONES = TOKENS[:, :3], TOKENS[:, 3:], tf.ones([3, 5])
BATCH = (PROMPTS, tf.ones_like(PROMPTS), RESPONSES, ONES)


def make_language_model(seed=0):
    rng = np.random.default_rng(seed)
    model = LanguageModel(20, **SIZES)
    model.set_weights([w + rng.normal(0, 0.3, w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize("separate_critic", [False, True])
def test_I1_value_head_is_zero(separate_critic):
    policy = Policy(make_language_model(), separate_critic)
    assert not np.any(policy.value_kernel) and not np.any(policy.value_bias)
    logits, values = policy.response_outputs(*BATCH)
    np.testing.assert_array_equal(values, np.zeros([3, 5]))
    # So the first returns are the rewards to go, whatever lambda is 1 or not: lambda 1 here.
    logprobs = token_logprobs(logits, RESPONSES)
    rollout = Rollout(*BATCH, logprobs, values, logprobs, tf.constant([1.0, -2.0, 0.5]), tf.fill([3], False))
    targets, _ = prepare_targets(rollout, PpoConfig(gae_lambda=1.0), RewardConfig(), 0.1)
    np.testing.assert_array_equal(targets.returns, float32([[1] * 5, [-2] * 5, [0.5] * 5]))


def test_I2_reward_head_std():
    """N(0, 1 / sqrt(d + 1)) at d = 768, and bias 0: I3 warns of 1 / (d + 1), which is 28 times smaller."""
    keras.utils.set_random_seed(0)
    trunk = Transformer(2, 1, 1, 768, 1, 1)
    heads = [RewardModel(trunk) for _ in range(20)]
    weights = np.concatenate([np.asarray(head.head_kernel).ravel() for head in heads])
    assert abs(weights.std() / 0.03606 - 1) < 0.02
    assert abs(weights.mean()) < 4 * 0.03606 / len(weights) ** 0.5
    assert not any(np.any(head.head_bias) for head in heads)


def test_I4_a_critic_from_a_reward_model_gives_its_scores():
    policy = Policy(make_language_model(), separate_critic=True)
    reward_model = RewardModel(make_language_model(seed=7).trunk)
    reward_model.head_bias.assign([0.25])
    policy.copy_critic(reward_model)
    scores = reward_model(TOKENS).numpy()
    _, values = policy.response_outputs(*BATCH)
    assert_close(values, scores[:, 2:-1])
    assert scores.std() > 0.01


def test_I6_a_copy_as_the_reference_has_kl_0():
    model = make_language_model()
    policy, reference = Policy(model), LanguageModel.from_config(model.get_config())
    reference.set_weights(model.get_weights())
    logits, values = policy.response_outputs(*BATCH)
    logprobs, ref_logprobs = (token_logprobs(x, RESPONSES, 0.7) for x in (logits, reference.response_logits(*BATCH)))
    rollout = Rollout(*BATCH, logprobs, values, ref_logprobs, tf.zeros([3]), tf.fill([3], False))
    _, statistics = prepare_targets(rollout, PpoConfig(), RewardConfig(), 0.1)
    assert statistics["objective/kl"] == 0.0


def trunk_gradient(policy, **arguments):
    """Of the summed values, with respect to the actor's trunk: the largest number."""
    with tf.GradientTape() as tape:
        _, values = policy.response_outputs(*BATCH, **arguments)
        loss = tf.reduce_sum(values)
    sources = [variable.value for variable in policy.language_model.trunk.trainable_variables]
    gradients = tape.gradient(loss, sources)
    return max(0.0 if g is None else float(tf.reduce_max(tf.abs(tf.convert_to_tensor(g)))) for g in gradients)


def test_I8_values_teach_a_shared_trunk_and_not_a_separate_one():
    shared, separate = Policy(make_language_model()), Policy(make_language_model(), separate_critic=True)
    for policy in (shared, separate):
        policy.value_kernel.assign(np.random.default_rng(1).normal(0, 1, [16, 1]))
    assert trunk_gradient(shared) > 0.01
    assert trunk_gradient(shared, trunk_coef=1.0) == pytest.approx(trunk_gradient(shared))
    assert trunk_gradient(shared, trunk_coef=0.0) == 0.0  # critic warm-up
    assert trunk_gradient(separate) == 0.0

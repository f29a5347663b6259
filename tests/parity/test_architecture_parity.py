"""Initialisation and heads: the rows I1 to I8."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from computations import build_learner
from reference_numbers import assert_close, float32

from tfppo.config import PpoConfig, RewardConfig
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.models.reward_model import RewardModel
from tfppo.models.transformer import Transformer
from tfppo.ops.attention import attention_within
from tfppo.ops.logprobs import token_logprobs
from tfppo.ppo.targets import prepare_targets
from tfppo.ppo.types import Rollout
from tfppo.training.replicas import make_strategy

SIZES = dict(num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=32, max_sequence_length=12)
TOKENS = tf.constant(np.random.default_rng(0).integers(1, 20, [3, 8]), tf.int32)
PROMPTS, RESPONSES, ONES = TOKENS[:, :3], TOKENS[:, 3:], tf.ones([3, 5])
BATCH = (PROMPTS, tf.ones_like(PROMPTS), RESPONSES, ONES)


def make_language_model(seed=0):
    rng = np.random.default_rng(seed)
    model = LanguageModel(20, **SIZES)
    model.set_weights([w + rng.normal(0, 0.3, w.shape) for w in model.get_weights()])
    return model


def logits_of(model):
    return model.logits(model.trunk.response_states(*BATCH))


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


def test_I5_an_mlp_value_head_starts_as_linear_layers_of_pytorch_do():
    """Linear(d, 2d), ReLU, Linear(2d, 1): kernels and biases uniform in +- 1 / sqrt(fan_in)."""
    width = 128
    model = LanguageModel(20, **{**SIZES, "hidden_dim": width})
    heads = [Policy(model, mlp_value_head=True, head_seed=(seed, 7)) for seed in range(20)]
    weights = {
        "value_hidden_kernel": ([128, 256], 128),
        "value_hidden_bias": ([256], 128),
        "value_kernel": ([256, 1], 256),
        "value_bias": ([1], 256),
    }
    drawn = {}
    for name, (shape, fan_in) in weights.items():
        assert all(list(getattr(head, name).shape) == shape for head in heads)
        drawn[name] = np.concatenate([np.asarray(getattr(head, name)).ravel() for head in heads]) * fan_in**0.5
        count = drawn[name].size
        assert np.abs(drawn[name]).max() <= 1.0 and len(np.unique(drawn[name])) > 0.9 * count
        assert np.abs(drawn[name]).max() > 1 - 10 / count
        assert abs(drawn[name].mean()) < 4 * (3 * count) ** -0.5
        assert abs(drawn[name].var() - 1 / 3) < 4 * (4 / 45 / count) ** 0.5
    # No weight repeats another's numbers; a seed gives the same ones again.
    starts = [drawn[name][0] for name in weights]
    assert len({f"{start:.5f}" for start in starts}) == len(weights)
    again = Policy(model, mlp_value_head=True, head_seed=(3, 7))
    np.testing.assert_array_equal(again.value_hidden_kernel, heads[3].value_hidden_kernel)


@pytest.mark.parametrize("separate_critic", [False, True])
def test_I5_values_of_an_mlp_head(separate_critic):
    """Against the head in NumPy, on the states of the trunk that it stands on."""
    policy = Policy(make_language_model(), separate_critic, mlp_value_head=True)
    _, values = policy.response_outputs(*BATCH)
    names = ("value_hidden_kernel", "value_hidden_bias", "value_kernel", "value_bias")
    kernel, bias, out_kernel, out_bias = (np.asarray(getattr(policy, name), np.float64) for name in names)
    trunk = policy.critic if separate_critic else policy.language_model.trunk
    states = trunk.response_states(*BATCH).numpy().astype(np.float64)
    hidden = np.einsum("brd,dh->brh", states, kernel) + bias
    assert (hidden < 0).any() and (hidden > 0).any()
    expected = np.einsum("brh,h->br", np.where(hidden > 0, hidden, 0.0), out_kernel[:, 0]) + out_bias[0]
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    assert expected.std() > 0.05
    assert len(policy.critic_variables()) == 4 + (len(policy.critic.variables) if separate_critic else 0)


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


@pytest.mark.parametrize(("num_blocks", "separate_critic"), [(1, False), (2, False), (1, True)])
def test_I5_what_is_frozen_keeps_its_last_bit(num_blocks, separate_critic):
    """After three updates of the top blocks: the reference whole, and in the policy every state below them."""
    sizes, strategy = {**SIZES, "num_layers": 3}, make_strategy(1)
    rng = np.random.default_rng(0)
    with strategy.scope():
        reference = LanguageModel(20, **sizes)
        reference.set_weights([w + rng.normal(0, 0.3, w.shape) for w in reference.get_weights()])
        policy = Policy(LanguageModel.from_config(reference.get_config()), separate_critic)
        policy.language_model.set_weights(reference.get_weights())
        if separate_critic:
            policy.critic.set_weights(reference.get_weights())

    def states(trunk):
        """Of every position: the embedding, and what comes out of the blocks below."""
        found = [trunk.embed(TOKENS, tf.tile(tf.range(8)[None], [3, 1]))]
        for block in trunk.blocks[: 3 - num_blocks]:
            found.append(block.states(found[-1], attention_within(tf.ones_like(TOKENS)), trunk.arithmetic))
        return [state.numpy() for state in found]

    trunks = [policy.language_model.trunk, *([policy.critic] if separate_critic else [])]
    logits, values = policy.response_outputs(*BATCH)
    before, ref_logits = [states(trunk) for trunk in trunks], logits_of(reference).numpy()
    np.testing.assert_array_equal(logits, ref_logits)

    config = PpoConfig(
        rollout_batch_size=3,
        num_minibatches=1,
        ppo_epochs=3,
        learning_rate=1e-2,
        critic="separate" if separate_critic else "shared",
        trainable_blocks=num_blocks,
        jit_compile=False,
    )
    learner = build_learner(policy, config, RewardConfig(), strategy)
    logprobs = token_logprobs(logits, RESPONSES)
    rollout = Rollout(*BATCH, logprobs, values, logprobs, tf.constant([1.0, -2.0, 0.5]), tf.fill([3], False))
    for step in range(3):
        learner.update(rollout, np.array([0, step], np.int32), tf.constant(0.1), tf.constant(1.0))

    np.testing.assert_array_equal(logits_of(reference), ref_logits)
    np.testing.assert_array_equal(before, [states(trunk) for trunk in trunks])
    new_logits, new_values = policy.response_outputs(*BATCH)
    assert np.abs(new_logits - logits).max() > 0.1 and np.abs(new_values).max() > 0.01
    embeddings, ref_embeddings = (model.trunk.embeddings() for model in (policy.language_model, reference))
    for variable, expected in zip(embeddings, ref_embeddings, strict=True):
        np.testing.assert_array_equal(variable, expected)


def test_I6_a_copy_as_the_reference_has_kl_0():
    model = make_language_model()
    policy, reference = Policy(model), LanguageModel.from_config(model.get_config())
    reference.set_weights(model.get_weights())
    logits, values = policy.response_outputs(*BATCH)
    logprobs, ref_logprobs = (token_logprobs(x, RESPONSES, 0.7) for x in (logits, logits_of(reference)))
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

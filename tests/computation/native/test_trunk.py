"""The native training operations against the Keras layers in float32, and a row against itself in other company."""

import hashlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from computations import build_learner
from config_cases import ORIGINAL
from native_support import OPS, needs_bfloat16_ops, ops_of_update

from tfppo.computation.devices import has_fast_bfloat16
from tfppo.computation.native import availability, building
from tfppo.computation.native.trunk import hidden_states
from tfppo.config import PpoConfig, RewardConfig
from tfppo.errors import UserError
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.models.transformer import Transformer
from tfppo.ops.arithmetic import Arithmetic
from tfppo.ops.masking import positions_from_mask
from tfppo.ppo.types import Rollout
from tfppo.training.replicas import make_strategy

PPO = dict(rollout_batch_size=8, total_episodes=8, num_minibatches=2, ppo_epochs=2, learning_rate=1e-2)
pytestmark = needs_bfloat16_ops

# blocks, heads, width, MLP, rows, prompt, response: one of everything; no multiple of the kernels' 12 rows and 32
# columns; heads of odd width; several tiles and panels of every dimension.
SIZES = {
    "one": (1, 1, 16, 16, 1, 2, 1),
    "uneven": (3, 4, 44, 100, 5, 13, 30),
    "odd": (2, 3, 15, 33, 2, 4, 3),
    "large": (2, 3, 96, 200, 3, 40, 60),
}


def make_trunk(num_layers, num_heads, width, inner, positions):
    """A trunk whose norms, biases and matrices all leave their mark."""
    rng = np.random.default_rng(0)
    trunk = Transformer(50, num_layers, num_heads, width, inner, positions)
    for variable in trunk.trainable_variables:
        noise = rng.normal(size=variable.shape)
        if variable.name == "gamma":
            variable.assign(1.0 + 0.3 * noise)
        elif variable.name == "kernel":
            variable.assign(noise * variable.shape[0] ** -0.5)
        else:
            variable.assign(0.3 * noise)
    return trunk


def make_batch(rows, prompt, response):
    """Token ids and a mask: rows of full length, and others with pads on both sides."""
    rng = np.random.default_rng(1)
    mask = np.ones([rows, prompt + response], np.int32)
    for row in range(1, rows):
        mask[row, : rng.integers(0, prompt)] = 0
        mask[row, prompt + rng.integers(0, response + 1) :] = 0
    return tf.constant(rng.integers(0, 50, mask.shape), tf.int32), tf.constant(mask)


def natively(trunk, ids, mask, start):
    return hidden_states(OPS, trunk, ids, mask, positions_from_mask(mask), start)


def states_and_gradients(states_of, trunk, ids, mask, start):
    """Hidden states of the real tokens from `start` on, and the gradients of a weighted sum of them."""
    real = tf.cast(mask, tf.float32)[:, start:, None]
    width = trunk.sizes["hidden_dim"]
    factors = np.random.default_rng(2).normal(size=[*real.shape[:2], width]).astype(np.float32)
    with tf.GradientTape() as tape:
        states = tf.cast(states_of(), tf.float32) * real
        total = tf.reduce_sum(states * factors)
    gradients = tape.gradient(total, [variable.value for variable in trunk.trainable_variables])
    return states.numpy(), [tf.convert_to_tensor(gradient).numpy() for gradient in gradients]


def error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("name", SIZES)
def test_states_and_gradients_are_those_of_the_layers(name):
    *sizes, rows, prompt, response = SIZES[name]
    trunk = make_trunk(*sizes, prompt + response)
    ids, mask = make_batch(rows, prompt, response)
    start = prompt - 1
    layers = states_and_gradients(lambda: trunk(ids, mask, start=start), trunk, ids, mask, start)
    native = states_and_gradients(lambda: natively(trunk, ids, mask, start), trunk, ids, mask, start)
    arithmetic = Arithmetic(dtype="bfloat16")
    rounded = states_and_gradients(
        lambda: trunk.hidden_states(ids, mask, start=start, arithmetic=arithmetic), trunk, ids, mask, start
    )
    # Nearer to float32 than the layers in mixed_bfloat16, whose residual stream is rounded too.
    assert 0 < error(native[0], layers[0]) < min(0.008, error(rounded[0], layers[0]))
    for variable, found, expected, by_layers in zip(
        trunk.trainable_variables, native[1], layers[1], rounded[1], strict=True
    ):
        assert found.shape == expected.shape
        assert error(found, expected) < 0.02, variable.path
        assert error(found, expected) < 1.5 * error(by_layers, expected) + 1e-3, variable.path


def test_what_pads_surround_a_row_and_who_is_beside_it_changes_no_bit():
    trunk = make_trunk(*SIZES["uneven"][:4], 60)
    ids, mask = make_batch(5, 13, 30)
    whole = natively(trunk, ids, mask, 12).numpy()
    assert (whole[np.asarray(mask)[:, 12:] == 0] == 0).all()
    wider = natively(trunk, tf.pad(ids, [[0, 0], [3, 2]], constant_values=7), tf.pad(mask, [[0, 0], [3, 2]]), 15)
    np.testing.assert_array_equal(wider.numpy()[:, :-2], whole)
    alone = natively(trunk, ids[2:4], mask[2:4], 12).numpy()
    np.testing.assert_array_equal(alone, whole[2:4])


def test_a_row_of_pads_alone_is_left_out():
    trunk = make_trunk(*SIZES["uneven"][:4], 60)
    ids, mask = make_batch(3, 13, 30)
    mask = mask * [[1], [0], [1]]
    states, gradients = states_and_gradients(lambda: natively(trunk, ids, mask, 12), trunk, ids, mask, 12)
    assert (states[1] == 0).all() and (states[0] != 0).any()
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def digest():
    """Of states and gradients of a batch that has work for several threads."""
    *sizes, rows, prompt, response = SIZES["large"]
    trunk = make_trunk(*sizes, prompt + response)
    ids, mask = make_batch(rows, prompt, response)
    states, gradients = states_and_gradients(lambda: natively(trunk, ids, mask, 39), trunk, ids, mask, 39)
    return hashlib.sha256(b"".join(part.tobytes() for part in [states, *gradients])).hexdigest()


def make_rollout():
    rng = np.random.default_rng(3)
    prompt_mask = (np.arange(4) >= rng.integers(0, 4, [8, 1])).astype(np.int32)
    mask = (np.arange(5) < rng.integers(1, 6, [8, 1])).astype(np.float32)
    logprobs, values, reference = (rng.normal(-2.0, 0.3, [8, 5]) * mask for _ in range(3))
    ids = rng.integers(2, 24, [8, 9])
    numbers = (mask, logprobs, values, reference, rng.normal(size=8))
    return Rollout(
        tf.constant(ids[:, :4], tf.int32),
        tf.constant(prompt_mask),
        tf.constant(ids[:, 4:], tf.int32),
        *(tf.constant(number, tf.float32) for number in numbers),
        tf.zeros([8], tf.bool),
    )


def weights_after_update(dtype, ops, critic="shared", **changes):
    strategy = make_strategy(1)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        language_model = LanguageModel(24, 2, 2, 16, 32, 16)
        rng = np.random.default_rng(0)
        language_model.set_weights([w + rng.normal(0.0, 0.3, w.shape) for w in language_model.get_weights()])
        policy = Policy(language_model, critic == "separate")
    start = policy.get_weights()
    config = PpoConfig(**{**ORIGINAL, **PPO, "critic": critic, **changes})
    config.validate()
    learner = build_learner(policy, config, RewardConfig(), strategy, 0.7, dtype, ops is not None, ops)
    learner.update(make_rollout(), tf.constant([1, 2]), tf.constant(0.1), tf.constant(1.0))
    assert learner.update.experimental_get_tracing_count() == 1
    flat = [np.concatenate([weight.ravel() for weight in weights]) for weights in (policy.get_weights(), start)]
    return flat[0] - flat[1]


@pytest.mark.parametrize(("critic", "parts"), [("shared", 2), ("separate", 1)])
def test_an_update_is_near_the_one_in_float32(critic, parts):
    sgd_like = dict(critic=critic, adam_epsilon=10.0, learning_rate=10.0)  # Adam's step shows the gradient's size
    exact = weights_after_update("float32", None, jit_compile=False, **sgd_like)
    rough = weights_after_update("mixed_bfloat16", OPS, accumulation_steps=parts, **sgd_like)
    assert 0 < error(rough, exact) < 0.02


def test_ops_are_taken_where_they_help(monkeypatch):
    def taken(dtype="mixed_bfloat16", **changes):
        return ops_of_update(PpoConfig(**PPO, **changes), dtype)

    assert taken() is OPS
    assert taken("float32") is None and taken(native=False) is None
    assert taken(trainable_blocks=1) is None and taken(gradient_checkpointing=True) is None
    assert taken(jit_compile=True) is None  # which asks for XLA; False only says that there is to be none
    assert taken(jit_compile=False) is OPS and taken(jit_compile=False, native=True) is OPS
    monkeypatch.setattr(availability, "has_fast_bfloat16", lambda: False)
    assert taken() is None and taken(native=True) is OPS
    monkeypatch.setattr(building, "load", lambda: (object(), None))  # built for a processor without AVX512_BF16
    with pytest.raises(UserError, match="ppo.native is True.*AVX512_BF16"):
        taken(native=True)
    monkeypatch.setattr(building, "load", lambda: (None, "no compiler"))
    with pytest.raises(UserError, match="ppo.native is True.*no compiler.*CXX"):
        taken(native=True)


def test_this_processor_has_what_the_operations_are_made_of():
    assert has_fast_bfloat16()

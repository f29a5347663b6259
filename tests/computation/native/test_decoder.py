"""The native operations against the policy's own Keras layers, and a row against itself in other company.

Every test holds in float32 and, where the processor multiplies it, in bfloat16."""

import hashlib

import numpy as np
import pytest
import tensorflow as tf
from native_support import OPS, needs_compiler

from tfppo.computation.devices import has_fast_bfloat16
from tfppo.computation.native.decoder import NativePolicy, draw_natively
from tfppo.computation.native.trunk import hidden_states
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.ops.masking import positions_from_mask

pytestmark = needs_compiler
IN_BFLOAT16 = hasattr(OPS, "tfppo_pack")  # built for a processor that multiplies it

# vocabulary, blocks, heads, width, MLP: no multiple of the kernels' 8 or 16 lanes, 8 rows and 64 tokens; then just
# that; then more columns and tokens than one task takes.
SIZES = {"odd": (77, 2, 3, 21, 50), "even": (128, 2, 2, 32, 64), "wide": (200, 1, 2, 160, 1200)}

BATCHES = [(1, 1, False), (5, 7, True), (19, 12, False), (70, 3, True)]  # of each kind of critic, small and large

DTYPES = ["float32", *(["mixed_bfloat16"] if IN_BFLOAT16 else [])]


def test_operations_in_bfloat16_are_there_where_the_processor_multiplies_it():
    assert has_fast_bfloat16() == IN_BFLOAT16


def make_policy(sizes, separate_critic=False, positions=90):
    rng = np.random.default_rng(0)
    policy = Policy(LanguageModel(*sizes, positions), separate_critic)
    width = sizes[3]
    policy.set_weights([rng.normal(0, 1.5 * width**-0.5, weight.shape) for weight in policy.weights])
    return policy


def reader_of(policy, dtype):
    return NativePolicy(policy, OPS, dtype)


def make_prompts(vocabulary_size, batch, length):
    rng = np.random.default_rng(batch)
    mask = (np.arange(length) >= rng.integers(0, length, batch)[:, None]).astype(np.int32)
    return tf.constant(rng.integers(2, vocabulary_size, mask.shape) * mask, tf.int32), tf.constant(mask)


def states(reader, prompts, tokens):
    """Logits and values after the prompts, and after each of tokens [B, S] more."""
    ids, mask = prompts
    slots = ids.shape[1] + tokens.shape[1]
    *first, cache = reader.prefill(ids, mask, slots)
    outputs = [first]
    real = tf.pad(mask, [[0, 0], [0, tokens.shape[1]]], constant_values=1) > 0
    for step in range(tokens.shape[1]):
        index = ids.shape[1] + step
        visible = real & (tf.range(slots) <= index)
        positions = tf.reduce_sum(mask, axis=1) + step
        *outputs_of_step, cache = reader.decode_step(tokens[:, step], positions, index, visible, cache)
        outputs.append(outputs_of_step)
    return [np.stack([np.asarray(part) for part in parts], axis=1) for parts in zip(*outputs, strict=True)]


@pytest.mark.parametrize(("batch", "length", "separate_critic"), BATCHES)
@pytest.mark.parametrize("name", SIZES)
def test_logits_and_values_are_those_of_the_policy(name, batch, length, separate_critic):
    policy = make_policy(SIZES[name], separate_critic)
    prompts = make_prompts(SIZES[name][0], batch, length)
    tokens = tf.constant(np.random.default_rng(1).integers(2, SIZES[name][0], [batch, 3]), tf.int32)
    expected = states(policy, prompts, tokens)
    for found, wanted in zip(states(NativePolicy(policy, OPS, "float32"), prompts, tokens), expected, strict=True):
        assert np.ptp(wanted) > 0.03
        np.testing.assert_allclose(found, wanted, rtol=5e-6, atol=5e-6)


def rounded(array):
    return tf.cast(tf.cast(array, tf.bfloat16), tf.float64).numpy()


@pytest.mark.skipif(not IN_BFLOAT16, reason="the processor does not multiply bfloat16 numbers")
@pytest.mark.parametrize(("batch", "length", "separate_critic"), BATCHES)
@pytest.mark.parametrize("name", SIZES)
def test_in_bfloat16_they_are_those_of_the_update(name, batch, length, separate_critic):
    policy = make_policy(SIZES[name], separate_critic)
    ids, mask = make_prompts(SIZES[name][0], batch, length)
    tokens = tf.constant(np.random.default_rng(1).integers(2, SIZES[name][0], [batch, 4]), tf.int32)
    logits, values = states(reader_of(policy, "mixed_bfloat16"), (ids, mask), tokens)
    exact = states(policy, (ids, mask), tokens)

    real = tf.pad(mask, [[0, 0], [0, 4]], constant_values=1)
    trunk = policy.language_model.trunk
    hidden, critic_hidden = (
        hidden_states(OPS, own, tf.concat([ids, tokens], axis=1), real, positions_from_mask(real), length - 1)
        for own in (trunk, policy.critic or trunk)
    )
    some = np.asarray(mask)[:, -1] > 0  # a prompt of pads alone is no state of the update's
    expected = rounded(hidden) @ rounded(trunk.token_embedding).T
    expected[..., 0] = -1e9
    # Numbers of the two paths differ where float32's rounding decides between two neighbours of bfloat16.
    assert error(logits[some, :, 1:], expected[some, :, 1:]) < 0.3 * error(exact[0][some, :, 1:], expected[some, :, 1:])
    assert error(values[some], policy.values_of(critic_hidden).numpy()[some]) < 2e-3
    assert 0 < error(logits[..., 1:], exact[0][..., 1:]) < 0.01


def error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SIZES)
def test_a_row_is_bit_for_bit_the_same_in_any_batch(name, dtype):
    policy = make_policy(SIZES[name])
    ids, mask = make_prompts(SIZES[name][0], 37, 6)
    tokens = tf.constant(np.random.default_rng(1).integers(2, SIZES[name][0], [37, 2]), tf.int32)
    reader = reader_of(policy, dtype)
    whole = states(reader, (ids, mask), tokens)
    for rows in (slice(0, 1), slice(3, 8), slice(20, 37)):
        part = states(reader, (ids[rows], mask[rows]), tokens[rows])
        np.testing.assert_array_equal(part[0], whole[0][rows])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cache_that_somebody_else_holds_is_not_written_into(dtype):
    policy = make_policy(SIZES["even"])
    ids, mask = make_prompts(SIZES["even"][0], 4, 5)
    reader = reader_of(policy, dtype)
    _, _, cache = reader.prefill(ids, mask, 7)
    before = [array.numpy().tobytes() for array in tf.nest.flatten(cache)]
    visible = tf.ones([4, 7], tf.bool)
    first = reader.decode_step(tf.constant([5] * 4), tf.constant([5] * 4), 5, visible, cache)
    assert [array.numpy().tobytes() for array in tf.nest.flatten(cache)] == before
    reader.decode_step(tf.constant([9] * 4), tf.constant([5] * 4), 5, visible, cache)
    again = reader.decode_step(tf.constant([5] * 4), tf.constant([5] * 4), 5, visible, cache)
    np.testing.assert_array_equal(first[0], again[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cache_without_room_is_refused(dtype):
    policy = make_policy(SIZES["even"])
    prompts = make_prompts(SIZES["even"][0], 4, 5)
    reader = reader_of(policy, dtype)
    _, _, cache = reader.prefill(*prompts, 5)
    with pytest.raises(tf.errors.InvalidArgumentError, match="no slot"):
        reader.decode_step(tf.constant([5] * 4), tf.constant([5] * 4), 5, tf.ones([4, 5], tf.bool), cache)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_to_read_is_refused_and_no_rows_give_none(dtype):
    policy = make_policy(SIZES["even"])
    reader, vocabulary = reader_of(policy, dtype), SIZES["even"][0]
    with pytest.raises(tf.errors.InvalidArgumentError, match="a new token"):
        reader.prefill(tf.zeros([2, 0], tf.int32), tf.zeros([2, 0], tf.int32), 5)
    logits, _, cache = reader.prefill(tf.zeros([0, 3], tf.int32), tf.zeros([0, 3], tf.int32), 5)
    assert logits.shape == [0, vocabulary] and all(part.shape[0] == 0 for part in tf.nest.flatten(cache))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_that_is_not_a_number_shows_in_the_logits(dtype):
    policy = make_policy(SIZES["even"])
    kernel = policy.language_model.trunk.blocks[0].qkv.weights[0]
    kernel.assign(tf.fill(kernel.shape, np.nan))
    logits, _, _ = reader_of(policy, dtype).prefill(*make_prompts(SIZES["even"][0], 4, 5), 6)
    assert np.isnan(logits).all()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_logprob_of_a_draw_is_that_of_float64(temperature):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, [200, 333]).astype(np.float32)
    numbers = rng.random(200).astype(np.float32)
    tokens, logprobs = draw_natively(OPS, temperature, tf.constant(logits), tf.constant(numbers))
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    expected = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(logprobs, expected[np.arange(200), tokens.numpy()], rtol=1e-6, atol=3e-6)


def digest():
    """Of logits, values and draws of a batch that has work for several threads, in both dtypes."""
    policy, prompts = make_policy(SIZES["wide"]), make_prompts(200, 21, 9)
    outputs = [part for dtype in DTYPES for part in states(reader_of(policy, dtype), prompts, tf.fill([21, 2], 7))]
    outputs += draw_natively(OPS, 0.7, tf.constant(outputs[0][:, 0]), tf.linspace(0.0, 0.99, 21))
    return hashlib.sha256(b"".join(np.asarray(part).tobytes() for part in outputs)).hexdigest()

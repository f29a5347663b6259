"""The native operations against the policy's own Keras layers, and a row against itself in other company."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.native import decoder
from tfppo.native.building import native_ops
from tfppo.native.decoder import NativePolicy, draw_natively

OPS = native_ops(True, "float32")

# vocabulary, blocks, heads, width, MLP: no multiple of the kernels' 16 lanes, 8 rows and 64 tokens; then just that;
# then more columns and tokens than one task takes.
SIZES = {"odd": (77, 2, 3, 21, 50), "even": (128, 2, 2, 32, 64), "wide": (200, 1, 2, 160, 1200)}

TOLERANCE = {"vectors": 5e-6, "tiles": 2e-5}


@pytest.fixture(params=TOLERANCE, autouse=True)
def products(request, monkeypatch):
    """What multiplies: every test of this module holds for vectors and, where the processor has them, matrix tiles."""
    if request.param == "tiles" and not hasattr(OPS, "tfppo_pack"):
        pytest.skip("the processor has no matrix tiles")
    monkeypatch.setattr(decoder, "TILES_FROM", 0 if request.param == "tiles" else 1 << 30)
    return request.param


def make_policy(sizes, separate_critic=False, positions=90):
    rng = np.random.default_rng(0)
    policy = Policy(LanguageModel(*sizes, positions), separate_critic)
    width = sizes[3]
    policy.set_weights([rng.normal(0, 1.5 * width**-0.5, weight.shape) for weight in policy.weights])
    return policy


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


@pytest.mark.parametrize("separate_critic", [False, True])
@pytest.mark.parametrize("batch, length", [(1, 1), (5, 7), (19, 12), (70, 3)])
@pytest.mark.parametrize("name", SIZES)
def test_logits_and_values_are_those_of_the_policy(name, batch, length, separate_critic, products):
    policy = make_policy(SIZES[name], separate_critic)
    prompts = make_prompts(SIZES[name][0], batch, length)
    tokens = tf.constant(np.random.default_rng(1).integers(2, SIZES[name][0], [batch, 3]), tf.int32)
    expected = states(policy, prompts, tokens)
    for found, wanted in zip(states(NativePolicy(policy, OPS), prompts, tokens), expected, strict=True):
        assert np.ptp(wanted) > 0.03
        np.testing.assert_allclose(found, wanted, rtol=TOLERANCE[products], atol=TOLERANCE[products])


@pytest.mark.parametrize("name", SIZES)
def test_a_row_is_bit_for_bit_the_same_in_any_batch(name):
    policy = make_policy(SIZES[name])
    ids, mask = make_prompts(SIZES[name][0], 37, 6)
    tokens = tf.constant(np.random.default_rng(1).integers(2, SIZES[name][0], [37, 2]), tf.int32)
    reader = NativePolicy(policy, OPS)
    whole = states(reader, (ids, mask), tokens)
    for rows in (slice(0, 1), slice(3, 8), slice(20, 37)):
        part = states(reader, (ids[rows], mask[rows]), tokens[rows])
        np.testing.assert_array_equal(part[0], whole[0][rows])


def test_a_cache_that_somebody_else_holds_is_not_written_into():
    policy = make_policy(SIZES["even"])
    ids, mask = make_prompts(SIZES["even"][0], 4, 5)
    reader = NativePolicy(policy, OPS)
    _, _, cache = reader.prefill(ids, mask, 7)
    before = [array.numpy() for array in tf.nest.flatten(cache)]
    visible = tf.ones([4, 7], tf.bool)
    reader.decode_step(tf.constant([5] * 4), tf.constant([5] * 4), 5, visible, cache)
    for array, old in zip(tf.nest.flatten(cache), before, strict=True):
        np.testing.assert_array_equal(array[:, :, :5], old[:, :, :5])
        np.testing.assert_array_equal(array[:, :, 5:], old[:, :, 5:])


def test_a_cache_without_room_is_refused():
    policy = make_policy(SIZES["even"])
    prompts = make_prompts(SIZES["even"][0], 4, 5)
    reader = NativePolicy(policy, OPS)
    _, _, cache = reader.prefill(*prompts, 5)
    with pytest.raises(tf.errors.InvalidArgumentError, match="no slot"):
        reader.decode_step(tf.constant([5] * 4), tf.constant([5] * 4), 5, tf.ones([4, 5], tf.bool), cache)


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


THREADS = """
import hashlib, sys
sys.path.insert(0, {folder!r})
import numpy as np, tensorflow as tf
from test_decoder import OPS, SIZES, make_policy, make_prompts, states
from tfppo.native import decoder
from tfppo.native.decoder import NativePolicy
decoder.TILES_FROM = {tiles_from}
policy = make_policy(SIZES["wide"])
prompts = make_prompts(200, 21, 9)
outputs = states(NativePolicy(policy, OPS), prompts, tf.fill([21, 2], 7))
print(hashlib.sha256(outputs[0].tobytes()).hexdigest())
"""


def test_the_number_of_threads_changes_no_bit():
    script = THREADS.format(folder=os.path.dirname(__file__), tiles_from=decoder.TILES_FROM)
    digests = set()
    for threads in ("1", "2", "5"):
        command = [sys.executable, "-c", script]
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        digests.add(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert len(digests) == 1

"""The engine of TensorFlow's operations gives the same where attention goes by blocks and logits by chunks."""

import numpy as np
import pytest
import tensorflow as tf

from tfppo.computation.engine import Loss
from tfppo.computation.graph import GraphEngine
from tfppo.data.packing import PackedSequences
from tfppo.lm.likelihood import negative_log_likelihood
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.ops import attention, chunks, sizes

ROWS, PROMPT, RESPONSE, VOCABULARY = 3, 5, 6, 17


@pytest.fixture(scope="module")
def policy():
    sizes = dict(num_layers=2, num_heads=2, hidden_dim=8, intermediate_dim=16, max_sequence_length=16)
    policy, rng = Policy(LanguageModel(VOCABULARY, **sizes)), np.random.default_rng(0)
    policy.set_weights([weight + rng.normal(0, 0.3, weight.shape) for weight in policy.get_weights()])
    return policy


def batch_of(rng):
    prompt_mask = (np.arange(PROMPT) >= np.array([0, 2, 4])[:, None]).astype(np.int32)
    ids = [rng.integers(1, VOCABULARY, [ROWS, length]).astype(np.int32) for length in (PROMPT, RESPONSE)]
    mask = (np.arange(RESPONSE) < np.array([6, 3, 1])[:, None]).astype(np.float32)
    return [tf.constant(array) for array in (ids[0], prompt_mask, ids[1], mask)]


def figures(policy, engine, *, entropy_learns):
    """Gradients and statistics of a loss; log-probabilities; what sampling starts from."""
    batch, weights = batch_of(np.random.default_rng(1)), np.random.default_rng(2).normal(size=[2, ROWS, RESPONSE])

    def of_tokens(logprobs, entropies, values):
        of_each = weights[0] * tf.exp(logprobs) + 0.5 * weights[1] * entropies + tf.square(values - 1.0)
        return tf.reduce_sum(of_each * batch[3]), (logprobs * batch[3], entropies * batch[3])

    loss = Loss(of_tokens, batch[2], temperature=0.7, entropy_learns=entropy_learns)

    @engine.function
    def update(*batch):
        return engine.gradients(
            policy, policy.trainable_variables, batch, loss, trunk_coef=tf.constant(1.0), places=None
        )

    @engine.function
    def score(*batch):
        hidden = engine.response_states(policy.language_model.trunk, *batch)
        return engine.token_logprobs(policy.language_model, hidden, batch[2], 0.7) * batch[3]

    @engine.piece
    def prefill(*prompts):
        return engine.decoder(policy).prefill(*prompts, PROMPT + 2)[:2]

    found = tf.nest.flatten(update(*batch))
    if not engine.compiled:
        found += [score(*batch), *prefill(*batch[:2])]
    return [tensor.numpy() for tensor in found]


@pytest.fixture
def in_parts(monkeypatch):
    """From now on, blocks of 4 positions and chunks of 5."""
    monkeypatch.setattr(attention, "LENGTH_FOR_BLOCKS", 4)
    monkeypatch.setattr(attention, "BLOCK", 4)
    monkeypatch.setattr(chunks, "LOGITS_AT_ONCE", 5 * VOCABULARY)
    monkeypatch.setattr(sizes, "TILE", 1)

    def refuse(segment_ids):
        raise AssertionError("all scores at once")

    return lambda: monkeypatch.setattr(attention, "WholeAttention", refuse)


@pytest.mark.parametrize(("compiled", "recomputes"), [(False, True), (True, False)])
def test_gradients_and_logprobs_are_the_same_in_parts(policy, monkeypatch, request, compiled, recomputes):
    whole = figures(policy, GraphEngine("float32", compiled=False), entropy_learns=recomputes)
    request.getfixturevalue("in_parts")()
    found_in_parts = figures(policy, GraphEngine("float32", compiled, recomputes), entropy_learns=recomputes)
    # XLA's are those of the update alone: a forward pass of the same pieces is not worth seconds of compiling.
    for expected, found in zip(whole[: len(found_in_parts)], found_in_parts, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6 * max(1.0, np.abs(expected).max()))


def test_the_loss_of_packed_texts_is_the_same_in_parts(policy, request):
    model, rng = policy.language_model, np.random.default_rng(3)
    ids = rng.integers(1, VOCABULARY, [2, 12]).astype(np.int32)
    segments = np.array([[1] * 4 + [2] * 7, [1] * 8 + [0] * 3], np.int32)
    positions = np.array([[*range(4), *range(7)], [*range(8), 0, 0, 0]], np.int32)
    packed = PackedSequences(ids[:, :-1], ids[:, 1:], (segments > 0).astype(np.float32), segments, positions)

    def run(compiled):
        @tf.function(jit_compile=compiled, autograph=False)
        def loss_and_gradients():
            with tf.GradientTape() as tape:
                loss = negative_log_likelihood(model, PackedSequences(*map(tf.constant, packed)))
            return loss, tape.gradient(loss, [variable.value for variable in model.trainable_variables])

        loss, gradients = loss_and_gradients()
        return [loss.numpy(), *(tf.convert_to_tensor(gradient).numpy() for gradient in gradients)]

    whole = run(compiled=False)
    request.getfixturevalue("in_parts")()
    for expected, found in zip(whole, run(compiled=True), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6 * max(1.0, np.abs(expected).max()))

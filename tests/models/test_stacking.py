"""Blocks as a loop over stacked weights give what blocks one after the other give, which others check by hand."""

import functools

import numpy as np
import tensorflow as tf

from tfppo.computation.engine import Loss
from tfppo.computation.graph import GraphEngine
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.models.stacking import through_blocks
from tfppo.models.transformer import Transformer
from tfppo.ops.arithmetic import Arithmetic

NUM_LAYERS, VOCABULARY_SIZE, PROMPT_LENGTH, RESPONSE_LENGTH = 4, 11, 3, 4


@functools.cache
def policy():
    """Four blocks whose weights differ, with two heads of two."""
    rng = np.random.default_rng(0)
    model = LanguageModel(VOCABULARY_SIZE, NUM_LAYERS, 2, 4, 6, PROMPT_LENGTH + RESPONSE_LENGTH)
    model.set_weights([weight + rng.normal(0.0, 0.4, weight.shape) for weight in model.get_weights()])
    made = Policy(model)
    made.value_kernel.assign(rng.normal(0.0, 0.4, made.value_kernel.shape))
    return made


def batch():
    rng = np.random.default_rng(1)
    mask = np.array([[0, 1, 1], [1, 1, 1]], np.int32)
    real = np.array([[1, 1, 0, 0], [1, 1, 1, 1]], np.float32)
    ids = [rng.integers(1, VOCABULARY_SIZE, [2, length]).astype(np.int32) for length in (3, 4)]
    return tuple(map(tf.constant, (ids[0] * mask, mask, ids[1], real)))


def gradients(engine, variables):
    """Of a loss of the log-probabilities and the values, and the compiled function."""

    def of_batch(*batch):
        def of_tokens(logprobs, entropies, values):
            del entropies
            loss = tf.reduce_sum(batch[3] * (tf.square(values - 0.5) - logprobs))
            return loss, loss

        loss = Loss(of_tokens, batch[2], 0.7, False)
        return engine.gradients(policy(), variables, batch, loss, trunk_coef=tf.constant(1.0), places=None)

    function = engine.function(of_batch)
    results, loss = function(*batch())
    return [tensor.numpy() for tensor in results], float(loss), function


@functools.cache
def expected():
    """By the plain graph, of all variables: gradients by the variable's identity, and the loss."""
    variables = policy().trainable_variables
    found, loss, _ = gradients(GraphEngine("float32", compiled=False), variables)
    return dict(zip(map(id, variables), found, strict=True)), loss


def test_gradients_are_the_same():
    variables = policy().trainable_variables
    engine = GraphEngine("float32", compiled=True, fixed_shapes=True)
    found, loss, function = gradients(engine, variables)
    wanted, wanted_loss = expected()
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-6)
    for variable, gradient in zip(variables, found, strict=True):
        assert np.abs(gradient).max() > 1e-3 or "qkv" in variable.path  # a key's bias changes no attention
        np.testing.assert_allclose(gradient, wanted[id(variable)], rtol=2e-5, atol=2e-6, err_msg=variable.path)
    text = str(function.get_concrete_function(*batch()).graph.as_graph_def())
    assert text.count('op: "StatelessWhile"') == 2  # forward and back


def test_no_device_asks_its_host_whether_a_loop_goes_on():
    """The loops know their end, forward and back. Blocks of hardly any arithmetic compile in no time."""
    blocks = policy().language_model.trunk.blocks
    arithmetic = Arithmetic(dtype="float32", recomputes=True).of_program(policy().trainable_variables)

    def step(block, number, x, arithmetic):
        weights = [arithmetic.copies[id(variable)] for variable in block.weights_in_order()]
        return x * tf.add_n([tf.reduce_sum(weight) for weight in weights])

    @tf.function(jit_compile=True, autograph=False)
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.square(through_blocks(blocks, x, step, arithmetic)))
        return tape.gradient(loss, x)

    program = gradient.experimental_get_compiler_ir(tf.ones([2, 3, 4]))(stage="optimized_hlo")
    loops = [line for line in program.splitlines() if " while(" in line]
    assert len(loops) == 2 and all('"known_trip_count":{"n":"4"}' in line for line in loops)


def test_blocks_that_do_not_learn_have_a_loop_without_a_gradient():
    top = policy().top_variables(2)
    found, _, function = gradients(GraphEngine("float32", compiled=True, fixed_shapes=True), top)
    for variable, gradient in zip(top, found, strict=True):
        np.testing.assert_allclose(gradient, expected()[0][id(variable)], rtol=2e-5, atol=2e-6, err_msg=variable.path)
    text = str(function.get_concrete_function(*batch()).graph.as_graph_def())
    assert text.count('op: "StatelessWhile"') == 3  # two below, forward; one of the two above, forward and back


def test_in_bfloat16_they_are_near():
    """As near as those of blocks one after the other in bfloat16, by the norm of all."""
    variables = policy().trainable_variables
    wanted = np.concatenate([expected()[0][id(variable)].ravel() for variable in variables])
    found, _, _ = gradients(GraphEngine("mixed_bfloat16", compiled=True, fixed_shapes=True), variables)
    error = np.concatenate([gradient.astype(np.float32).ravel() for gradient in found]) - wanted
    assert 1e-4 < np.linalg.norm(error) / np.linalg.norm(wanted) < 0.03


def test_each_block_in_a_loop_has_a_dropout_of_its_own():
    weights = policy().language_model.get_weights()
    sizes = policy().language_model.trunk.sizes
    trunk = Transformer(**{**sizes, "dropout": 0.3})
    trunk.set_weights(weights)
    token_ids, seed = tf.constant([[1, 2, 3, 4]]), tf.constant([5, 6])
    plain = Arithmetic(dtype="float32")
    compiled = plain.of_program([])

    @tf.function(jit_compile=True, autograph=False)
    def states(ids, seed):
        return [trunk.hidden_states(ids, dropout_seed=seed, arithmetic=each) for each in (plain, compiled)]

    one_by_one, in_a_loop = states(token_ids, seed)
    np.testing.assert_allclose(in_a_loop, one_by_one, rtol=1e-5, atol=1e-6)
    assert np.abs(in_a_loop - trunk.hidden_states(token_ids)).max() > 1e-2


def test_a_prefill_leaves_the_same_cache():
    prompt_ids, prompt_mask, *_ = batch()
    results = []
    for engine in (GraphEngine("float32", False), GraphEngine("float32", True, fixed_shapes=True)):

        def prefill(engine=engine):
            return engine.decoder(policy()).prefill(prompt_ids, prompt_mask, 6)

        results.append(tf.nest.flatten(engine.piece(prefill)()))
    assert len(results[0]) == len(results[1]) == 2 + 2 * NUM_LAYERS
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)

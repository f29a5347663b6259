"""Gradient checkpointing: what a compiled function holds at a time, and its gradient."""

import re

import numpy as np
import pytest
import tensorflow as tf

from tfppo.ops.recomputing import recomputed

BLOCKS, WIDTH, ROWS = 8, 4, 200_000


def block(x, weights):
    for weight in weights:
        x = tf.tanh(tf.matmul(x, weight))
    return x


def gradients_of(compiled, recomputes):
    weights = [tf.constant(np.random.default_rng(n).normal(size=[WIDTH, WIDTH]), tf.float32) for n in range(3)]

    @tf.function(jit_compile=compiled, autograph=False)
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            y = x
            for _ in range(BLOCKS):
                y = recomputed(block, y, weights, compiled=compiled) if recomputes else block(y, weights)
            loss = tf.reduce_sum(tf.square(y))
        return tape.gradient(loss, weights)

    return run


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_are_the_same(compiled):
    x = tf.constant(np.random.default_rng(9).normal(size=[6, WIDTH]), tf.float32)
    for expected, found in zip(gradients_of(False, False)(x), gradients_of(compiled, True)(x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def most_at_a_time(program, shape):
    """The most arrays of a shape that are live at once, in a compiled program's entry as its operations are ordered."""
    lines = program.split("ENTRY ")[1].splitlines()
    defined, last_use = {}, {}
    for place, line in enumerate(lines):
        match = re.match(r"\s*(?:ROOT )?(%[\w.-]+) = (.*)", line)
        if match is None:
            continue
        name, rest = match.groups()
        kind, _, operands = rest.partition("(%")
        defined[name] = place, kind.count(shape)
        last_use[name] = place
        for operand in re.findall(r"%[\w.-]+", "%" + operands):
            last_use[operand] = place
    return max(
        sum(count for name, (start, count) in defined.items() if start <= place <= last_use[name])
        for place in range(len(lines))
    )


def test_a_compiled_function_holds_the_inputs_of_blocks_and_the_arrays_of_one():
    def held(recomputes):
        ir = gradients_of(True, recomputes).experimental_get_compiler_ir(tf.TensorSpec([ROWS, WIDTH]))
        return most_at_a_time(ir(stage="optimized_hlo"), f"f32[{ROWS},{WIDTH}]")

    assert held(recomputes=False) >= 3 * BLOCKS
    assert held(recomputes=True) <= BLOCKS + 8  # of a block three arrays and their gradients, or copies of them

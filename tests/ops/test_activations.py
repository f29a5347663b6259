"""GELU and its gradient against the formula in float64, in one piece and not."""

import numpy as np
import pytest
import tensorflow as tf

from tfppo.ops.activations import gelu

X = np.array([-6.0, -3.0, -1.0, -0.1, 0.0, 0.1, 0.7, 1.0, 3.0, 6.0])


def formula(x):
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def value_and_gradient(x, compiled):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = gelu(x, compiled=compiled)
    return y, tape.gradient(y, x, tf.constant(3.0, x.dtype, x.shape))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("around", [lambda fn: fn, tf.function, lambda fn: tf.function(fn, jit_compile=True)])
def test_gelu_is_the_formula(compiled, around):
    y, gradient = around(lambda x: value_and_gradient(x, compiled))(tf.constant(X, tf.float32))
    step = 1e-6
    np.testing.assert_allclose(y, formula(X), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        gradient, 3.0 * (formula(X + step) - formula(X - step)) / (2 * step), rtol=1e-5, atol=3e-6
    )


def test_in_one_piece_bfloat16_is_rounded_once():
    x = tf.constant(X, tf.bfloat16)
    y, gradient = value_and_gradient(x, True)
    exact = formula(np.array(tf.cast(x, tf.float32), np.float64))
    assert y.dtype == gradient.dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(y, tf.float32), exact, rtol=2.0**-8, atol=1e-6)

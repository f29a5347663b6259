"""GELU in its tanh form (Hendrycks and Gimpel 2016); optionally one XLA-compiled operation inside a plain graph."""

import math

import tensorflow as tf

_SLOPE = math.sqrt(2.0 / math.pi)
_CUBIC = 0.044715


def gelu(x: tf.Tensor, *, compiled: bool) -> tf.Tensor:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), elementwise.

    Args: x [...]; compiled: whether XLA compiles it as one operation, and its gradient as another one. That leaves two
        passes over the array, where the plain graph makes about a dozen. The graph around may be a plain one.
    Returns [...].
    """
    return _in_one_piece(x) if compiled else tf.nn.gelu(x, approximate=True)


@tf.custom_gradient
def _in_one_piece(x):
    return _value(x), lambda upstream: _gradient(x, upstream)


@tf.function(jit_compile=True, autograph=False)
def _value(x):
    x32 = tf.cast(x, tf.float32)
    return tf.cast(0.5 * x32 * (1.0 + tf.tanh(_SLOPE * (x32 + _CUBIC * x32**3))), x.dtype)


@tf.function(jit_compile=True, autograph=False)
def _gradient(x, upstream):
    x32 = tf.cast(x, tf.float32)
    tanh = tf.tanh(_SLOPE * (x32 + _CUBIC * x32**3))
    inner = _SLOPE * (1.0 + 3.0 * _CUBIC * x32**2)
    derivative = 0.5 * (1.0 + tanh) + 0.5 * x32 * (1.0 - tanh**2) * inner
    return tf.cast(tf.cast(upstream, tf.float32) * derivative, x.dtype)

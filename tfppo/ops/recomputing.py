"""Gradient checkpointing: memory for time (Chen et al. 2016)."""

from collections.abc import Callable

import tensorflow as tf


def recomputed(fn: Callable[..., tf.Tensor], *args: tf.Tensor | list[tf.Tensor], compiled: bool) -> tf.Tensor:
    """fn(*args), of which only the arguments are kept until the gradient; there the rest is computed a second time.

    Args: fn: of nests of tensors, to a tensor; it may read variables, and gives the same for the same arguments. A
        tensor that it captures has no gradient. All that it computes depends on the first tensor. compiled: whether
        XLA compiles the graph.
    Returns: fn(*args).
    """

    @tf.custom_gradient
    def forward(*tensors):
        def backward(upstream, variables=()):
            again = _not_before(upstream, tensors, compiled)
            with tf.GradientTape() as tape:
                tape.watch(again)
                result = fn(*tf.nest.pack_sequence_as(args, again))
            gradients = tape.gradient(result, [*again, *variables], upstream)
            return gradients[: len(again)], gradients[len(again) :]

        return fn(*tf.nest.pack_sequence_as(args, tensors)), backward

    return forward(*tf.nest.flatten(args))


def _not_before(upstream, tensors, compiled):
    """The tensors, but not before `upstream` is there: else the second computation would be merged with the first."""
    if compiled:
        # A barrier is gone by the time that XLA for CPUs orders its operations, and all blocks were computed a second
        # time at once. So the first tensor, on which all the rest depends, gets a 0 added that XLA can't foresee.
        number = tf.reshape(upstream, [-1])[0]
        nothing = tf.cast(tf.math.is_nan(number) & tf.math.is_inf(number), tensors[0].dtype)
        return [tensors[0] + nothing, *tensors[1:]]
    with tf.control_dependencies([upstream]):
        return [tf.identity(tensor) for tensor in tensors]

"""Gradients in two steps, through the outputs of a model, as plain tensors."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

# A nest of tensors that a loss returns beside its value. Its structure depends on the loss.
Statistics = Any


def output_gradients(
    loss_of: Callable, outputs: tuple[tf.Tensor, ...], *, compiled: bool
) -> tuple[tuple[tf.Tensor, ...], Statistics]:
    """Gradients of a loss with respect to the model outputs that it is computed from, and its statistics.

    Args: loss_of: (*outputs) -> (loss, statistics); outputs: tensors; compiled: whether XLA compiles it.
    """

    @tf.function(jit_compile=compiled, autograph=False)
    def differentiated(*outputs):
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            loss, statistics = loss_of(*outputs)
        return tape.gradient(loss, outputs, unconnected_gradients="zero"), statistics

    return differentiated(*outputs)


def dense_gradients(
    tape: tf.GradientTape,
    target: tf.Tensor | tuple[tf.Tensor, ...],
    variables: Sequence[tf.Variable],
    upstream: tuple[tf.Tensor, ...] | None = None,
    copies: Sequence[tf.Tensor | None] = (),
    add_rows: Callable[..., tf.Tensor] | None = None,
) -> list[tf.Tensor]:
    """Gradients as plain tensors, zeros where a variable has no part in the target.

    Args: copies: for each variable, a copy that replaces it in some of its uses, or None; if only the copy has a
        gradient, that keeps the copy's dtype.
        add_rows: as `Kernels.add_rows`, for the gradients of embeddings; None: TensorFlow's own.
    """
    copies = list(copies) or [None] * len(variables)
    held = [copy for copy in copies if copy is not None]
    *gradients, of_copies = tape.gradient(target, [*variables, held], upstream)
    of_copies = iter(of_copies)
    return [
        _dense(variable, gradient, None if copy is None else next(of_copies), add_rows)
        for variable, gradient, copy in zip(variables, gradients, copies, strict=True)
    ]


def _dense(variable, gradient, of_copy, add_rows):
    """The sum of a variable's gradient and its copy's, either of which may be missing."""
    is_of_rows = isinstance(gradient, tf.IndexedSlices)
    if is_of_rows and add_rows is not None:
        others = tf.zeros_like(variable) if of_copy is None else of_copy
        return add_rows(others, gradient.values, gradient.indices)
    if of_copy is None:
        return tf.zeros_like(variable) if gradient is None else tf.convert_to_tensor(gradient)
    if gradient is None:
        return of_copy
    of_copy = tf.cast(of_copy, gradient.dtype)
    if is_of_rows:  # in place: the embedding's is the largest of all
        return tf.tensor_scatter_nd_add(of_copy, gradient.indices[:, None], gradient.values)
    return of_copy + gradient

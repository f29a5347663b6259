"""Norms of gradients and Adam's step through the native operations, each in one pass over memory."""

from collections.abc import Sequence
from types import ModuleType

import tensorflow as tf


def squared_norms(ops: ModuleType, gradients: Sequence[tf.Tensor]) -> tf.Tensor:
    """The sum of squares of each gradient, of float32 or bfloat16: float32 [N]. Args: ops: the loaded operations."""
    return tf.ensure_shape(ops.tfppo_squares(gradients=gradients), [len(gradients)])


def apply_adam(
    ops: ModuleType,
    gradients: Sequence[tf.Tensor],
    variables: Sequence[tf.Variable],
    momentums: Sequence[tf.Variable],
    velocities: Sequence[tf.Variable],
    *,
    scales: tf.Tensor,
    rates: tf.Tensor,
    decays: tf.Tensor,
    beta_1: float,
    beta_2: float,
    epsilon: float | tf.Tensor,
) -> None:
    """Makes a step of Adam: m, v: moving averages of g and g^2; w = w (1 - decay) - rate m / (sqrt(v) + epsilon).

    Args:
        gradients: of float32 or bfloat16, which are multiplied by `scales` [N] first.
        variables, momentums, velocities: N tf.Variables each, w, m and v of the gradients.
        rates, decays: [N]; a rate includes the correction for moments that start at 0.
        beta_1, beta_2: Python numbers; epsilon: a scalar, added to the root of v as it is.
    """
    ops.tfppo_adam(
        scales=scales,
        rates=rates,
        decays=decays,
        epsilon=epsilon,
        gradients=gradients,
        variables=[variable.handle for variable in variables],
        momentums=[variable.handle for variable in momentums],
        velocities=[variable.handle for variable in velocities],
        share1=1.0 - beta_1,
        share2=1.0 - beta_2,
    )

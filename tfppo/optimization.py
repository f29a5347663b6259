"""Optimizer steps that are the same on one replica and many: gradients are summed, then clipped, then applied.

Keras clips each replica's gradients before it sums them, which is another update for every number of replicas. Here
the sum comes first, so the optimizers leave the reducing out.
"""

import keras
import tensorflow as tf


class _GradientsAreReduced:
    """Keeps a Keras optimizer from summing, a second time, gradients that already are the sum over replicas."""

    def _all_reduce_sum_gradients(self, grads_and_vars):
        return list(grads_and_vars)


class Adam(_GradientsAreReduced, keras.optimizers.Adam):
    """Keras' Adam for gradients that are reduced. Its epsilon stands where the Adam paper's epsilon-hat does."""


class AdamW(_GradientsAreReduced, keras.optimizers.AdamW):
    """Keras' AdamW for gradients that are reduced."""


def clip_by_global_norm(gradients, max_norm):
    """Gradients scaled so that their common norm is at most `max_norm` (0: as they are), and the norm before."""
    norm = tf.linalg.global_norm(gradients)
    if not max_norm:
        return gradients, norm
    scale = tf.minimum(1.0, max_norm / tf.maximum(norm, 1e-12))
    return [gradient * scale for gradient in gradients], norm


def gradients_of(loss_fn, variables):
    """Dense gradients of a loss and its statistics: loss_fn() -> (loss, statistics) to (gradients, statistics)."""
    with tf.GradientTape() as tape:
        loss, statistics = loss_fn()
    gradients = tape.gradient(loss, variables)
    return [
        tf.zeros_like(variable) if gradient is None else tf.convert_to_tensor(gradient)
        for gradient, variable in zip(gradients, variables, strict=True)
    ], statistics


def optimize(strategy, optimizer, replica_gradients, args, *, max_grad_norm):
    """One optimizer step over all replicas; skipped on every one of them where a gradient is not finite.

    Call it inside a `tf.function`, in the cross-replica context.
    Args: replica_gradients: (*args) -> (gradients, statistics), a replica's share of both, such that the sums over
        the replicas are what is wanted.
    Returns: the summed statistics, the gradient's norm before clipping, and whether the step was taken.
    """

    def reduced(*args):
        context = tf.distribute.get_replica_context()
        gradients, statistics = context.all_reduce(tf.distribute.ReduceOp.SUM, replica_gradients(*args))
        gradients, norm = clip_by_global_norm(gradients, max_grad_norm)
        return gradients, statistics, norm

    gradients, statistics, norms = strategy.run(reduced, args)
    norm = strategy.experimental_local_results(norms)[0]
    finite = tf.math.is_finite(norm)

    def apply():
        strategy.run(optimizer.apply, (gradients,))
        return tf.constant(0)

    tf.cond(finite, apply, lambda: tf.constant(0))
    first = tf.nest.map_structure(lambda value: strategy.experimental_local_results(value)[0], statistics)
    return first, norm, finite

"""Optimizer steps that are the same on one replica and many: gradients are summed, then clipped, then applied.

Keras clips each replica's gradients before it sums them, which is another update for every number of replicas. Here
the sum comes first, so the optimizers leave the reducing out.
"""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from tfppo.computation.differentiation import Statistics, dense_gradients
from tfppo.computation.engine import Kernels
from tfppo.training.adam import Adam, AdamW, Rest, scaled, step_of_replica
from tfppo.training.buckets import sum_in_buckets
from tfppo.training.replicas import sum_over_replicas

# Lists of indices of the variables whose gradients are clipped by their common norm.
Groups = Sequence[Sequence[int]]


def make_optimizer(
    name: str,
    variables: Sequence[keras.Variable],
    *,
    learning_rate: float,
    beta_1: float,
    beta_2: float,
    epsilon: float,
    weight_decay: float,
    kernels: Kernels | None = None,
    at_once: bool = False,
) -> keras.optimizers.Optimizer:
    """An optimizer by name ("adam" or "adamw"), built for the variables. Vectors and scalars are not decayed.

    Args: kernels: of the engine that makes the gradients; None: TensorFlow's own operations; at_once: whether a step of
        all variables is one program of XLA, for GPUs.
    """
    if name == "adam":
        optimizer = Adam(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon)
    else:
        optimizer = AdamW(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, weight_decay=weight_decay)
        optimizer.exclude_from_weight_decay(var_list=[v for v in variables if len(v.shape) < 2])
    optimizer.kernels, optimizer.at_once = kernels, at_once
    optimizer.build(variables)
    return optimizer


def squared_norms_of(gradients: Sequence[tf.Tensor], kernels: Kernels | None = None) -> tf.Tensor:
    """The sum of squares of each gradient, in float32 whatever their dtype: a list of scalars or a tensor of them.

    Args: kernels: of an engine, which make no copies; None: TensorFlow's own.
    """
    if kernels is not None:
        return kernels.squared_norms(gradients)
    halves: list[tf.Tensor] = []
    for gradient in gradients:
        with tf.control_dependencies(halves[-1:]):  # one after the other: few float32 copies at a time
            halves.append(tf.nn.l2_loss(tf.cast(gradient, tf.float32)))
    return 2.0 * tf.stack(halves)


def clipping_scales(
    gradients: Sequence[tf.Tensor], max_norm: float, groups: Groups | None = None, kernels: Kernels | None = None
) -> tuple[list[tf.Tensor | None], tf.Tensor]:
    """What to multiply gradients by, so that the common norm of each group is at most `max_norm`.

    Args: max_norm: 0 leaves them as they are; groups: lists of indices of gradients; None: all are one group;
        kernels: as of `squared_norms_of`.
    Returns: a scalar or None for each gradient, and the norm of all of them.
    """
    groups = groups or [list(range(len(gradients)))]
    squares = squared_norms_of(gradients, kernels)
    norms = [tf.sqrt(tf.reduce_sum(tf.gather(squares, group))) for group in groups]
    scales: list[tf.Tensor | None] = [None] * len(gradients)
    if max_norm:
        for group, norm in zip(groups, norms, strict=True):
            scale = tf.minimum(1.0, max_norm / tf.maximum(norm, 1e-12))
            for i in group:
                scales[i] = scale
    return scales, tf.norm(tf.stack(norms))


def clip_by_global_norm(
    gradients: Sequence[tf.Tensor], max_norm: float, groups: Groups | None = None
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Gradients in float32, times their `clipping_scales`, and the norm of all of them before."""
    scales, norm = clipping_scales(gradients, max_norm, groups)
    return [scaled(*pair) for pair in zip(gradients, scales, strict=True)], norm


def gradients_of(
    loss_fn: Callable[[], tuple[tf.Tensor, Statistics]], variables: Sequence[keras.Variable]
) -> tuple[list[tf.Tensor], Statistics]:
    """Dense gradients of a loss and its statistics: loss_fn() -> (loss, statistics) to (gradients, statistics)."""
    with tf.GradientTape() as tape:
        loss, statistics = loss_fn()
    return dense_gradients(tape, loss, variables), statistics


def sum_over_parts(
    of_part: Callable[[int], tuple[list[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]], num_parts: int
) -> tuple[list[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Gradients and statistics of parts of a batch, added up; the largest errors among them.

    Args: of_part: number -> (gradients, (sums, largest error)).
    """
    gradients, (sums, error) = of_part(0)
    for number in range(1, num_parts):
        with tf.control_dependencies(gradients):  # one after the other: together they would need all the memory
            more, (more_sums, more_error) = of_part(number)
        gradients = [
            tf.cast(total, tf.float32) + tf.cast(gradient, tf.float32)
            for total, gradient in zip(gradients, more, strict=True)
        ]
        sums, error = sums + more_sums, tf.maximum(error, more_error)
    return gradients, (sums, error)


def _summed(gradients, statistics, optimizer):
    """Gradients and statistics, summed over all replicas in a few large vectors. The statistics go along at the end."""
    for gradient, variable in zip(gradients, optimizer.variables_in_order(), strict=True):
        gradient.set_shape(variable.shape)  # which an engine's operation may not tell
    figures = tf.nest.flatten(statistics)
    totals = sum_in_buckets(sum_over_replicas, [*gradients, *figures])
    return totals[: len(gradients)], tf.nest.pack_sequence_as(statistics, totals[len(gradients) :])


def optimize(
    strategy: tf.distribute.Strategy,
    optimizer: keras.optimizers.Optimizer,
    replica_gradients: Callable[..., tuple[list[tf.Tensor], Statistics]],
    args: tuple,
    *,
    max_grad_norm: float,
    groups: Groups | None = None,
    stop_when: Callable[[Statistics], bool | tf.Tensor] = lambda statistics: False,
    rest: Rest | None = None,
) -> tuple[Statistics, tf.Tensor, tf.Tensor, tf.Tensor]:
    """One optimizer step over all replicas; left out on every one of them where a gradient is not finite.

    Call it inside a `tf.function`, in the cross-replica context.
    Args:
        replica_gradients: (*args) -> (gradients, statistics), a replica's share of both, such that the sums over the
            replicas are what is wanted.
        groups: lists of indices of the variables that are clipped together; None: all.
        stop_when: the summed statistics -> whether the step is to be left out.
        rest: of the variables that may; see `Rest`.
    Returns: the summed statistics, the gradient's norm before clipping, whether the step was taken, and what
        `stop_when` said.
    """

    kernels = optimizer.kernels
    alone = strategy.num_replicas_in_sync == 1
    scaled_when_applied = alone or kernels is not None or optimizer.at_once

    def reduced(*args):
        gradients, statistics = replica_gradients(*args)
        if not alone:
            gradients, statistics = _summed(gradients, statistics, optimizer)
        if scaled_when_applied:
            scales, norm = clipping_scales(gradients, max_grad_norm, groups, kernels)
        else:
            (gradients, norm), scales = clip_by_global_norm(gradients, max_grad_norm, groups), None
        return gradients, scales, statistics, norm

    gradients, scales, statistics, norms = strategy.run(reduced, args)
    norm, *_ = strategy.experimental_local_results(norms)
    statistics = tf.nest.map_structure(lambda value: strategy.experimental_local_results(value)[0], statistics)
    stopped = tf.convert_to_tensor(stop_when(statistics))
    taken = tf.math.is_finite(norm) & ~stopped

    step = _step_without_a_branch if optimizer.at_once else _step_in_a_branch
    step(strategy, optimizer, gradients, scales, taken, rest)
    return statistics, norm, taken, stopped


def _step_without_a_branch(strategy, optimizer, gradients, scales, taken, rest):
    """Whether it is taken is a part of the step."""
    rests = rest and (rest.now, rest.steps)
    # Not the program itself, which a strategy would compile around all replicas at once.
    strategy.run(lambda *args: step_of_replica(optimizer, *args), (gradients, scales, taken, rests))


def _step_in_a_branch(strategy, optimizer, gradients, scales, taken, rest):
    """Args: scales: None: the gradients are clipped already."""

    def apply():
        with optimizer.resting(rest):
            if scales is None:
                strategy.run(optimizer.apply, (gradients,))
            else:
                strategy.run(optimizer.apply_scaled, (gradients, scales))
        return tf.constant(0)

    tf.cond(taken, apply, lambda: tf.constant(0))

"""Optimizer steps inside of one program that XLA compiles: no branch, no wait for the host, no copy between steps.

On a GPU a step of small operations takes as long as it takes to launch them. One program launches a few, and the steps
of a whole update follow each other on the device.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfppo.computation.differentiation import Statistics
from tfppo.training.adam import Rest
from tfppo.training.optimization import Groups, clipping_scales, optimize


class Program:
    """A function as one program of XLA, on the only replica of a strategy: nests of tensors to a nest of tensors.

    Call it inside a `tf.function`, in the cross-replica context.
    """

    def __init__(self, strategy: tf.distribute.Strategy, function: Callable[..., Any]):
        self._strategy = strategy
        # Inside of `strategy.run`, where a variable is the one of this replica; XLA cannot compile what is around that.
        self.compiled = tf.function(function, jit_compile=True, autograph=False)

    def __call__(self, *args: Any) -> Any:
        """The function's results."""
        results = self._strategy.run(self.compiled, args)
        return tf.nest.map_structure(lambda value: self._strategy.experimental_local_results(value)[0], results)


def optimize_at_once(
    optimizer: keras.optimizers.Optimizer,
    gradients_of: Callable[..., tuple[list[tf.Tensor], Statistics]],
    args: tuple,
    *,
    max_grad_norm: float,
    groups: Groups | None = None,
    stop_when: Callable[[Statistics], bool | tf.Tensor] = lambda statistics: False,
    rest: Rest | None = None,
) -> tuple[Statistics, tf.Tensor, tf.Tensor, tf.Tensor]:
    """One optimizer step as a part of a program; the arguments and results are those of `optimization.optimize`."""
    gradients, statistics = gradients_of(*args)
    scales, norm = clipping_scales(gradients, max_grad_norm, groups)
    stopped = tf.convert_to_tensor(stop_when(statistics))
    taken = tf.math.is_finite(norm) & ~stopped
    with optimizer.resting(rest):
        optimizer.step_at_once(gradients, scales, taken)
    return statistics, norm, taken, stopped


def optimizer_step(
    strategy: tf.distribute.Strategy,
    optimizer: keras.optimizers.Optimizer,
    gradients_of: Callable[..., tuple[list[tf.Tensor], Statistics]],
    *,
    max_grad_norm: float,
) -> Callable[..., tuple[Statistics, tf.Tensor, tf.Tensor, tf.Tensor]]:
    """A function of one optimizer step: the arguments of `gradients_of` to the results of `optimization.optimize`.

    With an optimizer that steps `at_once`, on one replica, all of it is one program.
    """

    def at_once(*args):
        return optimize_at_once(optimizer, gradients_of, args, max_grad_norm=max_grad_norm)

    def by_strategy(*args):
        return optimize(strategy, optimizer, gradients_of, args, max_grad_norm=max_grad_norm)

    is_program = optimizer.at_once and strategy.num_replicas_in_sync == 1
    return Program(strategy, at_once) if is_program else by_strategy


def sum_in_a_loop(
    of_part: Callable[[tf.Tensor], tuple[list[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]],
    num_parts: int,
    variables: Sequence[tf.Variable],
    num_statistics: int,
) -> tuple[list[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """As `optimization.sum_over_parts`, by one computation in a loop: XLA compiles that once, however many parts.

    Args: of_part: number int32 [] -> (gradients, ([num_statistics] sums, largest error)).
    """
    if num_parts == 1:
        return of_part(tf.constant(0))

    def add(number, totals, sums, error):
        gradients, (more_sums, more_error) = of_part(number)
        totals = [total + tf.cast(gradient, tf.float32) for total, gradient in zip(totals, gradients, strict=True)]
        return number + 1, totals, sums + more_sums, tf.maximum(error, more_error)

    start = tf.constant(0), [tf.zeros(v.shape) for v in variables], tf.zeros([num_statistics]), tf.constant(0.0)
    _, totals, sums, error = tf.while_loop(lambda number, *_: number < num_parts, add, start)
    return totals, (sums, error)

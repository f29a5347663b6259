"""Optimizer steps inside of one program that XLA compiles: no branch, no wait for the host, no copy between steps.

On a GPU a step of small operations takes as long as it takes to launch them. One program launches a few, and the steps
of a whole update follow each other on the device.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfppo.computation.devices import has_gpu
from tfppo.computation.differentiation import Statistics
from tfppo.models.transformer import Transformer
from tfppo.ops.arithmetic import Arithmetic
from tfppo.training.adam import Rest, Stack
from tfppo.training.optimization import Groups, clipping_scales, optimize


class CompiledProgram:
    """A function as one program of XLA, on the only replica of a strategy: nests of tensors to a nest of tensors.

    Call it inside a `tf.function`, in the cross-replica context.
    """

    def __init__(self, strategy: tf.distribute.Strategy, function: Callable[..., Any]):
        self._strategy = strategy
        # Inside of `strategy.run`, where a variable is the one of this replica; XLA cannot compile what is around that.
        self.compiled = tf.function(function, jit_compile=True, autograph=False)

    def __call__(self, *args: Any) -> Any:
        """The function's results."""
        results = self._strategy.run(lambda *inner: self.compiled(*inner), args)
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
    stacks: Sequence[Stack] = (),
) -> tuple[tuple[Statistics, tf.Tensor, tf.Tensor, tf.Tensor], list[Stack]]:
    """One optimizer step as a part of a program.

    Args:
        stacks: of variables, whose gradients come first; `groups` is of the order of the gradients.
        others: those of `optimization.optimize`.
    Returns: the results of `optimization.optimize`, and the stacks after the step.
    """
    gradients, statistics = gradients_of(*args)
    scales, norm = clipping_scales(gradients, max_grad_norm, groups)
    stopped = tf.convert_to_tensor(stop_when(statistics))
    taken = tf.math.is_finite(norm) & ~stopped
    with optimizer.resting(rest):
        after = optimizer.step_at_once(gradients, scales, taken, stacks)
    return (statistics, norm, taken, stopped), after


class Steps:
    """The optimizer steps of an update, one by one on all replicas.

    Args: gradients_of: (*args) -> a replica's share of gradients and statistics; settings: as for `optimize`.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        optimizer: keras.optimizers.Optimizer,
        gradients_of: Callable[..., tuple[list[tf.Tensor], Statistics]],
        **settings: Any,
    ):
        self._strategy, self._optimizer, self._gradients_of = strategy, optimizer, gradients_of
        self._settings = settings

    def start(self) -> list[tuple[tf.Tensor, ...]]:
        """What goes from step to step."""
        return []

    def step(self, state: list, args: tuple, rest: Rest) -> tuple[tuple, list]:
        """One step: the results of `optimize`, and what goes on to the next."""
        results = optimize(self._strategy, self._optimizer, self._gradients_of, args, rest=rest, **self._settings)
        return results, state

    def finish(self, state: list) -> None:
        """Ends the steps."""


class StackedSteps:
    """As `Steps`, within a program. What blocks have alike is one tensor from the first step to the last.

    XLA then compiles, and a GPU launches, as much for many blocks as for two. The stacked variables and moments are in
    memory twice for the time of the program.

    Args:
        gradients_of: (stacked, variables, *args) -> as of `Steps`; the first two are those of `GraphEngine.gradients`.
        alike: variables of several blocks each.
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        gradients_of: Callable[..., tuple[list[tf.Tensor], Statistics]],
        alike: Sequence[tuple[keras.Variable, ...]],
        *,
        groups: Groups,
        **settings: Any,
    ):
        self._optimizer, self._gradients_of, self._alike = optimizer, gradients_of, alike
        variables = optimizer.variables_in_order()
        stacked = {id(variable) for each in alike for variable in each}
        self._singles = [variable for variable in variables if id(variable) not in stacked]
        place = {id(variable): i for i, variable in enumerate([*(each[0] for each in alike), *self._singles])}
        self._groups = [[place[id(variables[i])] for i in group if id(variables[i]) in place] for group in groups]
        self._settings = settings

    def start(self) -> list[tuple[tf.Tensor, ...]]:
        """The stacks: a triple for each of `alike`."""
        return [self._optimizer.stack_of(each).tensors for each in self._alike]

    def step(self, state: list, args: tuple, rest: Rest) -> tuple[tuple, list]:
        """One step: the results of `optimize`, and the stacks after it."""
        stacks = [Stack(*pair) for pair in zip(self._alike, state, strict=True)]
        stacked = [(stack.variables, stack.tensors[0]) for stack in stacks]
        results, stacks = optimize_at_once(
            self._optimizer,
            partial(self._gradients_of, stacked, self._singles),
            args,
            groups=self._groups,
            rest=rest,
            stacks=stacks,
            **self._settings,
        )
        return results, [stack.tensors for stack in stacks]

    def finish(self, state: list) -> None:
        """Writes the stacks into the variables and their moments."""
        for alike, tensors in zip(self._alike, state, strict=True):
            self._optimizer.assign_stack(Stack(alike, tensors))


class Compilation(NamedTuple):
    """What XLA compiles of a step: its gradients, and whether all of it is one program, which is for GPUs."""

    gradients: bool
    step: bool

    def arithmetic_of(self, trunk: Transformer, variables: Sequence[keras.Variable]) -> Arithmetic | None:
        """The trunk's, with blocks in a loop where a step is one program: it compiles as fast whatever the depth.

        Args: variables: those that learn. Returns: None where the trunk's own will do.
        """
        return trunk.arithmetic.of_program(variables) if self.step else None


def compilation(jit_compile: bool | None = None) -> Compilation:
    """On a GPU all of a step, as launches would take longer than it does. Args: jit_compile: None: on GPUs."""
    gradients = has_gpu() if jit_compile is None else jit_compile
    return Compilation(gradients, gradients and has_gpu())


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
        return optimize_at_once(optimizer, gradients_of, args, max_grad_norm=max_grad_norm)[0]

    def by_strategy(*args):
        return optimize(strategy, optimizer, gradients_of, args, max_grad_norm=max_grad_norm)

    is_program = optimizer.at_once and strategy.num_replicas_in_sync == 1
    return CompiledProgram(strategy, at_once) if is_program else by_strategy


def sum_in_a_loop(
    of_part: Callable[[tf.Tensor], tuple[list[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]],
    num_parts: int,
    like: Sequence[tf.Tensor | tf.Variable],
    num_statistics: int,
) -> tuple[list[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """As `optimization.sum_over_parts`, by one computation in a loop: XLA compiles that once, however many parts.

    Args: of_part: number int32 [] -> (gradients, ([num_statistics] sums, largest error)); like: of the shapes of the
        gradients.
    """
    if num_parts == 1:
        return of_part(tf.constant(0))

    def add(number, totals, sums, error):
        gradients, (more_sums, more_error) = of_part(number)
        totals = [total + tf.cast(gradient, tf.float32) for total, gradient in zip(totals, gradients, strict=True)]
        return number + 1, totals, sums + more_sums, tf.maximum(error, more_error)

    start = tf.constant(0), [tf.zeros(each.shape) for each in like], tf.zeros([num_statistics]), tf.constant(0.0)
    _, totals, sums, error = tf.while_loop(lambda number, *_: number < num_parts, add, start)
    return totals, (sums, error)

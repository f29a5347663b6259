"""Adam as one pass over a variable and its moments, of gradients that are summed over replicas already."""

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import keras
import tensorflow as tf

from tfppo.computation.engine import Kernels


@dataclass(frozen=True)  # no tuple, which Keras would take for a part of the optimizer's state
class Rest:
    """Whether the variables that may rest do so in a step, while the others learn, and how often they have before.

    A variable at rest keeps its numbers and moments to the last bit, decay included, and does not count the step:
    Adam's correction for moments that start at 0 goes by the steps that a variable has made itself.
    """

    now: tf.Tensor  # bool []
    steps: tf.Tensor  # int [], steps so far in which they rested


class _Scaling:
    """Scales of all gradients of a step, and the update of the last variable, which the next waits for.

    Not a list, for the same reason.
    """

    def __init__(self, scales: Sequence[tf.Tensor | None]):
        self.scales = scales
        self.last: tuple[tf.Operation, ...] = ()


class _Numbers(NamedTuple):
    """What TensorFlow's kernel wants to know besides a variable, its moments and its gradient: scalars, float32."""

    rate: tf.Tensor
    beta_1: float | tf.Tensor
    beta_2: float | tf.Tensor
    beta_1_power: tf.Tensor
    beta_2_power: tf.Tensor
    epsilon: float | tf.Tensor


class Stack(NamedTuple):
    """Variables of one kind and shape and their moments, each as one tensor."""

    variables: Sequence[keras.Variable]
    tensors: tuple[tf.Tensor, tf.Tensor, tf.Tensor]  # variables, momentums, velocities


class _FusedAdam(keras.optimizers.Adam):
    """Adam's step as one pass over a variable and its moments, of gradients that are summed over replicas already.

    Keras would sum them a second time, and make a dozen passes. Some variables may learn at another rate. With an
    engine's `kernels`, one operation makes the step of all variables; with `at_once`, one program of XLA.
    """

    kernels: Kernels | None = None
    at_once = False
    _rate_scales: dict[int, float] | None = None
    _scaling: _Scaling | None = None
    _may_rest: frozenset[int] = frozenset()
    _rest: Rest | None = None

    def let_rest(self, variables):
        """These variables are those that a `Rest` is about."""
        self._may_rest = frozenset(self._get_variable_index(variable) for variable in variables)

    @contextmanager
    def resting(self, rest: Rest | None) -> Iterator[None]:
        """Steps within it are made by `rest`; None: all variables learn, and have always learnt."""
        self._rest = rest
        try:
            yield
        finally:
            self._rest = None

    def scale_learning_rate(self, variables, scale):
        """These variables learn, and decay, at `scale` times the learning rate."""
        mine = {self._get_variable_index(variable): scale for variable in variables}
        self._rate_scales = {**(self._rate_scales or {}), **mine}

    def apply_scaled(self, gradients, scales):
        """Applies gradients, of any float dtype, times scales (None: as they are), one variable after the other.

        There is then at most one float32 copy of a gradient at a time, and it is still in the processor's cache when
        Adam reads it. Without `kernels` this works on one replica only.
        """
        self._scaling = _Scaling(scales)
        try:
            self.apply(gradients)
        finally:
            self._scaling = None

    def step_at_once(
        self,
        gradients: Sequence[tf.Tensor],
        scales: Sequence[tf.Tensor | None],
        taken: tf.Tensor,
        stacks: Sequence[Stack] = (),
    ) -> list[Stack]:
        """The step of all variables as plain arithmetic, for XLA to compile; no number changes where it isn't taken.

        A choice for every number costs nothing, as all of them are read anyway; a branch would wait for the host. Call
        it in a function that XLA compiles, inside of `strategy.run`.
        Args:
            gradients, scales: as of `apply_scaled`: of the stacks first, then of the variables that are in none.
            taken: bool [].
            stacks: of variables, which stay as they are.
        Returns: the stacks after the step.
        """
        numbers = self._numbers(range(len(self._trainable_variables)), self.learning_rate)
        stacked = {id(variable) for stack in stacks for variable in stack.variables}
        others = [variable for variable in self._trainable_variables if id(variable) not in stacked]
        singles = [self.stack_of([variable], operator.itemgetter(0)) for variable in others]
        after = []
        for stack, gradient, scale in zip([*stacks, *singles], gradients, scales, strict=True):
            after.append(self._stepped(stack, scaled(gradient, scale), numbers, taken))
        for stack in after[len(stacks) :]:
            self.assign_stack(stack, lambda tensor, number: tensor)
        count = tf.convert_to_tensor(self.iterations.value)
        _assign(self.iterations, tf.where(taken, count + 1, count))
        return after[: len(stacks)]

    def _stepped(self, stack, gradient, numbers, taken):
        mine = numbers[self._kind_of(self._get_variable_index(stack.variables[0]))]
        old, old_m, old_v = stack.tensors
        m = old_m + (gradient - old_m) * (1.0 - mine.beta_1)
        v = old_v + (tf.square(gradient) - old_v) * (1.0 - mine.beta_2)
        decayed = old - old * self.weight_decay * mine.rate if self._decays(stack.variables[0]) else old
        rate = mine.rate * tf.sqrt(1.0 - mine.beta_2_power) / (1.0 - mine.beta_1_power)
        new = decayed - rate * m / (tf.sqrt(v) + mine.epsilon)
        chosen = (tf.where(taken, *pair) for pair in ((new, old), (m, old_m), (v, old_v)))
        return Stack(stack.variables, tuple(chosen))

    def variables_in_order(self) -> list[keras.Variable]:
        """Those that it was built for."""
        return list(self._trainable_variables)

    def stack_of(self, variables: Sequence[keras.Variable], together: Callable = tf.stack) -> Stack:
        """Variables and their moments as three tensors. Args: together: [tensors] -> tensor."""
        return Stack(
            variables, tuple(together([tf.convert_to_tensor(v.value) for v in each]) for each in self._kept(variables))
        )

    def assign_stack(self, stack: Stack, take: Callable = operator.getitem) -> None:
        """Assigns a stack to its variables and moments. Args: take: (tensor, number) -> tensor of a variable."""
        for tensor, variables in zip(stack.tensors, self._kept(stack.variables), strict=True):
            for number, variable in enumerate(variables):
                _assign(variable, take(tensor, number))

    def _kept(self, variables):
        """Variables, their momentums and their velocities."""
        indices = [self._get_variable_index(variable) for variable in variables]
        return variables, *([moments[i] for i in indices] for moments in (self._momentums, self._velocities))

    def update_step(self, gradient, variable, numbers):
        """One variable's step. Args: numbers: what `_numbers` returned, where Keras has the learning rate."""
        index = self._get_variable_index(variable)
        scaling = self._scaling
        if scaling is not None:
            with tf.control_dependencies(scaling.last):
                gradient = scaled(gradient, scaling.scales[index])
        mine = numbers[self._kind_of(index)]
        if self._decays(variable):
            variable.assign_sub(variable * self.weight_decay * mine.rate)
        applied = tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=mine.beta_1_power,
            beta2_power=mine.beta_2_power,
            lr=mine.rate,
            beta1=mine.beta_1,
            beta2=mine.beta_2,
            epsilon=mine.epsilon,
            grad=gradient,
        )
        if scaling is not None and not tf.executing_eagerly():
            scaling.last = (applied,)

    def _kind_of(self, index):
        """Variables of one kind share their `_Numbers`: whether a `Rest` is about them, and the scale of their rate."""
        return self._rest is not None and index in self._may_rest, self._scale_of(index)

    def _numbers(self, indices, learning_rate):
        """The `_Numbers` of each kind of variables, made once: having them for each variable makes tracing slow."""
        return {kind: self._numbers_of(learning_rate, *kind) for kind in {self._kind_of(index) for index in indices}}

    def _numbers_of(self, learning_rate, may_rest, scale):
        rest = self._rest if may_rest else None
        rate, betas = tf.cast(learning_rate, tf.float32) * scale, (self.beta_1, self.beta_2)
        if rest is not None:  # shares of 0 in the moments, and a rate of 0
            rate = tf.where(rest.now, 0.0, rate)
            betas = tuple(tf.where(rest.now, 1.0, beta) for beta in betas)
        step = self._step_by(rest)
        powers = tf.pow(self.beta_1, step), tf.pow(self.beta_2, step)
        return _Numbers(rate, *betas, *powers, self._kernel_epsilon(1.0 - powers[1]))

    def _step_by(self, rest):
        """The number of the step that variables make, float32. Args: rest: None for those that never rest."""
        step = self.iterations + 1
        return tf.cast(step if rest is None else step - tf.cast(rest.steps, step.dtype), tf.float32)

    def _backend_update_step(self, gradients, variables, learning_rate):
        """The steps of all variables: with `kernels` in one operation, on each replica separately."""
        kernels = self.kernels
        if kernels is None:
            numbers = self._numbers([self._get_variable_index(variable) for variable in variables], learning_rate)
            super()._backend_update_step(gradients, variables, numbers)
            return
        scales = self._scaling.scales if self._scaling else [None] * len(variables)
        steps = [
            (self._get_variable_index(variable), variable, gradient, 1.0 if scale is None else scale)
            for variable, gradient, scale in zip(variables, gradients, scales, strict=True)
        ]
        rest = self._rest
        if rest is None:
            self._step_natively(kernels, steps, learning_rate)
            return
        self._step_natively(kernels, [step for step in steps if step[0] not in self._may_rest], learning_rate)
        others = [step for step in steps if step[0] in self._may_rest]

        def step_others():
            self._step_natively(kernels, others, learning_rate, rest)
            return tf.constant(0)

        tf.cond(rest.now, lambda: tf.constant(0), step_others)

    def _step_natively(self, kernels, steps, learning_rate, rest=None):
        """One operation for some variables. Args: steps: (index, variable, gradient, scale) of each."""
        indices, variables, gradients, scales = zip(*steps, strict=True)
        rates = tf.cast(learning_rate, tf.float32) * tf.constant([self._scale_of(index) for index in indices])
        decays = [self.weight_decay if self._decays(variable) else 0.0 for variable in variables]
        step = self._step_by(rest)
        corrections = [_bias_correction(beta, step) for beta in (self.beta_1, self.beta_2)]
        kernels.apply_adam(
            gradients,
            [variable.value if isinstance(variable, keras.Variable) else variable for variable in variables],
            [self._momentums[index].value for index in indices],
            [self._velocities[index].value for index in indices],
            scales=tf.stack(scales),
            rates=rates * tf.sqrt(corrections[1]) / corrections[0],
            decays=rates * decays,
            beta_1=self.beta_1,
            beta_2=self.beta_2,
            epsilon=self._kernel_epsilon(corrections[1]),
        )

    def _scale_of(self, index):
        """Of the learning rate."""
        return (self._rate_scales or {}).get(index, 1.0)

    def _decays(self, variable):
        return self.weight_decay is not None and self._use_weight_decay(variable)

    def _apply_weight_decay(self, variables):
        """Does nothing: `update_step` decays each variable, at its own rate."""

    def _kernel_epsilon(self, correction):
        """The epsilon for the kernel, which computes TensorFlow's form of Adam. Args: correction: 1 - beta_2^step."""
        del correction
        return self.epsilon

    def _all_reduce_sum_gradients(self, grads_and_vars):
        return list(grads_and_vars)


def _bias_correction(beta, step):
    """1 - beta^step in float32, of which powers in float32 would leave few digits."""
    return -tf.math.expm1(step * (math.log(beta) if beta else -math.inf))


class Adam(_FusedAdam, keras.optimizers.Adam):
    """Keras' Adam, which is TensorFlow's form of it: its epsilon is the Adam paper's epsilon-hat."""


class AdamW(_FusedAdam, keras.optimizers.AdamW):
    """AdamW (Loshchilov and Hutter 2019) in PyTorch's form: m_hat / (sqrt(v_hat) + epsilon).

    The bias corrections come before epsilon is added: for small gradients a larger step than that of TensorFlow's form.
    """

    def _kernel_epsilon(self, correction):
        # sqrt(v_hat) + epsilon = (sqrt(v) + epsilon * sqrt(1 - b2^t)) / sqrt(1 - b2^t)
        return self.epsilon * tf.sqrt(correction)


def _assign(variable, value):
    """Assigns to the variable of this replica."""
    tf.raw_ops.AssignVariableOp(resource=variable.value.handle, value=value)


def scaled(gradient: tf.Tensor, scale: tf.Tensor | None) -> tf.Tensor:
    """A gradient in float32 times a scalar (None: as it is)."""
    gradient = tf.cast(gradient, tf.float32)
    return gradient if scale is None else gradient * scale


@tf.function(jit_compile=True, autograph=False)
def step_of_replica(
    optimizer: _FusedAdam,
    gradients: Sequence[tf.Tensor],
    scales: Sequence[tf.Tensor | None],
    taken: tf.Tensor,
    rest: tuple[tf.Tensor, tf.Tensor] | None,
) -> None:
    """`step_at_once` as a program of its own, for each of several replicas. Args: rest: what a `Rest` is made of."""
    with optimizer.resting(rest and Rest(*rest)):
        optimizer.step_at_once(gradients, scales, taken)

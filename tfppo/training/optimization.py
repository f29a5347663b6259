"""Optimizer steps that are the same on one replica and many: gradients are summed, then clipped, then applied.

Keras clips each replica's gradients before it sums them, which is another update for every number of replicas. Here
the sum comes first, so the optimizers leave the reducing out.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import keras
import tensorflow as tf

from tfppo.computation.differentiation import Statistics, dense_gradients
from tfppo.computation.engine import Kernels
from tfppo.training.buckets import sum_in_buckets
from tfppo.training.replicas import sum_over_replicas

# Lists of indices of the variables whose gradients are clipped by their common norm.
Groups = Sequence[Sequence[int]]


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


class _FusedAdam(keras.optimizers.Adam):
    """Adam's step as one pass over a variable and its moments, of gradients that are summed over replicas already.

    Keras would sum them a second time, and make a dozen passes. Some variables may learn at another rate. With an
    engine's `kernels`, one operation makes the step of all variables.
    """

    kernels: Kernels | None = None
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
) -> keras.optimizers.Optimizer:
    """An optimizer by name ("adam" or "adamw"), built for the variables. Vectors and scalars are not decayed.

    Args: kernels: of the engine that makes the gradients; None: TensorFlow's own operations.
    """
    if name == "adam":
        optimizer = Adam(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon)
    else:
        optimizer = AdamW(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, weight_decay=weight_decay)
        optimizer.exclude_from_weight_decay(var_list=[v for v in variables if len(v.shape) < 2])
    optimizer.kernels = kernels
    optimizer.build(variables)
    return optimizer


def scaled(gradient: tf.Tensor, scale: tf.Tensor | None) -> tf.Tensor:
    """A gradient in float32 times a scalar (None: as it is)."""
    gradient = tf.cast(gradient, tf.float32)
    return gradient if scale is None else gradient * scale


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
    for gradient, variable in zip(gradients, optimizer._trainable_variables, strict=True):
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
    scaled_when_applied = alone or kernels is not None

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

    def apply():
        with optimizer.resting(rest):
            if scaled_when_applied:
                strategy.run(optimizer.apply_scaled, (gradients, scales))
            else:
                strategy.run(optimizer.apply, (gradients,))
        return tf.constant(0)

    tf.cond(taken, apply, lambda: tf.constant(0))
    return statistics, norm, taken, stopped

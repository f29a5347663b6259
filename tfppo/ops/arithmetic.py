"""The operations that a model's equations are made of, and how they compute: in which dtype, in which pieces.

A model says what it computes and asks an `Arithmetic` for each step of it. So the same weights and equations compute in
another dtype, inside or outside of XLA, with or without recomputation, and no layer is changed for that.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import tensorflow as tf

from tfppo.ops.activations import gelu
from tfppo.ops.recomputing import recomputed
from tfppo.ops.slots import write_slot


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """How the products, activations and buffers of a model compute.

    Args:
        dtype: of products and what goes into them; norms and softmax are in float32 under each.
        compiled: whether XLA compiles the graph around.
        fuses_activations: whether XLA compiles each activation as one piece, where the graph around is a plain one.
        recomputes: whether each block keeps only its input for the gradient (Chen et al. 2016).
        stacks: whether the blocks of a trunk are one loop over their stacked weights, which XLA compiles once.
        learning: the identities of variables whose gradients are wanted; `stacks` goes by it: blocks below all of them,
            or all blocks where there are none, have no gradient.
        stacked: weights of several blocks, stacked already, by the identity of the first one's variable.
        products: what computes products with weights; None: `product`.
        copies: of weights, by the identity of their variable, that stand for them in products; see `holding`.
    """

    dtype: str = "float32"
    compiled: bool = False
    fuses_activations: bool = False
    recomputes: bool = False
    stacks: bool = False
    learning: frozenset[int] = frozenset()
    stacked: Mapping[int, tf.Tensor] = field(default_factory=dict)
    products: "Recorded | Replayed | None" = None
    copies: Mapping[int, tf.Tensor] = field(default_factory=dict)

    def read(self, variable: tf.Variable) -> tf.Tensor:
        """A weight as products read it: its copy where one is held, else cast to the dtype here."""
        copy = self.copies.get(id(variable))
        return tf.cast(variable, self.dtype) if copy is None else copy

    def held(self, variable: tf.Variable) -> tf.Tensor | tf.Variable:
        """A weight that enters no product: its copy where one is held, else itself."""
        return self.copies.get(id(variable), variable)

    def read_all(self, variables: Sequence[tf.Variable]) -> tf.Tensor:
        """`read` of weights of several blocks, stacked."""
        stack = self.stacked.get(id(variables[0]))
        return (
            tf.stack([self.read(variable) for variable in variables]) if stack is None else tf.cast(stack, self.dtype)
        )

    def held_all(self, variables: Sequence[tf.Variable]) -> tf.Tensor:
        """`held` of weights of several blocks, stacked."""
        stack = self.stacked.get(id(variables[0]))
        return tf.stack([tf.convert_to_tensor(self.held(each)) for each in variables]) if stack is None else stack

    def holding(self, variables: Iterable) -> "Arithmetic":
        """The same with weights cast once, here, for all later uses, such as the steps of a loop.

        XLA does that by itself; a plain graph would cast every weight anew at every step. Gradients with respect to the
        copies can be had in the dtype of products.
        """
        return replace(self, copies={id(v): tf.cast(v, self.dtype) for v in variables})

    def of_program(self, variables: Iterable) -> "Arithmetic":
        """The same for a program of XLA in which these variables learn, and blocks are loops."""
        return replace(self, compiled=True, stacks=True, learning=frozenset(map(id, variables)))

    def activation(self, x: tf.Tensor) -> tf.Tensor:
        """GELU, elementwise."""
        return gelu(x, compiled=self.fuses_activations)

    def write_slot(self, buffer: tf.Tensor, values: tf.Tensor, index: tf.Tensor, *, axis: int) -> tf.Tensor:
        """The buffer with `values` at `index` of an axis, in place where nobody else needs it."""
        return write_slot(buffer, values, index, axis=axis, compiled=self.compiled)

    def product(self, x: tf.Tensor, kernel: tf.Variable, bias: tf.Variable) -> tf.Tensor:
        """x [N, I] @ kernel [I, O] + bias [O]."""
        return (self.products or product)(x, self.read(kernel), self.read(bias))

    def block(self, function: Callable, x: tf.Tensor, variables: list) -> tf.Tensor:
        """function(x, arithmetic) of a block with these weights in its products; recomputed for gradients if asked."""
        if not self.recomputes:
            return function(x, self)

        def of_copies(x, copies):  # as arguments: what it only captured would have no gradient
            held = {id(variable): copy for variable, copy in zip(variables, copies, strict=True)}
            return function(x, replace(self, recomputes=False, copies=held))

        return recomputed(of_copies, x, [self.read(variable) for variable in variables], compiled=self.compiled)


def product(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """x [N, I] @ kernel [I, O] + bias [O]."""
    return tf.nn.bias_add(tf.matmul(x, kernel), bias)


class Recorded:
    """Products whose results are noted, in order."""

    def __init__(self):
        self.results: list[tf.Tensor] = []

    def __call__(self, x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        """As `product`."""
        self.results.append(product(x, kernel, bias))
        return self.results[-1]


class Replayed:
    """Products whose results are known: they are not computed again, and have their gradients all the same.

    Args: results: as `Recorded` noted them.
    """

    def __init__(self, results: Sequence[tf.Tensor]):
        self._results = iter(results)

    def __call__(self, x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        """As `product`."""
        result = next(self._results)

        @tf.custom_gradient
        def known(x, kernel, bias):
            del bias

            def backward(upstream):
                of_x = tf.matmul(upstream, kernel, transpose_b=True)
                of_kernel = tf.matmul(x, upstream, transpose_a=True)
                return of_x, of_kernel, tf.raw_ops.BiasAddGrad(out_backprop=upstream)

            return tf.identity(result), backward

        return known(x, kernel, bias)

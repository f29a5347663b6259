"""Blocks as one loop over their stacked weights: XLA then compiles one block, however many there are.

TensorFlow's own gradient of such a loop would keep every intermediate result, the weights among them, and add up the
gradients of all blocks in each step. So the gradient is a loop of its own: of each block there are its input and the
results of its products, from which the rest is computed again, and it writes the gradients of one block at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby

import keras
import tensorflow as tf

from tfppo.models.layers import TransformerBlock
from tfppo.ops.arithmetic import Arithmetic, Recorded, Replayed

# (block, its number, x [B, T, D], arithmetic) -> x [B, T, D]
Step = Callable[[TransformerBlock, "int | tf.Tensor", tf.Tensor, Arithmetic], tf.Tensor]


def through_blocks(blocks: Sequence[TransformerBlock], x: tf.Tensor, step: Step, arithmetic: Arithmetic) -> tf.Tensor:
    """x [B, T, D] after all blocks: one after the other, or in loops, of the blocks that learn and of those that don't.

    Numbers of blocks start at 0.
    """
    if not arithmetic.stacks:
        for number, block in enumerate(blocks):
            x = step(block, number, x, arithmetic)
        return x
    first = 0
    for learns, group in groupby(blocks, key=lambda block: _learns(block, arithmetic.learning)):
        alike = list(group)
        loop = _Loop(alike, first, step, arithmetic)
        x = loop.with_gradient(x) if learns else loop.without_gradient(x)
        first += len(alike)
    return x


def alike_weights(blocks: Sequence[TransformerBlock], learning: frozenset[int]) -> list[tuple[keras.Variable, ...]]:
    """The variables that `through_blocks` stacks and that learn: a tuple of one of each block."""
    groups = groupby(blocks, key=lambda block: _learns(block, learning))
    return [
        alike
        for learns, group in groups
        if learns
        for alike in zip(*(block.weights_in_order() for block in group), strict=True)
    ]


def collect_from_blocks(
    blocks: Sequence[TransformerBlock],
    x: tf.Tensor,
    step: Callable[[TransformerBlock, tf.Tensor, Arithmetic], tuple[tf.Tensor, tuple[tf.Tensor, ...]]],
    arithmetic: Arithmetic,
    shapes: Sequence[Sequence[int]],
) -> tuple[tf.Tensor, list[tuple[tf.Tensor, ...]]]:
    """x after all blocks, and what the steps give of each besides; without a gradient where it is a loop.

    Args: step: (block, x, arithmetic) -> (x, tensors in the dtype of products); shapes: of these tensors.
    """
    if not arithmetic.stacks or not blocks:
        collected = []
        for block in blocks:
            x, results = step(block, x, arithmetic)
            collected.append(results)
        return x, collected
    stacks = _stacked(blocks, arithmetic)

    def one(number, x, buffers):
        x, results = step(blocks[0], x, _holding(blocks[0], arithmetic, _slices(stacks, number)))
        return number + 1, x, _with_block(arithmetic, buffers, results, number)

    buffers = [tf.zeros([len(blocks), *shape], arithmetic.dtype) for shape in shapes]
    _, x, buffers = tf.while_loop(lambda number, *_: number < len(blocks), one, (tf.constant(0), x, buffers))
    return x, list(zip(*map(tf.unstack, buffers), strict=True))


class _Loop:
    """Some blocks in a row.

    Args: first: the number of the first of them.
    """

    def __init__(self, blocks, first, step, arithmetic):
        self._blocks, self._first, self._step = blocks, first, step
        # The loop of the gradient computes again what it needs, be it all of a block.
        self._widths = [] if arithmetic.recomputes else [each.output_dim for each in blocks[0].projections()]
        self._arithmetic = replace(arithmetic, recomputes=False)

    def without_gradient(self, x):
        """x after the blocks, where nothing in or below them learns: nothing is kept."""
        stacks = _stacked(self._blocks, self._arithmetic)

        def one(number, x):
            return number + 1, self._of_block(number, x, _slices(stacks, number), None)

        return tf.while_loop(self._goes_on, one, (tf.constant(0), x))[1]

    def with_gradient(self, x):
        """x after the blocks."""

        @tf.custom_gradient
        def through_all(x, *stacks):
            result, inputs, products = self._forward(x, stacks)
            return result, lambda upstream: self._backward(upstream, stacks, inputs, products)

        return through_all(x, *_stacked(self._blocks, self._arithmetic))

    def _goes_on(self, number, *_):
        return number < len(self._blocks)

    def _forward(self, x, stacks):
        """x after the blocks; of each block its input, and the results of its products."""
        count, arithmetic = len(self._blocks), self._arithmetic

        def one(number, x, inputs, products):
            recorded = Recorded()
            result = self._of_block(number, x, _slices(stacks, number), recorded)
            inputs = arithmetic.write_slot(inputs, x, number, axis=0)
            return number + 1, result, inputs, _with_block(arithmetic, products, recorded.results, number)

        num_rows = x.shape[0] * x.shape[1]
        products = [tf.zeros([count, num_rows, width], arithmetic.dtype) for width in self._widths]
        start = tf.constant(0), x, tf.zeros([count, *x.shape], x.dtype), products
        return tf.while_loop(self._goes_on, one, start)[1:]

    def _backward(self, upstream, stacks, inputs, products):
        """Gradients of the input and of the stacked weights."""
        count, arithmetic = len(self._blocks), self._arithmetic

        def one(done, upstream, gradients):
            number = count - 1 - done
            x, *own = _slices([inputs, *stacks], number)
            replayed = Replayed(_slices(products, number)) if products else None
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([x, *own])
                result = self._of_block(number, x, own, replayed)
            upstream, *mine = tape.gradient(result, [x, *own], upstream)
            return done + 1, upstream, _with_block(arithmetic, gradients, mine, number)

        start = tf.constant(0), upstream, [tf.zeros_like(stack) for stack in stacks]
        _, upstream, gradients = tf.while_loop(self._goes_on, one, start)
        return (upstream, *gradients)

    def _of_block(self, number, x, weights, products):
        block = self._blocks[0]
        arithmetic = replace(_holding(block, self._arithmetic, weights), products=products)
        return self._step(block, self._first + number, x, arithmetic)


def _learns(block, learning):
    return any(id(variable) in learning for variable in block.weights_in_order())


def _stacked(blocks, arithmetic):
    """Each weight of all blocks, as a block reads it: [blocks, ...]."""
    weights = zip(*(block.weights_in_order() for block in blocks), strict=True)
    num_products = len(blocks[0].product_weights())
    return [
        arithmetic.read_all(alike) if place < num_products else arithmetic.held_all(alike)
        for place, alike in enumerate(weights)
    ]


def _slices(stacks, number):
    return [tf.gather(stack, number) for stack in stacks]


def _holding(block, arithmetic, weights):
    """An arithmetic in which these weights stand for those of the block."""
    return replace(arithmetic, copies=dict(zip(map(id, block.weights_in_order()), weights, strict=True)))


def _with_block(arithmetic, buffers, values, number):
    """The buffers [blocks, ...] with the values of one block; without buffers nothing is kept."""
    pairs = zip(buffers, values, strict=True) if buffers else ()
    return [arithmetic.write_slot(buffer, value, number, axis=0) for buffer, value in pairs]

"""How a model computes: in which dtype, with which copies of its matrices, in which compiled pieces."""

from contextlib import contextmanager
from functools import partial

import keras

from tfppo.models.recomputing import recomputed


@contextmanager
def computing_in(model, dtype):
    """Whatever the model traces inside computes under this Keras dtype policy; its weights stay what they are.

    Both have to keep the weights in float32 (float32, mixed_bfloat16).
    """
    layers = _layers_with(model, "dtype_policy")
    before = [layer.dtype_policy for layer in layers]
    policy = keras.DTypePolicy(dtype)
    try:
        for layer in layers:
            layer.dtype_policy = policy
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.dtype_policy = own


@contextmanager
def casting_once(model):
    """Casts the matrices of a model to its compute dtype here, for all uses inside, such as the steps of a loop.

    XLA does that by itself; a plain graph would cast every matrix anew at every step.
    Yields: {id(variable): its copy}, from which gradients can be had in the compute dtype.
    """
    layers = _layers_with(model, "held_matrices")
    copies = {}
    try:
        for layer in layers:
            layer.held_matrices = layer.cast_matrices()
            copies.update({id(v): copy for v, copy in zip(layer.matrices(), layer.held_matrices, strict=True)})
        yield copies
    finally:
        for layer in layers:
            layer.held_matrices = None


@contextmanager
def compiling_activations(model):
    """XLA compiles each activation of what a model traces inside, where the graph around it is a plain one."""
    layers = _layers_with(model, "compiled_activation")
    try:
        for layer in layers:
            layer.compiled_activation = True
        yield
    finally:
        for layer in layers:
            layer.compiled_activation = False


@contextmanager
def recomputing_blocks(model, *, compiled):
    """Of what a model traces inside, each block keeps only its input for the gradient.

    Args: compiled: whether XLA compiles the graph.
    """
    layers = _layers_with(model, "recompute")
    try:
        for layer in layers:
            layer.recompute = partial(recomputed, compiled=compiled)
        yield
    finally:
        for layer in layers:
            layer.recompute = None


def _layers_with(model, attribute):
    layers = [model, *model._flatten_layers(include_self=False)]
    return [layer for layer in layers if hasattr(layer, attribute)]

"""How a model computes: in which dtype, with which copies of its matrices, in which compiled pieces."""

from contextlib import contextmanager
from functools import partial

import keras
import tensorflow as tf

from tfppo.models.recomputing import recomputed


@contextmanager
def computing_in(model, dtype):
    """Whatever the model traces inside computes under this Keras dtype policy; its weights stay what they are.

    Both have to keep the weights in float32 (float32, mixed_bfloat16).
    """
    with _setting(model, "dtype_policy", keras.DTypePolicy(dtype)):
        yield


def cast_matrices(layer, dtype=None):
    """A layer's matrices: those that `casting_once` holds, or new ones in a dtype (None: the compute dtype)."""
    dtype = dtype or layer.compute_dtype
    return layer.held_matrices or tuple(tf.cast(variable, dtype) for variable in layer.matrices())


@contextmanager
def casting_once(model, dtype=None):
    """Casts the matrices of a model to a dtype here, for all uses inside, such as the steps of a loop.

    XLA does that by itself; a plain graph would cast every matrix anew at every step.
    Args: dtype: None: the compute dtype.
    Yields: {id(variable): its copy}, from which gradients can be had in that dtype, apart from those of other uses.
    """
    layers = _layers_with(model, "held_matrices")
    copies = {}
    try:
        for layer in layers:
            layer.held_matrices = cast_matrices(layer, dtype)
            copies.update({id(v): copy for v, copy in zip(layer.matrices(), layer.held_matrices, strict=True)})
        yield copies
    finally:
        for layer in layers:
            layer.held_matrices = None


@contextmanager
def compiling_activations(model):
    """XLA compiles each activation of what a model traces inside, where the graph around it is a plain one."""
    with _setting(model, "compiled_activation", True):
        yield


@contextmanager
def computing_by(model, hidden_states):
    """The hidden states of responses that the model's trunks compute inside are those of a function.

    Args: hidden_states: (trunk, token_ids [B, T], padding_mask [B, T], positions [B, T], start) -> [B, T - start, D];
        None: the trunk's own.
    """
    with _setting(model, "computed_by", hidden_states):
        yield


@contextmanager
def recomputing_blocks(model, *, compiled):
    """Of what a model traces inside, each block keeps only its input for the gradient.

    Args: compiled: whether XLA compiles the graph.
    """
    with _setting(model, "recompute", partial(recomputed, compiled=compiled)):
        yield


@contextmanager
def _setting(model, attribute, value):
    """The layers that have an attribute have this value of it inside."""
    layers = _layers_with(model, attribute)
    before = [getattr(layer, attribute) for layer in layers]
    try:
        for layer in layers:
            setattr(layer, attribute, value)
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            setattr(layer, attribute, own)


def _layers_with(model, attribute):
    layers = [model, *model._flatten_layers(include_self=False)]
    return [layer for layer in layers if hasattr(layer, attribute)]

"""The dtype that a model computes in, which may be another one in training than in sampling."""

from contextlib import contextmanager

import keras


@contextmanager
def computing_in(model, dtype):
    """Whatever the model traces inside computes under this Keras dtype policy; its weights stay what they are.

    Both have to keep the weights in float32 (float32, mixed_bfloat16).
    """
    layers = [model, *model._flatten_layers(include_self=False)]
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
    """
    layers = [layer for layer in [model, *model._flatten_layers(include_self=False)] if hasattr(layer, "cast_matrices")]
    try:
        for layer in layers:
            layer.held_matrices = layer.cast_matrices()
        yield
    finally:
        for layer in layers:
            layer.held_matrices = None

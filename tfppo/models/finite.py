"""Weights that are not finite are never saved."""

import keras
import tensorflow as tf

from tfppo.errors import UserError


def require_finite(model: keras.Layer, what: str) -> None:
    """Raises UserError where a weight is infinite or no number; `what` would have been saved."""
    for variable in model.variables:
        if not bool(tf.reduce_all(tf.math.is_finite(tf.convert_to_tensor(variable)))):
            raise UserError(
                f"{what} is not saved: its weights {variable.path} are not finite: training has diverged; go on from "
                f"what was saved before, with a lower learning rate"
            )

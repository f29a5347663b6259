"""A Transformer's blocks and their gradients through the native operations, in mixed_bfloat16 but for rounding."""

from types import ModuleType

import tensorflow as tf

from tfppo.computation.native.decoder import trunk_weights
from tfppo.models.layers import LAYER_NORM_EPSILON
from tfppo.models.transformer import Transformer


def hidden_states(
    ops: ModuleType,
    trunk: Transformer,
    token_ids: tf.Tensor,
    padding_mask: tf.Tensor,
    positions: tf.Tensor,
    start: int | tf.Tensor,
    with_gradient: bool = True,
) -> tf.Tensor:
    """As the trunk's `hidden_states`: [B, T - start, D] in float32, which are 0 where the mask is.

    The gradients of the blocks' matrices are bfloat16.

    Args: ops: the loaded operations; with_gradient: False keeps nothing for it.
    """
    real = tf.cast(padding_mask, tf.bool)
    num_blocks = len(trunk.blocks)
    attributes = dict(num_heads=trunk.num_heads, start=start, epsilon=LAYER_NORM_EPSILON)

    @tf.custom_gradient
    def blocks(x, *weights):
        hidden, kept, last = ops.tfppo_trunk(
            x=x, real=real, weights=weights, num_blocks=num_blocks, keep=int(with_gradient), **attributes
        )

        def gradient(upstream):
            is_matrix = [len(weight.shape) == 2 for weight in weights]
            dx, matrices, vectors = ops.tfppo_trunk_gradient(
                upstream=upstream,
                real=real,
                kept=kept,
                last=last,
                weights=weights,
                num_matrices=sum(is_matrix),
                num_vectors=len(weights) - sum(is_matrix),
                **attributes,
            )
            matrices, vectors = iter(matrices), iter(vectors)
            return dx, *(next(matrices) if wanted else next(vectors) for wanted in is_matrix)

        return hidden, gradient

    x = trunk.embed(token_ids, positions, tf.float32)
    hidden = blocks(x, *trunk_weights(trunk))
    return tf.ensure_shape(hidden, [x.shape[0], None if x.shape[1] is None else x.shape[1] - start, x.shape[2]])

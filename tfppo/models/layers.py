"""The layers of a GPT-2-style Transformer (Radford et al. 2019): their weights and equations.

Every equation takes an `Arithmetic`, which says in which dtype and pieces it computes. The operations of a layer stand
in a scope of its name: profiles show them by layer, and TensorFlow's graph rewriting orders sums by scope, so that
scopes are part of the last bits.
"""

from typing import Any

import keras
import tensorflow as tf

from tfppo.ops.arithmetic import Arithmetic
from tfppo.ops.attention import Attention, masked_softmax
from tfppo.ops.shapes import size_of

LAYER_NORM_EPSILON = 1e-5
# Keys and values of one block: [B, T, H, D/H] each as computed, [B, H, C, D/H] as kept for decoding.
BlockCache = tuple[tf.Tensor, tf.Tensor]


def dropout(x: tf.Tensor, rate: float, seed: tf.Tensor | None) -> tf.Tensor:
    """Dropout: sets a share `rate` of x to 0 and scales the rest up; without a seed, x unchanged."""
    if seed is None or rate == 0.0:
        return x
    return tf.nn.experimental.stateless_dropout(x, rate, seed, rng_alg="philox")


def fold(seed: tf.Tensor | None, number: int | tf.Tensor) -> tf.Tensor | None:
    """A seed derived from another one, different for each `number`; None stays None."""
    return None if seed is None else seed + tf.cast(tf.stack([0, number]), seed.dtype)


@keras.saving.register_keras_serializable(package="tfppo")
class LayerNorm(keras.layers.Layer):
    """Layer normalisation over the last axis, computed in float32 whatever the dtype of products."""

    def __init__(self, hidden_dim: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.gamma = self.add_weight(shape=[hidden_dim], initializer="ones", name="gamma", autocast=False)
        self.beta = self.add_weight(shape=[hidden_dim], initializer="zeros", name="beta", autocast=False)
        self.built = True

    def normalize(self, x: tf.Tensor, arithmetic: Arithmetic) -> tf.Tensor:
        """x [..., D] with mean 0 and variance 1 in each row, scaled and shifted: in the dtype of products."""
        with tf.name_scope(self.name):
            x32 = tf.cast(x, tf.float32)
            mean = tf.reduce_mean(x32, axis=-1, keepdims=True)
            centred = x32 - mean
            variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
            normed = centred * tf.math.rsqrt(variance + LAYER_NORM_EPSILON)
            scale, shift = arithmetic.held(self.gamma), arithmetic.held(self.beta)
            return tf.cast(normed * scale + shift, arithmetic.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "hidden_dim": self.hidden_dim}


@keras.saving.register_keras_serializable(package="tfppo")
class Projection(keras.layers.Layer):
    """x @ kernel + bias over the last axis, as one two-dimensional product whatever the rank of x."""

    def __init__(self, input_dim: int, output_dim: int, stddev: float = 0.02, **kwargs: Any):
        super().__init__(**kwargs)
        self.input_dim, self.output_dim, self.stddev = input_dim, output_dim, stddev
        normal = keras.initializers.RandomNormal(stddev=stddev)
        self.kernel = self.add_weight(shape=[input_dim, output_dim], initializer=normal, name="kernel")
        self.bias = self.add_weight(shape=[output_dim], initializer="zeros", name="bias")
        self.built = True

    def project(self, x: tf.Tensor, arithmetic: Arithmetic) -> tf.Tensor:
        """x [..., input_dim] to [..., output_dim], in the dtype of products."""
        with tf.name_scope(self.name):
            x2d = tf.reshape(tf.cast(x, arithmetic.dtype), [-1, self.input_dim])
            y = arithmetic.product(x2d, self.kernel, self.bias)
            return tf.reshape(y, [*(size_of(x, axis) for axis in range(len(x.shape) - 1)), self.output_dim])

    def get_config(self) -> dict[str, Any]:
        sizes = {"input_dim": self.input_dim, "output_dim": self.output_dim, "stddev": self.stddev}
        return {**super().get_config(), **sizes}


@keras.saving.register_keras_serializable(package="tfppo")
class TransformerBlock(keras.layers.Layer):
    """Layer norm, self-attention and residual; layer norm, MLP and residual."""

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        intermediate_dim: int,
        dropout: float = 0.0,
        residual_stddev: float = 0.02,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.hidden_dim, self.num_heads, self.intermediate_dim = hidden_dim, num_heads, intermediate_dim
        self.dropout, self.residual_stddev = dropout, residual_stddev
        self.head_dim = hidden_dim // num_heads
        policy = self.dtype_policy
        self.attention_norm = LayerNorm(hidden_dim, dtype=policy, name="attention_norm")
        self.qkv = Projection(hidden_dim, 3 * hidden_dim, dtype=policy, name="qkv")
        self.attention_out = Projection(
            hidden_dim, hidden_dim, stddev=residual_stddev, dtype=policy, name="attention_out"
        )
        self.mlp_norm = LayerNorm(hidden_dim, dtype=policy, name="mlp_norm")
        self.mlp_in = Projection(hidden_dim, intermediate_dim, dtype=policy, name="mlp_in")
        self.mlp_out = Projection(intermediate_dim, hidden_dim, stddev=residual_stddev, dtype=policy, name="mlp_out")
        self.built = True

    def projections(self) -> list[Projection]:
        """The products with weights, in the order in which a block computes them."""
        return [self.qkv, self.attention_out, self.mlp_in, self.mlp_out]

    def product_weights(self) -> list[keras.Variable]:
        """The variables that enter products, whose copies an `Arithmetic` may hold."""
        return [variable for projection in self.projections() for variable in (projection.kernel, projection.bias)]

    def norm_weights(self) -> list[keras.Variable]:
        """The variables that enter no product, and stay in float32."""
        return [variable for norm in (self.attention_norm, self.mlp_norm) for variable in (norm.gamma, norm.beta)]

    def weights_in_order(self) -> list[keras.Variable]:
        """All variables: those of products first."""
        return [*self.product_weights(), *self.norm_weights()]

    def states(
        self,
        x: tf.Tensor,
        attention: Attention,
        arithmetic: Arithmetic,
        dropout_seed: tf.Tensor | None = None,
        start: int | tf.Tensor = 0,
    ) -> tf.Tensor:
        """x [B, T, D], attention of its T positions -> [B, T - start, D], of the positions from `start` on."""

        def block(x, arithmetic):
            return self.with_cache(x, attention, arithmetic, dropout_seed, start)[0]

        with tf.name_scope(self.name):
            return arithmetic.block(block, x, self.product_weights())

    def with_cache(
        self,
        x: tf.Tensor,
        attention: Attention,
        arithmetic: Arithmetic,
        dropout_seed: tf.Tensor | None = None,
        start: int | tf.Tensor = 0,
    ) -> tuple[tf.Tensor, BlockCache]:
        """The result of `states`, and the keys and values [B, T, H, D/H] of all T positions."""
        query, key, value = self._queries_keys_values(x, arithmetic)
        x, query = x[:, start:], query[:, start:]
        context = attention(query, key, value, start)
        return self._residuals(x, context, arithmetic, dropout_seed), (key, value)

    def decode_step(
        self, x: tf.Tensor, cache: BlockCache, index: tf.Tensor, visible: tf.Tensor, arithmetic: Arithmetic
    ) -> tuple[tf.Tensor, BlockCache]:
        """x [B, D], cache of [B, H, C, D/H], visible bool [B, 1, 1, C] -> [B, D] and the cache with one slot more."""
        query, key, value = self._queries_keys_values(x, arithmetic)
        keys, values = (
            arithmetic.write_slot(old, new, index, axis=2) for old, new in zip(cache, (key, value), strict=True)
        )
        scores = tf.matmul(query[:, :, None], keys, transpose_b=True)
        context = tf.matmul(masked_softmax(scores, visible), values)
        return self._residuals(x, context, arithmetic, None), (keys, values)

    def _queries_keys_values(self, x, arithmetic):
        qkv = self.qkv.project(self.attention_norm.normalize(x, arithmetic), arithmetic)
        leading = [size_of(qkv, axis) for axis in range(len(qkv.shape) - 1)]
        query, key, value = tf.unstack(tf.reshape(qkv, [*leading, 3, self.num_heads, self.head_dim]), num=3, axis=-3)
        return query * tf.cast(self.head_dim**-0.5, query.dtype), key, value

    def _residuals(self, x, context, arithmetic, dropout_seed):
        context = tf.reshape(context, tf.shape(x))
        x += dropout(self.attention_out.project(context, arithmetic), self.dropout, fold(dropout_seed, 0))
        hidden = self.mlp_in.project(self.mlp_norm.normalize(x, arithmetic), arithmetic)
        hidden = self.mlp_out.project(arithmetic.activation(hidden), arithmetic)
        return x + dropout(hidden, self.dropout, fold(dropout_seed, 1))

    def get_config(self) -> dict[str, Any]:
        sizes = dict(hidden_dim=self.hidden_dim, num_heads=self.num_heads, intermediate_dim=self.intermediate_dim)
        rest = dict(dropout=self.dropout, residual_stddev=self.residual_stddev)
        return {**super().get_config(), **sizes, **rest}

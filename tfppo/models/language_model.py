"""The language model: a Transformer whose output embedding is its input embedding."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import tensorflow as tf

from tfppo.models.transformer import Transformer
from tfppo.ops.arithmetic import Arithmetic
from tfppo.ops.chunks import by_chunks, is_large
from tfppo.ops.masking import MASKED_SCORE
from tfppo.ops.shapes import size_of


@keras.saving.register_keras_serializable(package="tfppo")
class LanguageModel(keras.Model):
    """Token ids [B, T] to next-token logits [B, T, V] in float32, with tied embeddings.

    The PAD token gets a logit of -1e9 everywhere: it is never sampled, and never has a share in a probability.
    """

    def __init__(
        self,
        vocabulary_size: int,
        num_layers: int,
        num_heads: int,
        hidden_dim: int,
        intermediate_dim: int,
        max_sequence_length: int,
        dropout: float = 0.0,
        pad_id: int = 0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.trunk = Transformer(
            vocabulary_size,
            num_layers,
            num_heads,
            hidden_dim,
            intermediate_dim,
            max_sequence_length,
            dropout,
            dtype=self.dtype_policy,
            name="trunk",
        )
        self.pad_id = pad_id
        self.built = True

    @property
    def max_sequence_length(self) -> int:
        """The number of positions that the model knows."""
        return self.trunk.sizes["max_sequence_length"]

    def call(
        self,
        token_ids: tf.Tensor,
        padding_mask: tf.Tensor | None = None,
        segment_ids: tf.Tensor | None = None,
        positions: tf.Tensor | None = None,
        dropout_seed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Logits [B, T, V] in float32; the arguments are the trunk's."""
        hidden = self.trunk(token_ids, padding_mask, segment_ids, positions, dropout_seed)
        return tf.cast(self.logits(hidden), tf.float32)

    def logits(self, hidden: tf.Tensor, arithmetic: Arithmetic | None = None) -> tf.Tensor:
        """Next-token logits [..., V] of hidden states [..., D], in the dtype of the product."""
        arithmetic = arithmetic or self.trunk.arithmetic
        embedding = arithmetic.read(self.trunk.token_embedding)
        flat = tf.reshape(tf.cast(hidden, arithmetic.dtype), [-1, embedding.shape[1]])
        logits = tf.matmul(flat, embedding, transpose_b=True)
        pad_bias = MASKED_SCORE * tf.one_hot(self.pad_id, embedding.shape[0])
        logits = tf.nn.bias_add(logits, tf.cast(pad_bias, arithmetic.dtype))
        leading = [size_of(hidden, axis) for axis in range(len(hidden.shape) - 1)]
        return tf.reshape(logits, [*leading, embedding.shape[0]])

    def has_many_logits(self, hidden: tf.Tensor) -> bool:
        """Whether the logits of hidden states [..., D] are better never held as a whole; see `of_logits_by_chunks`."""
        return is_large(hidden, self.trunk.sizes["vocabulary_size"])

    def of_logits(
        self,
        function: Callable[..., tf.Tensor],
        hidden: tf.Tensor,
        token_ids: tf.Tensor,
        arithmetic: Arithmetic | None = None,
    ) -> tf.Tensor:
        """function(logits, token_ids), float32 [...], of hidden states [..., D]: by chunks where logits are many."""
        if self.has_many_logits(hidden):
            (figures,) = self.of_logits_by_chunks(
                lambda *chunk: (function(*chunk),), hidden, token_ids, arithmetic, num_results=1
            )
            return figures
        return function(self.logits(hidden, arithmetic), token_ids)

    def of_logits_by_chunks(
        self,
        function: Callable[..., tuple[tf.Tensor, ...]],
        hidden: tf.Tensor,
        token_ids: tf.Tensor,
        arithmetic: Arithmetic | None = None,
        *,
        num_results: int,
    ) -> tuple[tf.Tensor, ...]:
        """function(logits, token_ids) of hidden states [..., D], of which only a chunk's logits are held at a time.

        Args: function: (logits [n, V], token_ids [n]) -> `num_results` of float32 [n], of each position by itself;
            token_ids: int [...]. Returns: as many of float32 [...].
        """
        arithmetic = arithmetic or self.trunk.arithmetic
        variable = self.trunk.token_embedding

        def of_rows(rows, embedding, token_ids):
            return function(self.logits(rows, replace(arithmetic, copies={id(variable): embedding})), token_ids)

        embedding = arithmetic.read(variable)
        return by_chunks(of_rows, hidden, embedding, token_ids, num_results=num_results)

    def product_weights(self) -> list[keras.Variable]:
        """The variables that enter products, whose copies an `Arithmetic` may hold."""
        return [self.trunk.token_embedding, *self.trunk.product_weights()]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.trunk.sizes, "pad_id": self.pad_id}

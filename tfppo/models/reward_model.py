"""The reward model: a Transformer trunk with a scalar head."""

from typing import Any

import keras
import tensorflow as tf

from tfppo.models.language_model import LanguageModel
from tfppo.models.transformer import Transformer
from tfppo.ops.arithmetic import Arithmetic
from tfppo.ops.shapes import size_of


@keras.saving.register_keras_serializable(package="tfppo")
class RewardModel(keras.Model):
    """A scalar at every position of a text: [B, T] token ids to float32 [B, T].

    The head starts at N(0, 1 / sqrt(D + 1)), as in Stiennon et al. 2020. A separate critic can start as a copy.

    Args: trunk: the Transformer under the head.
    """

    def __init__(self, trunk: Transformer, **kwargs: Any):
        super().__init__(dtype=trunk.dtype_policy, **kwargs)
        self.trunk = trunk
        hidden_dim = trunk.sizes["hidden_dim"]
        normal = keras.initializers.RandomNormal(stddev=(hidden_dim + 1) ** -0.5)
        self.head_kernel = self.add_weight(
            shape=[hidden_dim, 1], initializer=normal, name="head_kernel", dtype="float32", autocast=False
        )
        self.head_bias = self.add_weight(
            shape=[1], initializer="zeros", name="head_bias", dtype="float32", autocast=False
        )
        self.built = True

    def call(self, token_ids: tf.Tensor, padding_mask: tf.Tensor | None = None) -> tf.Tensor:
        """Scores [B, T]."""
        return self._head(self.trunk(token_ids, padding_mask))

    @property
    def max_sequence_length(self) -> int:
        """The number of positions that the model knows."""
        return self.trunk.sizes["max_sequence_length"]

    def response_scores(
        self,
        prompt_ids: tf.Tensor,
        prompt_mask: tf.Tensor,
        response_ids: tf.Tensor,
        response_mask: tf.Tensor,
        arithmetic: Arithmetic | None = None,
    ) -> tf.Tensor:
        """The score [B] of each response: that of the state after its last real token, which is EOS where it stopped.

        Args: prompt_ids, prompt_mask [B, P], padded on the left; response_ids, response_mask [B, R], on the right;
            arithmetic: what computes it; None: the trunk's own.
        """
        token_ids = tf.concat([prompt_ids, response_ids], axis=1)
        mask = tf.concat([tf.cast(prompt_mask, tf.int32), tf.cast(response_mask, tf.int32)], axis=1)
        # From the prompt's end on: there, number n is the state after n tokens of the response.
        states = self.trunk.computed_by(arithmetic)(token_ids, mask, start=size_of(prompt_ids, 1) - 1)
        lengths = tf.cast(tf.reduce_sum(response_mask, axis=1), tf.int32)
        return self._head(tf.gather(states, lengths, batch_dims=1))

    def rescale(self, gain: float, bias: float) -> None:
        """Every score becomes gain * score + bias."""
        self.head_kernel.assign(gain * tf.convert_to_tensor(self.head_kernel))
        self.head_bias.assign(gain * tf.convert_to_tensor(self.head_bias) + bias)

    def _head(self, hidden):
        hidden = tf.cast(hidden, tf.float32)
        return tf.squeeze(tf.tensordot(hidden, tf.convert_to_tensor(self.head_kernel), 1), -1) + self.head_bias[0]

    @classmethod
    def from_language_model(cls, language_model: LanguageModel) -> "RewardModel":
        """A reward model whose trunk is a copy of a language model's."""
        trunk = Transformer.from_config(language_model.trunk.get_config())
        trunk.set_weights(language_model.trunk.get_weights())
        return cls(trunk)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "trunk": keras.saving.serialize_keras_object(self.trunk)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RewardModel":
        return cls(keras.saving.deserialize_keras_object(config.pop("trunk")), **config)

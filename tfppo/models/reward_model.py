"""The reward model: a Transformer trunk with a scalar head."""

import keras
import tensorflow as tf

from tfppo.models.transformer import Transformer


@keras.saving.register_keras_serializable(package="tfppo")
class RewardModel(keras.Model):
    """A scalar at every position of a text: [B, T] token ids to float32 [B, T].

    The head starts at N(0, 1 / sqrt(D + 1)), as in Stiennon et al. 2020. A separate critic can start as a copy.

    Args: trunk: the Transformer under the head.
    """

    def __init__(self, trunk: Transformer, **kwargs):
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

    def call(self, token_ids, padding_mask=None):
        """Scores [B, T]."""
        hidden = tf.cast(self.trunk(token_ids, padding_mask), tf.float32)
        return tf.squeeze(tf.tensordot(hidden, tf.convert_to_tensor(self.head_kernel), 1), -1) + self.head_bias[0]

    def get_config(self):
        return {"name": self.name, "trunk": keras.saving.serialize_keras_object(self.trunk)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("trunk")), **config)

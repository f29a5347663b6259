"""A policy's prefill and decoding steps through the native operations, with the same results but for rounding."""

from types import ModuleType

import keras
import tensorflow as tf

from tfppo.computation.engine import Cache
from tfppo.models.layers import LAYER_NORM_EPSILON
from tfppo.models.policy import Policy
from tfppo.models.transformer import Transformer
from tfppo.ops.masking import MASKED_SCORE, positions_from_mask
from tfppo.ops.shapes import size_of


def trunk_weights(trunk: Transformer) -> list[tf.Tensor]:
    """The weights of a trunk's blocks and final norm, as the native operations take them."""
    layers: list[keras.layers.Layer] = []
    for block in trunk.blocks:  # in the order of for_each_weight in weights.h
        layers += [block.attention_norm, block.qkv, block.attention_out]
        layers += [block.mlp_norm, block.mlp_in, block.mlp_out]
    return [tf.convert_to_tensor(variable) for layer in [*layers, trunk.final_norm] for variable in layer.weights]


class _Float32:
    """The operations of a float32 policy."""

    def __init__(self, ops):
        self._ops = ops

    def weights_of(self, trunk):
        return {"weights": trunk_weights(trunk)}

    def embedding_of(self, embedding):
        return {"embedding": embedding}

    def extend(self, **arguments):
        return self._ops.tfppo_extend(**arguments)

    def logits(self, **arguments):
        return self._ops.tfppo_logits(**arguments)


class _Bfloat16:
    """The operations of a mixed_bfloat16 policy, whose matrices are rounded and packed once."""

    def __init__(self, ops):
        self._ops = ops

    def weights_of(self, trunk):
        weights = trunk_weights(trunk)
        matrices = [weight for weight in weights if len(weight.shape) == 2]
        return {
            "matrices": [self._ops.tfppo_pack(matrix=matrix, transposed=0) for matrix in matrices],
            "vectors": [weight for weight in weights if len(weight.shape) == 1],
        }

    def embedding_of(self, embedding):
        packed = self._ops.tfppo_pack(matrix=embedding, transposed=1)
        return {"embedding": packed, "num_tokens": embedding.shape[0]}

    def extend(self, **arguments):
        return self._ops.tfppo_extend_rounded(**arguments)

    def logits(self, **arguments):
        return self._ops.tfppo_logits_rounded(**arguments)


class NativePolicy:
    """The `Decoder` of the native operations. The constructor reads the weights: call it inside the graph that samples.

    Args: ops: the loaded operations; dtype: Keras dtype policy to compute in: float32, or mixed_bfloat16 where `ops`
        have it.
    """

    def __init__(self, policy: Policy, ops: ModuleType, dtype: str):
        self._policy = policy
        self._ops = _Float32(ops) if dtype == "float32" else _Bfloat16(ops)
        self._trunks = [policy.language_model.trunk, *([policy.critic] if policy.critic else [])]
        self._weights = [self._ops.weights_of(trunk) for trunk in self._trunks]
        embedding = tf.convert_to_tensor(policy.language_model.trunk.token_embedding)
        self._vocabulary_size, self._embedding = embedding.shape[0], self._ops.embedding_of(embedding)

    def prefill(
        self, prompt_ids: tf.Tensor, prompt_mask: tf.Tensor, cache_length: int
    ) -> tuple[tf.Tensor, tf.Tensor, Cache]:
        """As `Policy.prefill`."""
        real = tf.pad(tf.cast(prompt_mask, tf.bool), [[0, 0], [0, cache_length - size_of(prompt_ids, 1)]])
        return self._step(prompt_ids, positions_from_mask(prompt_mask), 0, real, [[] for _ in self._trunks])

    def decode_step(
        self, token_ids: tf.Tensor, positions: tf.Tensor, index: tf.Tensor, visible: tf.Tensor, cache: Cache
    ) -> tuple[tf.Tensor, tf.Tensor, Cache]:
        """As `Policy.decode_step`."""
        return self._step(token_ids[:, None], positions[:, None], index, visible, cache)

    def _step(self, token_ids, positions, start, visible, caches):
        step = (token_ids, positions, start, visible)
        trunks = zip(self._trunks, self._weights, caches, strict=True)
        hidden, caches = zip(*(self._extend(trunk, weights, *step, own) for trunk, weights, own in trunks), strict=True)
        logits = self._ops.logits(
            hidden=hidden[0],
            masked=self._policy.language_model.pad_id,
            penalty=MASKED_SCORE,
            **self._embedding,
        )
        logits = tf.ensure_shape(logits, [hidden[0].shape[0], self._vocabulary_size])
        return logits, self._policy.values_of(hidden[-1]), caches

    def _extend(self, trunk, weights, token_ids, positions, start, visible, caches):
        """Hidden states [B, D] after the last of token_ids [B, T] at slots `start` to `start + T`, and the caches."""
        x = trunk.embed(token_ids, positions, tf.float32)
        hidden, grown = self._ops.extend(
            x=x,
            start=start,
            real=visible,
            caches=tf.nest.flatten(caches),
            num_grown=2 * len(trunk.blocks),
            num_heads=trunk.num_heads,
            epsilon=LAYER_NORM_EPSILON,
            **weights,
        )
        rows = x.shape[0]
        grown = [tf.ensure_shape(cache, [rows, trunk.num_heads, None, trunk.head_dim]) for cache in grown]
        return tf.ensure_shape(hidden, [rows, x.shape[-1]]), list(zip(grown[::2], grown[1::2], strict=True))


def draw_natively(
    ops: ModuleType, temperature: float, logits: tf.Tensor, uniforms: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Tokens int32 [B], each drawn from softmax(logits / temperature) by a uniform number, and their log-probabilities.

    As `inverse_cdf_sample`, in one pass. Args: ops: the loaded operations; logits [B, V]; uniforms [B].
    """
    tokens, logprobs = ops.tfppo_draw(logits=logits, uniforms=uniforms, temperature=temperature)
    return tf.ensure_shape(tokens, uniforms.shape), tf.ensure_shape(logprobs, uniforms.shape)

"""A policy's prefill and decoding steps through the native operations, with the same results to float32's rounding."""

import tensorflow as tf

from tfppo.models.transformer import LAYER_NORM_EPSILON, MASKED_SCORE
from tfppo.ops.masking import positions_from_mask
from tfppo.ops.shapes import size_of


def trunk_weights(trunk):
    """The weights of a trunk's blocks and final norm, as the native operations take them."""
    layers = []
    for block in trunk.blocks:  # in the order of struct Block in operations.h
        layers += [block.attention_norm, block.qkv, block.attention_out]
        layers += [block.mlp_norm, block.mlp_in, block.mlp_out]
    return [tf.convert_to_tensor(variable) for layer in [*layers, trunk.final_norm] for variable in layer.weights]


TILES_FROM = 256  # the width from which matrix tiles gain more than the digits that they lose


def _packs(ops, width):
    """Whether the operations multiply with matrix tiles, which read matrices of a form of their own.

    Their products have 17 bits of float32's 24: a thousandth of what the update in bfloat16 loses, which is the default
    from the same width on.
    """
    return hasattr(ops, "tfppo_pack") and width >= TILES_FROM


class _Trunk:
    """A Transformer's weights, read once, and its blocks and final norm as one operation."""

    def __init__(self, trunk, ops):
        self._trunk, self._ops = trunk, ops
        self._weights = trunk_weights(trunk)
        self._packed = _packs(ops, trunk.sizes["hidden_dim"])
        if self._packed:
            self._weights = [
                ops.tfppo_pack(matrix=weight, transposed=0) if len(weight.shape) == 2 else weight
                for weight in self._weights
            ]

    def extend(self, token_ids, positions, start, visible, caches):
        """Hidden states [B, D] after the last of token_ids [B, T] at slots `start` to `start + T`, and the caches."""
        x = self._trunk.embed(token_ids, positions)
        num_caches = 2 * len(self._trunk.blocks)
        hidden, grown = self._ops.tfppo_extend(
            x=x,
            start=start,
            real=visible,
            caches=tf.nest.flatten(caches),
            weights=self._weights,
            num_grown=num_caches,
            num_heads=self._trunk.num_heads,
            epsilon=LAYER_NORM_EPSILON,
            packed=int(self._packed),
        )
        rows, slots = x.shape[0], visible.shape[1]
        grown = [tf.ensure_shape(cache, [rows, self._trunk.num_heads, slots, self._trunk.head_dim]) for cache in grown]
        return tf.ensure_shape(hidden, [rows, x.shape[-1]]), list(zip(grown[::2], grown[1::2], strict=True))


class NativePolicy:
    """What `sample` needs of a policy, computed by the native operations. Make it where the weights are to be read.

    Args: ops: of `native_ops`.
    """

    def __init__(self, policy, ops):
        self._policy, self._ops = policy, ops
        self._trunks = [_Trunk(policy.language_model.trunk, ops)]
        if policy.critic:
            self._trunks.append(_Trunk(policy.critic, ops))
        self._embedding = tf.convert_to_tensor(policy.language_model.trunk.token_embedding)
        self._vocab_size, width = self._embedding.shape
        self._packed = _packs(ops, width)
        if self._packed:
            self._embedding = ops.tfppo_pack(matrix=self._embedding, transposed=1)

    def prefill(self, prompt_ids, prompt_mask, cache_length):
        """As `Policy.prefill`."""
        real = tf.pad(tf.cast(prompt_mask, tf.bool), [[0, 0], [0, cache_length - size_of(prompt_ids, 1)]])
        return self._extend(prompt_ids, positions_from_mask(prompt_mask), 0, real, [[] for _ in self._trunks])

    def decode_step(self, token_ids, positions, index, visible, cache, compiled=False):
        """As `Policy.decode_step`; nothing here can be compiled."""
        assert not compiled
        return self._extend(token_ids[:, None], positions[:, None], index, visible, cache)

    def _extend(self, *step_and_cache):
        *step, cache = step_and_cache
        hidden, caches = zip(
            *(trunk.extend(*step, own) for trunk, own in zip(self._trunks, cache, strict=True)), strict=True
        )
        language_model = self._policy.language_model
        logits = self._ops.tfppo_logits(
            hidden=hidden[0],
            embedding=self._embedding,
            num_tokens=self._vocab_size,
            masked=language_model.pad_id,
            penalty=MASKED_SCORE,
            packed=int(self._packed),
        )
        logits = tf.ensure_shape(logits, [hidden[0].shape[0], self._vocab_size])
        return logits, self._policy.values_of(hidden[-1]), caches


def draw_natively(ops, temperature, logits, uniforms):
    """Tokens int32 [B], each drawn from softmax(logits / temperature) by a uniform number, and their log-probabilities.

    As `inverse_cdf_sample`, in one pass. Args: ops: of `native_ops`; logits [B, V]; uniforms [B].
    """
    tokens, logprobs = ops.tfppo_draw(logits=logits, uniforms=uniforms, temperature=temperature)
    return tf.ensure_shape(tokens, uniforms.shape), tf.ensure_shape(logprobs, uniforms.shape)

"""Drawing a token from logits: filters, exact inverse-CDF sampling, and the uniform numbers that it takes."""

import numpy as np
import tensorflow as tf

from tfppo.ops.logprobs import token_logprobs
from tfppo.ops.masking import MASKED_SCORE

_BLOCK = 64  # tokens a block of the two-level search


def draw_uniforms(seed: tf.Tensor | np.ndarray, batch_size: int, response_length: int) -> tf.Tensor:
    """Uniform numbers in [0, 1) for a batch, from an int32 [2] seed: float32 [B, R].

    Made from integer bits, which are the same in every compile mode; 23 of them, so that u * total < total in float32.
    """
    bits = tf.random.stateless_uniform(
        [batch_size, response_length], seed, minval=None, maxval=None, dtype=tf.uint32, alg="philox"
    )
    return tf.cast(tf.bitwise.right_shift(bits, tf.constant(9, tf.uint32)), tf.float32) * 2.0**-23


def filter_logits(logits: tf.Tensor, *, top_k: int = 0, top_p: float = 1.0) -> tf.Tensor:
    """Masks all but the `top_k` likeliest tokens (0: all) and the smallest set of likeliest ones whose mass reaches
    `top_p` (Holtzman et al. 2020). The likeliest token always stays; ties at the edge stay together.

    Args: logits [B, V], already divided by the temperature. Returns [B, V] with -1e9 at the masked tokens.
    """
    if top_k == 0 and top_p >= 1.0:
        return logits
    ordered = tf.sort(logits, axis=-1, direction="DESCENDING")
    threshold = ordered[:, -1:]
    if top_k:
        threshold = tf.maximum(threshold, ordered[:, min(top_k, logits.shape[-1]) - 1, None])
    if top_p < 1.0:
        probabilities = tf.nn.softmax(ordered)
        mass_before = tf.cumsum(probabilities, axis=-1, exclusive=True)
        kept = tf.where(mass_before < top_p, ordered, ordered[:, :1])
        threshold = tf.maximum(threshold, tf.reduce_min(kept, axis=-1, keepdims=True))
    return tf.where(logits < threshold, MASKED_SCORE, logits)


def inverse_cdf_sample(logits: tf.Tensor, uniforms: tf.Tensor) -> tf.Tensor:
    """The token at which the cumulative probability first exceeds u: exact sampling from softmax(logits).

    Two levels: the block of 64 tokens first, then the token in it, so that no running sum over the whole vocabulary
    is needed. Args: logits [B, V]; uniforms [B]. Returns int32 [B].
    """
    vocabulary_size = logits.shape[-1]
    room = -vocabulary_size % _BLOCK
    weights = tf.exp(logits - tf.reduce_max(logits, axis=-1, keepdims=True))
    blocks = tf.reshape(tf.pad(weights, [[0, 0], [0, room]]), [-1, (vocabulary_size + room) // _BLOCK, _BLOCK])
    sums = tf.reduce_sum(blocks, axis=-1)
    block_ends = tf.cumsum(sums, axis=-1)
    target = uniforms[:, None] * block_ends[:, -1:]
    block = _first_above(block_ends, target)
    before = tf.where(block > 0, tf.gather(block_ends, tf.maximum(block - 1, 0), batch_dims=1), 0.0)
    inside = tf.gather(blocks, block, batch_dims=1)
    place = _first_above(tf.cumsum(inside, axis=-1), target - before[:, None])
    # Rounding of the sums can point at a neighbour of no probability at all (PAD, a filtered token): never take it, but
    # the likeliest token of the likeliest block.
    possible = tf.gather(inside, place, batch_dims=1) > 0.0
    likeliest = tf.argmax(sums, axis=-1, output_type=tf.int32)
    instead = tf.argmax(tf.gather(blocks, likeliest, batch_dims=1), axis=-1, output_type=tf.int32)
    return tf.where(possible, block * _BLOCK + place, likeliest * _BLOCK + instead)


def _first_above(ends, target):
    """Index of the first of `ends` [B, N] above `target` [B, 1]; the last index where none is."""
    count = tf.reduce_sum(tf.cast(ends <= target, tf.int32), axis=-1)
    return tf.minimum(count, ends.shape[-1] - 1)


def draw_tokens(
    logits: tf.Tensor, uniforms: tf.Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> tuple[tf.Tensor, tf.Tensor]:
    """A token a row, and its log-probability under the distribution drawn from: temperature and filters applied.

    Args: logits [B, V]; uniforms [B]; temperature: 0 takes the likeliest token, whose log-probability is that at
        temperature 1.
    Returns: int32 [B], float32 [B].
    """
    logits = filter_logits(tf.cast(logits, tf.float32) / (temperature or 1.0), top_k=top_k, top_p=top_p)
    if temperature == 0.0:
        tokens = tf.argmax(logits, axis=-1, output_type=tf.int32)
    else:
        tokens = inverse_cdf_sample(logits, uniforms)
    return tokens, token_logprobs(logits, tokens)

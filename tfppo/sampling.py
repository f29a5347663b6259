"""Sampling: one loop that returns the tokens together with their log-probabilities and values.

The randomness comes in as data: `uniforms` [B, R], one number a token. So the same numbers give the same text on any
count of replicas, compiled or not, and different rows differ.
"""

import tensorflow as tf

from tfppo.models.transformer import MASKED_SCORE
from tfppo.ops.logprobs import token_logprobs
from tfppo.ops.shapes import size_of
from tfppo.types import Samples

_BLOCK = 64  # tokens a block of the two-level search


def draw_uniforms(seed, batch_size, response_length):
    """Uniform numbers in [0, 1) for a batch, from an int32 [2] seed: float32 [B, R].

    Made from integer bits, which are the same in every compile mode; 23 of them, so that u * total < total in float32.
    """
    bits = tf.random.stateless_uniform(
        [batch_size, response_length], seed, minval=None, maxval=None, dtype=tf.uint32, alg="philox"
    )
    return tf.cast(tf.bitwise.right_shift(bits, tf.constant(9, tf.uint32)), tf.float32) * 2.0**-23


def filter_logits(logits, *, top_k=0, top_p=1.0):
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


def inverse_cdf_sample(logits, uniforms):
    """The token at which the cumulative probability first exceeds u: exact sampling from softmax(logits).

    Two levels: the block of 64 tokens first, then the token in it, so that no running sum over the whole vocabulary
    is needed. Args: logits [B, V]; uniforms [B]. Returns int32 [B].
    """
    vocabulary_size = logits.shape[-1]
    room = -vocabulary_size % _BLOCK
    weights = tf.exp(logits - tf.reduce_max(logits, axis=-1, keepdims=True))
    blocks = tf.reshape(tf.pad(weights, [[0, 0], [0, room]]), [-1, (vocabulary_size + room) // _BLOCK, _BLOCK])
    block_ends = tf.cumsum(tf.reduce_sum(blocks, axis=-1), axis=-1)
    target = uniforms[:, None] * block_ends[:, -1:]
    block = _first_above(block_ends, target)
    before = tf.where(block > 0, tf.gather(block_ends, tf.maximum(block - 1, 0), batch_dims=1), 0.0)
    inside = tf.gather(blocks, block, batch_dims=1)
    token = block * _BLOCK + _first_above(tf.cumsum(inside, axis=-1), target - before[:, None])
    token = tf.minimum(token, vocabulary_size - 1)
    # Rounding of the sums can point at a neighbour of no probability at all (PAD, a filtered token): never take it.
    possible = tf.gather(weights, token, batch_dims=1) > 0.0
    return tf.where(possible, token, tf.argmax(logits, axis=-1, output_type=tf.int32))


def _first_above(ends, target):
    """Index of the first of `ends` [B, N] above `target` [B, 1]; the last index where none is."""
    count = tf.reduce_sum(tf.cast(ends <= target, tf.int32), axis=-1)
    return tf.minimum(count, ends.shape[-1] - 1)


def sample(
    policy,
    prompt_ids,
    prompt_mask,
    uniforms,
    *,
    stop_id,
    pad_id,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    value_after_stop=False,
):
    """Continues each prompt by up to R sampled tokens, until its stop token; ends when every row has stopped.

    The log-probabilities are those of the distribution sampled from: temperature and filters applied.

    Args: prompt_ids, prompt_mask [B, P], padded on the left; uniforms [B, R]; stop_id: None never stops;
        temperature 0 takes the likeliest token (log-probabilities then are those at temperature 1); value_after_stop
        also notes the value of the state that the stop token leads to, at the first padding position.
    Returns: Samples.
    """
    prompt_length, response_length = size_of(prompt_ids, 1), uniforms.shape[1]
    batch_size = size_of(prompt_ids, 0)
    prompt_mask = tf.cast(prompt_mask, tf.int32)
    prompt_sizes = tf.reduce_sum(prompt_mask, axis=1)
    cache_length = prompt_length + response_length - 1
    real = tf.pad(prompt_mask, [[0, 0], [0, response_length - 1]], constant_values=1) > 0

    def choose(logits, step):
        logits = filter_logits(logits / (temperature or 1.0), top_k=top_k, top_p=top_p)
        if temperature == 0.0:
            tokens = tf.argmax(logits, axis=-1, output_type=tf.int32)
        else:
            tokens = inverse_cdf_sample(logits, tf.gather(uniforms, step, axis=1))
        return tokens, token_logprobs(logits, tokens)

    def write(buffer, step, row):
        return tf.tensor_scatter_nd_update(buffer, [[step]], row[None])

    def record(step, alive, valued, buffers, logits, values):
        """Draws the token of this step for every row and notes it for the rows still alive."""
        tokens, logprobs = choose(logits, step)
        tokens = tf.where(alive, tokens, pad_id)
        rows = (tokens, tf.cast(alive, tf.float32), tf.where(alive, logprobs, 0.0), tf.where(valued, values, 0.0))
        buffers = tuple(write(buffer, step, row) for buffer, row in zip(buffers, rows, strict=True))
        still_alive = alive if stop_id is None else alive & (tokens != stop_id)
        return tokens, still_alive, alive if value_after_stop else still_alive, buffers

    def body(step, tokens, alive, valued, buffers, cache):
        index = prompt_length + step - 1
        visible = real & (tf.range(cache_length) <= index)
        logits, values, cache = policy.decode_step(tokens, prompt_sizes + step - 1, index, visible, cache)
        return step + 1, *record(step, alive, valued, buffers, logits, values), cache

    empty = tf.zeros([response_length, batch_size])
    buffers = (tf.fill([response_length, batch_size], pad_id), empty, empty, empty)
    logits, values, cache = policy.prefill(prompt_ids, prompt_mask, cache_length)
    everyone = tf.fill([batch_size], True)
    state = (tf.constant(1), *record(0, everyone, everyone, buffers, logits, values), cache)
    _, _, alive, _, buffers, _ = tf.while_loop(
        lambda step, tokens, alive, valued, buffers, cache: (step < response_length) & tf.reduce_any(valued),
        body,
        state,
    )
    return Samples(*(tf.transpose(buffer) for buffer in buffers), stopped=tf.logical_not(alive))

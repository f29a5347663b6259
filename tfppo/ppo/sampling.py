"""Sampling: one loop that returns the tokens together with their log-probabilities and values.

The randomness comes in as data: `uniforms` [B, R], one number a token. So the same numbers give the same text on any
count of replicas, compiled or not, and different rows differ.
"""

from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import tensorflow as tf

from tfppo.computation.native.decoder import NativePolicy, draw_natively
from tfppo.models.precision import casting_once
from tfppo.models.transformer import MASKED_SCORE
from tfppo.ops.logprobs import token_logprobs
from tfppo.ops.shapes import size_of
from tfppo.ops.slots import write_slot
from tfppo.ppo.types import Samples

_BLOCK = 64  # tokens a block of the two-level search
_FEWEST_ROWS = 4  # smaller batches are not made: their steps take hardly less time


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


class _Rows(NamedTuple):
    """The rows that are being sampled, after some steps."""

    step: tf.Tensor  # scalar: tokens that every row has
    tokens: tf.Tensor  # [B] the last ones
    alive: tf.Tensor  # [B] bool, no stop token yet
    valued: tf.Tensor  # [B] bool, the state reached still needs its value
    sizes: tf.Tensor  # [B] prompt lengths
    real: tf.Tensor  # [B, C] bool, cache slots that are not a prompt's padding
    uniforms: tf.Tensor  # [B, R]
    buffers: tuple  # of [B, R]: token ids, mask, log-probabilities, values
    cache: tuple  # nest of [B, H, C, D/H]


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
    compiled=False,
    native=None,
):
    """Continues each prompt by up to R sampled tokens, until its stop token; ends when every row has stopped.

    The log-probabilities are those of the distribution sampled from: temperature and filters applied. Once half of the
    rows have stopped, the others go on in a batch of half the size, and so on: a long row does not hold up all of them.

    Args: prompt_ids, prompt_mask [B, P], padded on the left; uniforms [B, R]; stop_id: None never stops;
        temperature 0 takes the likeliest token (log-probabilities then are those at temperature 1); value_after_stop
        also notes the value of the state that the stop token leads to, at the first padding position; compiled: XLA
        compiles the reading of the prompts and the loop of each batch size, when they are first needed; native: the
        operations of `native_ops`, which then read prompts and tokens, while XLA compiles the choice
        of a token among filtered ones alone.
    Returns: Samples.
    """
    reader = NativePolicy(policy, native) if native else policy
    loop_compiled = compiled and not native
    response_length = uniforms.shape[1]
    cache_length = size_of(prompt_ids, 1) + response_length - 1

    def choose(logits, numbers):
        logits = filter_logits(tf.cast(logits, tf.float32) / (temperature or 1.0), top_k=top_k, top_p=top_p)
        if temperature == 0.0:
            tokens = tf.argmax(logits, axis=-1, output_type=tf.int32)
        else:
            tokens = inverse_cdf_sample(logits, numbers)
        return tokens, token_logprobs(logits, tokens)

    if native and temperature and not top_k and top_p >= 1.0:
        choose = partial(draw_natively, native, temperature)
    elif native and compiled:
        choose = tf.function(choose, jit_compile=True)

    def with_token(rows, logits, values, cache):
        """Draws the next token of every row and notes it for the rows still alive."""
        step, alive = rows.step, rows.alive
        tokens, logprobs = choose(logits, tf.gather(rows.uniforms, step, axis=1))
        tokens = tf.where(alive, tokens, pad_id)
        notes = (tokens, tf.cast(alive, tf.float32), tf.where(alive, logprobs, 0.0), tf.where(rows.valued, values, 0.0))
        buffers = tuple(
            write_slot(buffer, note, step, axis=1, compiled=loop_compiled)
            for buffer, note in zip(rows.buffers, notes, strict=True)
        )
        still_alive = alive if stop_id is None else alive & (tokens != stop_id)
        valued = alive if value_after_stop else still_alive
        return rows._replace(
            step=step + 1, tokens=tokens, alive=still_alive, valued=valued, buffers=buffers, cache=cache
        )

    def start(prompt_ids, prompt_mask, uniforms, enough):
        """Reads the prompts, and goes on as `go_on`: in one compiled piece, which then holds one cache, not two."""
        prompt_mask = tf.cast(prompt_mask, tf.int32)
        batch_size = size_of(prompt_ids, 0)
        everyone = tf.fill([batch_size], True)
        empty = tf.zeros([batch_size, response_length])
        logits, values, cache = reader.prefill(prompt_ids, prompt_mask, cache_length)
        rows = _Rows(
            step=tf.constant(0),
            tokens=tf.fill([batch_size], pad_id),
            alive=everyone,
            valued=everyone,
            sizes=tf.reduce_sum(prompt_mask, axis=1),
            real=tf.pad(prompt_mask, [[0, 0], [0, response_length - 1]], constant_values=1) > 0,
            uniforms=uniforms,
            buffers=(tf.fill([batch_size, response_length], pad_id), empty, empty, empty),
            cache=cache,
        )
        return go_on_eagerly(with_token(rows, logits, values, cache), enough)

    def go_on_eagerly(rows, enough):
        """Steps until no more than `enough` rows still need one, or all have R tokens."""

        def body(*state):
            rows = _Rows(*state)
            index = cache_length - response_length + rows.step
            visible = rows.real & (tf.range(cache_length) <= index)
            step = (rows.tokens, rows.sizes + rows.step - 1, index, visible)
            return with_token(rows, *reader.decode_step(*step, rows.cache, loop_compiled))

        def is_needed(*state):
            rows = _Rows(*state)
            return (rows.step < response_length) & (_count(rows.valued) > enough)

        return _Rows(*tf.while_loop(is_needed, body, rows))

    go_on = go_on_eagerly
    if loop_compiled:
        start, go_on = tf.function(start, jit_compile=True), tf.function(go_on_eagerly, jit_compile=True)

    def enough_of(size):
        """How many of `size` rows may still need tokens when the others leave: 0 where none ever leave."""
        can_shrink = stop_id is not None and size is not None and size % 2 == 0 and size >= 2 * _FEWEST_ROWS
        return size // 2 if can_shrink else 0

    def finish(rows):
        """Buffers and which rows are alive, when all have R tokens that need them; no more need some than is enough."""
        size = rows.tokens.shape[0]
        done = (*rows.buffers, rows.alive)
        if not enough_of(size):
            return done

        def rest():
            kept = tf.argsort(tf.cast(rows.valued, tf.int32), direction="DESCENDING", stable=True)[: size // 2]
            half = tf.nest.map_structure(lambda tensor: tf.gather(tensor, kept) if tensor.shape.rank else tensor, rows)
            longer_rows = finish(go_on(half, tf.constant(enough_of(size // 2))))
            return tuple(
                tf.tensor_scatter_nd_update(all_rows, kept[:, None], longer)
                for all_rows, longer in zip(done, longer_rows, strict=True)
            )

        return tf.cond((rows.step < response_length) & tf.reduce_any(rows.valued), rest, lambda: done)

    enough = tf.constant(enough_of(prompt_ids.shape[0]))
    with nullcontext() if loop_compiled or native else casting_once(policy):
        *buffers, alive = finish(start(prompt_ids, prompt_mask, uniforms, enough))
    return Samples(*buffers, stopped=tf.logical_not(alive))


def _count(flags):
    return tf.reduce_sum(tf.cast(flags, tf.int32))

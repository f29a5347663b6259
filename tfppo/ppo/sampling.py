"""Sampling: one loop that returns the tokens together with their log-probabilities and values.

The random numbers are an argument: `uniforms` [B, R], one number a token. The same numbers give the same text on any
number of replicas, compiled or not.
"""

from functools import partial

import tensorflow as tf

from tfppo.computation.engine import Engine
from tfppo.models.policy import Policy
from tfppo.ops.shapes import size_of
from tfppo.ppo.drawing import draw_tokens
from tfppo.ppo.leaving import Rows, enough_of, go_on_in_smaller_batches
from tfppo.ppo.types import Samples


def sample(
    policy: Policy,
    prompt_ids: tf.Tensor,
    prompt_mask: tf.Tensor,
    uniforms: tf.Tensor,
    *,
    engine: Engine,
    stop_id: int | None,
    pad_id: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    value_after_stop: bool = False,
) -> Samples:
    """Continues each prompt by up to R sampled tokens, until its stop token; ends when every row has stopped.

    The log-probabilities are those of the distribution sampled from: temperature and filters applied. Once half of the
    rows have stopped, the others go on in a batch of half the size, and so on: a long row does not hold up all of them.
    An engine of `fixed_shapes` samples in one program instead, of all rows to the end.

    Args: prompt_ids, prompt_mask [B, P], padded on the left; uniforms [B, R]; engine: computes policy and draws;
        stop_id: None never stops; temperature 0 takes the likeliest token (log-probabilities then are those at
        temperature 1); value_after_stop also notes the value of the state that the stop token leads to, at the first
        padding position.
    """
    draw = partial(draw_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
    loop = _Loop(
        engine.decoder(policy),
        engine.drawer(draw, temperature=temperature, filtered=top_k > 0 or top_p < 1.0),
        engine.write_slot,
        prompt_length=size_of(prompt_ids, 1),
        response_length=uniforms.shape[1],
        stop_id=stop_id,
        pad_id=pad_id,
        value_after_stop=value_after_stop,
    )
    start, go_on = engine.piece(loop.start), engine.piece(loop.go_on)
    rows_leave = stop_id is not None and not engine.fixed_shapes
    rows = start(prompt_ids, prompt_mask, uniforms, tf.constant(enough_of(prompt_ids.shape[0], rows_leave)))
    rows = go_on_in_smaller_batches(rows, go_on, rows_leave)
    return Samples(*rows.buffers, stopped=tf.logical_not(rows.alive))


class _Loop:
    """The steps of sampling: read the prompts, draw a token, read it, draw the next one.

    Args: decoder, draw, write_slot: of an engine.
    """

    def __init__(self, decoder, draw, write_slot, *, prompt_length, response_length, stop_id, pad_id, value_after_stop):
        self.decoder, self.draw, self.write_slot = decoder, draw, write_slot
        self.response_length, self.cache_length = response_length, prompt_length + response_length - 1
        self.stop_id, self.pad_id, self.value_after_stop = stop_id, pad_id, value_after_stop

    def start(self, prompt_ids, prompt_mask, uniforms, enough) -> Rows:
        """Reads the prompts, and goes on as `go_on`: in one compiled piece, which then holds one cache, not two."""
        prompt_mask = tf.cast(prompt_mask, tf.int32)
        logits, values, cache = self.decoder.prefill(prompt_ids, prompt_mask, self.cache_length)
        rows = self.with_token(self.first_rows(prompt_ids, prompt_mask, uniforms, cache), logits, values, cache)
        return self.go_on(rows, enough)

    def go_on(self, rows: Rows, enough) -> Rows:
        """Steps until no more than `enough` rows still need one, or all have R tokens."""

        def is_needed(*state):
            rows = Rows(*state)
            return (rows.step < self.response_length) & (_count(rows.valued) > enough)

        def body(*state):
            rows = Rows(*state)
            index = self.cache_length - self.response_length + rows.step
            visible = rows.real & (tf.range(self.cache_length) <= index)
            positions = rows.sizes + rows.step - 1
            return self.with_token(rows, *self.decoder.decode_step(rows.tokens, positions, index, visible, rows.cache))

        return Rows(*tf.while_loop(is_needed, body, rows))

    def with_token(self, rows: Rows, logits, values, cache) -> Rows:
        """Draws the next token of every row and notes it for the rows still alive."""
        step, alive = rows.step, rows.alive
        tokens, logprobs = self.draw(logits, tf.gather(rows.uniforms, step, axis=1))
        tokens = tf.where(alive, tokens, self.pad_id)
        notes = (tokens, tf.cast(alive, tf.float32), tf.where(alive, logprobs, 0.0), tf.where(rows.valued, values, 0.0))
        buffers = tuple(
            self.write_slot(buffer, note, step, axis=1) for buffer, note in zip(rows.buffers, notes, strict=True)
        )
        still_alive = alive if self.stop_id is None else alive & (tokens != self.stop_id)
        valued = alive if self.value_after_stop else still_alive
        return rows._replace(
            step=step + 1, tokens=tokens, alive=still_alive, valued=valued, buffers=buffers, cache=cache
        )

    def first_rows(self, prompt_ids, prompt_mask, uniforms, cache) -> Rows:
        """The rows before their first token."""
        batch_size = size_of(prompt_ids, 0)
        everyone = tf.fill([batch_size], True)
        empty = tf.zeros([batch_size, self.response_length])
        real = tf.pad(prompt_mask, [[0, 0], [0, self.response_length - 1]], constant_values=1) > 0
        return Rows(
            step=tf.constant(0),
            tokens=tf.fill([batch_size], self.pad_id),
            alive=everyone,
            valued=everyone,
            sizes=tf.reduce_sum(prompt_mask, axis=1),
            real=real,
            uniforms=uniforms,
            buffers=(tf.fill([batch_size, self.response_length], self.pad_id), empty, empty, empty),
            cache=cache,
        )


def _count(flags):
    return tf.reduce_sum(tf.cast(flags, tf.int32))

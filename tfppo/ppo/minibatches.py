"""How a rollout is cut: into minibatches in a new order each epoch, and a minibatch into parts that fit in memory.

The gradients of parts are summed, so any division gives the same result. Rows of similar length therefore share a part,
which then has little padding. If the engine skips padding by itself, the states that count are gathered instead.
"""

import math
from typing import NamedTuple

import tensorflow as tf

from tfppo.config import PpoConfig
from tfppo.ops.lengths import LENGTH_PARTS, at_places, bucket_of
from tfppo.ops.losses import token_weights
from tfppo.ppo.types import Targets, TokenWeights
from tfppo.training.replicas import check_divides, share_of_replica

_LENGTH_BUCKETS = 8  # lengths that parts are cut to: each one is compiled when it first comes up


def shuffled_minibatches(seed: tf.Tensor, config: PpoConfig) -> tf.Tensor:
    """Row numbers of every minibatch of every epoch, a new order each epoch: int32 [epochs * minibatches, M]."""
    rows = tf.range(config.rollout_batch_size)
    orders = [
        tf.random.experimental.stateless_shuffle(rows, seed + tf.constant([0, epoch]))
        for epoch in range(config.ppo_epochs)
    ]
    return tf.reshape(tf.stack(orders), [config.ppo_epochs * config.num_minibatches, -1])


def check_minibatches(config: PpoConfig, strategy: tf.distribute.Strategy) -> None:
    """Raises UserError unless the number of replicas divides the part of a minibatch that is computed at once."""
    part = config.rollout_batch_size // config.num_minibatches // config.accumulation_steps
    check_divides(strategy, "ppo.rollout_batch_size / ppo.num_minibatches / ppo.accumulation_steps", part)


class Division(NamedTuple):
    """This replica's rows of a minibatch, by part."""

    rows: tf.Tensor  # int [parts, b], of the rollout
    weights: TokenWeights  # [parts, b, R] each
    lengths: tf.Tensor  # int [parts, b], of responses, the state after the last token included where it has a value


class Part(NamedTuple):
    """Some rows of a minibatch, whose gradients are computed at once."""

    targets: Targets  # [b, ...]
    weights: TokenWeights  # [b, R] each
    places: tf.Tensor | None  # int [N], which of the b x R states count, row after row; None: all of them


class Cutter:
    """Cuts this replica's share of a minibatch into parts.

    Args:
        lengths_vary: whether responses may be shorter than R.
        skips_padding: whether the engine does; see `Engine`.
    """

    def __init__(self, config: PpoConfig, *, lengths_vary: bool, skips_padding: bool):
        self._config = config
        self._by_length = lengths_vary and not skips_padding
        self._by_place = lengths_vary and skips_padding

    def divide(self, targets: Targets, rows: tf.Tensor) -> Division:
        """The rows [M] of a minibatch that this replica computes, by part. Call it inside `strategy.run`.

        Each token enters with its weight in the whole minibatch, however that is cut.
        """
        mask = tf.gather(targets.response_mask, rows)
        critic_mask = tf.gather(targets.critic_mask, rows)
        weights = (
            token_weights(mask, self._config.loss_aggregation),
            token_weights(mask, "token_mean"),
            token_weights(critic_mask, "token_mean"),
        )
        mine = share_of_replica((rows, weights, last_position(mask, critic_mask) + 1))
        num_parts = self._config.accumulation_steps
        if self._by_length:
            order = tf.argsort(mine[2], stable=True)
            mine = tf.nest.map_structure(lambda tensor: tf.gather(tensor, order), mine)
            num_parts *= math.gcd(mine[0].shape[0] // num_parts, LENGTH_PARTS)

        def by_part(tensor):
            return tf.reshape(tensor, [num_parts, -1, *tensor.shape[1:]])

        return Division(*tf.nest.map_structure(by_part, mine))

    def part(self, targets: Targets, division: Division, number: int) -> Part:
        """The part with this number; padding is cut off where computing it would take time."""
        batch = tf.nest.map_structure(lambda tensor: tf.gather(tensor, division.rows[number]), targets)
        weights = tuple(tensor[number] for tensor in division.weights)
        if self._by_length:
            batch, weights = cut_responses((batch, weights), tf.reduce_max(division.lengths[number]), _LENGTH_BUCKETS)
        places = None
        if self._by_place:
            places = places_of(batch.response_mask, batch.critic_mask, buckets=_LENGTH_BUCKETS)
        return Part(batch, weights, places)


def at_places_of(part: Part) -> tuple[Targets, TokenWeights]:
    """Targets and weights of only the states that count, [N, 1] each; the prompts stay [b, P]."""
    if part.places is None:
        return part.targets, part.weights
    prompts, responses = part.targets[:2], part.targets[2:]
    picked, weights = tf.nest.map_structure(
        lambda tensor: at_places(tensor, part.places), (tuple(responses), part.weights)
    )
    return Targets(*prompts, *picked), weights


def last_position(*masks: tf.Tensor) -> tf.Tensor:
    """The last position of each row that is 1 in one of the masks [B, R]; -1 if there is none: int32 [B]."""
    position = tf.range(masks[0].shape[1])
    return tf.reduce_max(tf.stack([tf.where(mask > 0, position, -1) for mask in masks]), axis=[0, 2])


def places_of(*masks: tf.Tensor, buckets: int) -> tf.Tensor:
    """Flat indices of the states where one of the masks [B, R] is 1, filled up so that N takes few different values.

    Args: buckets: how many values N can take. Returns: int32 [N].
    """
    is_real = tf.reduce_any(tf.stack(masks) > 0, axis=0)
    flat = tf.reshape(is_real, [-1])
    places = tf.cast(tf.where(flat)[:, 0], tf.int32)
    count = tf.minimum(bucket_of(tf.maximum(tf.size(places), 1), tf.size(flat), buckets), tf.size(flat))
    other = tf.argmin(tf.cast(flat, tf.int32), output_type=tf.int32)  # there is one where there is room for it
    return tf.concat([places, tf.fill([count - tf.size(places)], other)], axis=0)


def cut_responses(batch: tuple[Targets, TokenWeights], length: tf.Tensor, buckets: int) -> tuple[Targets, TokenWeights]:
    """A Targets and weights with responses cut to `length` tokens, rounded up so that there are few different lengths.

    Args: batch: a nest of a Targets of [b, P] prompts and [b, R] others, and of [b, R]; buckets: how many lengths.
    """
    targets, weights = batch
    length = bucket_of(tf.maximum(length, 1), targets.response_ids.shape[1], buckets)

    def cut(tensor):
        return tensor[:, :length]

    prompts = dict(prompt_ids=targets.prompt_ids, prompt_mask=targets.prompt_mask)
    return tf.nest.map_structure(cut, targets)._replace(**prompts), tf.nest.map_structure(cut, weights)

"""Replicas: which devices to use, and how rows of a batch are shared among them.

One code path serves one device and several. Every replica holds the whole rollout, which is small, and computes its own
rows of it. Gradients and statistics are summed over replicas, so results do not depend on their number.
"""

from collections.abc import Callable
from typing import TypeVar

import tensorflow as tf

from tfppo.computation.devices import round_products
from tfppo.errors import UserError

# Nests of tensors: the result has the structure of the argument.
Rows = TypeVar("Rows")
Results = TypeVar("Results")


def make_strategy(num_replicas: int = 0) -> tf.distribute.Strategy:
    """MirroredStrategy over the GPUs, or over logical CPU devices where there is none.

    Products in float32 are exact to float32 from then on; `round_products` changes that.

    Args: num_replicas: 0 takes every GPU, or one CPU.
    Raises: UserError where there are fewer GPUs than asked for.
    """
    round_products(tensorfloat32=False)
    gpus = tf.config.list_logical_devices("GPU") if tf.config.list_physical_devices("GPU") else []
    if gpus:
        if num_replicas > len(gpus):
            raise UserError(
                f"num_replicas is {num_replicas}, but there are {len(gpus)} GPUs; lower it or use 0 for all"
            )
        return tf.distribute.MirroredStrategy([gpu.name for gpu in gpus[: num_replicas or None]])
    count = max(num_replicas, 1)
    if count > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])


def share_of_replica(rows: Rows) -> Rows:
    """The contiguous rows of this replica, from tensors that every replica holds whole: nest of [B, ...] to [B/N, ...].

    Call it inside `strategy.run`. N must divide B.
    """
    context = tf.distribute.get_replica_context()
    count, index = context.num_replicas_in_sync, context.replica_id_in_sync_group

    def share(tensor):
        return tf.reshape(tensor, [count, tensor.shape[0] // count, *tensor.shape[1:]])[index]

    return tf.nest.map_structure(share, rows)


def map_rows(strategy: tf.distribute.Strategy, fn: Callable[..., Results], *rows: tf.Tensor) -> Results:
    """Maps the rows of a batch on all replicas, a share on each, and concatenates the results in order.

    Call it inside a `tf.function`. Args: rows: tensors [B, ...]; fn maps [B/N, ...] to a nest of [B/N, ...].
    """
    results = strategy.run(lambda *whole: fn(*share_of_replica(whole)), rows)
    parts = strategy.experimental_local_results(results)
    return tf.nest.map_structure(lambda *local: tf.concat(local, axis=0), *parts)


def check_divides(strategy: tf.distribute.Strategy, name: str, value: int) -> None:
    """Raises UserError unless the number of replicas divides a batch size."""
    count = strategy.num_replicas_in_sync
    if value % count:
        raise UserError(f"{name} is {value}; the number of replicas, {count}, must divide it")


def slot_of_replica(value: tf.Tensor) -> tf.Tensor:
    """A vector [N] with a scalar in the slot of this replica, so that the sum over replicas keeps every scalar."""
    context = tf.distribute.get_replica_context()
    return value * tf.one_hot(context.replica_id_in_sync_group, context.num_replicas_in_sync)

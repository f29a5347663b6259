"""Replicas: which devices to use, and how rows of a batch are shared among them.

One code path serves one device and several. Every replica holds the whole rollout, which is small, and computes its own
rows of it. Gradients and statistics are summed over replicas, so results do not depend on their number.
"""

from collections.abc import Callable
from typing import TypeVar

import tensorflow as tf

from tfppo.cluster import this_cluster
from tfppo.computation.devices import has_gpu, round_products
from tfppo.errors import UserError
from tfppo.training.buckets import sum_in_buckets
from tfppo.training.interrupt import listen_again
from tfppo.training.workers import is_several

# Nests of tensors: the result has the structure of the argument.
Rows = TypeVar("Rows")
Results = TypeVar("Results")


_CROSS_DEVICE_OPS: dict[str, Callable[[], tf.distribute.CrossDeviceOps | None]] = {
    "auto": lambda: None,
    "nccl": tf.distribute.NcclAllReduce,
    "hierarchical_copy": tf.distribute.HierarchicalCopyAllReduce,
    "reduction_to_one_device": tf.distribute.ReductionToOneDevice,
}
# Over several machines there are two ways. A ring needs no NCCL.
_COMMUNICATION = {"auto": "AUTO", "nccl": "NCCL", "hierarchical_copy": "RING", "reduction_to_one_device": "RING"}


def make_strategy(
    num_replicas: int = 0, cross_device_ops: str = "auto", tensorfloat32: bool = False
) -> tf.distribute.Strategy:
    """The strategy over the devices of this machine, or of all machines that TF_CONFIG names.

    It must be made before TensorFlow computes anything.

    Args:
        num_replicas: 0 takes every GPU, or one CPU of each machine.
        cross_device_ops: how sums over replicas are made; one of CROSS_DEVICE_OPS.
        tensorfloat32: whether float32 products on GPUs may round their factors from then on; see `round_products`.
    Raises: UserError where there are not as many devices as asked for, or not what the sums are to be made by.
    """
    round_products(tensorfloat32=tensorfloat32)
    if cross_device_ops == "nccl" and not has_gpu():
        raise UserError("cross_device_ops is 'nccl', but TensorFlow finds no GPU here; leave it at 'auto'")
    if this_cluster().count > 1:
        return _strategy_of_workers(num_replicas, cross_device_ops)
    return tf.distribute.MirroredStrategy(_devices(num_replicas), _CROSS_DEVICE_OPS[cross_device_ops]())


def _strategy_of_workers(num_replicas, cross_device_ops):
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=tf.distribute.experimental.CommunicationImplementation[_COMMUNICATION[cross_device_ops]]
    )
    cluster = this_cluster()
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    except tf.errors.UnknownError as error:
        if "Could not start gRPC server" not in error.message:
            raise
        raise UserError(
            f"worker {cluster.index} cannot listen at {cluster.addresses[cluster.index]}, its address in TF_CONFIG: "
            f"another process has this port; end it, or name another port at all workers"
        ) from error
    listen_again()  # TensorFlow's own handler of SIGTERM tells nobody here
    total = strategy.num_replicas_in_sync
    if num_replicas not in (0, total):
        raise UserError(
            f"num_replicas is {num_replicas}, but {cluster.count} workers have {total} in all; use 0, which "
            f"takes them all"
        )
    return strategy


def _devices(num_replicas):
    """The devices of one machine: GPUs, or logical CPU devices where there is none."""
    gpus = tf.config.list_logical_devices("GPU") if has_gpu() else []
    if gpus:
        if num_replicas > len(gpus):
            raise UserError(
                f"num_replicas is {num_replicas}, but there are {len(gpus)} GPUs; lower it or use 0 for all"
            )
        return [gpu.name for gpu in gpus[: num_replicas or None]]
    count = max(num_replicas, 1)
    if count > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    return [f"CPU:{i}" for i in range(count)]


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

    Every worker gets those of all workers.

    Call it inside a `tf.function`. Args: rows: tensors [B, ...]; fn maps [B/N, ...] to a nest of [B/N, ...].
    """
    gather = _gather_over_workers if is_several(strategy) else _gather
    return gather(strategy, lambda *whole: fn(*share_of_replica(whole)), rows)


def _gather(strategy, fn, rows):
    """The results of all replicas of this process, concatenated."""
    parts = strategy.experimental_local_results(strategy.run(fn, rows))
    return tf.nest.map_structure(lambda *local: tf.concat(local, axis=0), *parts)


def _gather_over_workers(strategy, fn, rows):
    """The results of all replicas, at every worker: a sum in which each replica fills its own rows.

    It goes in float32, which holds tokens and flags exactly, as gradients do: every device can sum that.
    """

    def of_replica(*whole):
        context = tf.distribute.get_replica_context()
        count, index = context.num_replicas_in_sync, tf.cast(context.replica_id_in_sync_group, tf.int32)
        results = fn(*whole)

        def placed(tensor):
            rows, rest = tensor.shape[0], [[0, 0]] * (tensor.shape.rank - 1)
            whole = tf.pad(tf.cast(tensor, tf.float32), [[index * rows, (count - 1 - index) * rows], *rest])
            return tf.ensure_shape(whole, [count * rows, *tensor.shape[1:]])

        mine = tf.nest.flatten(results)
        totals = sum_in_buckets(sum_over_replicas, [placed(tensor) for tensor in mine])
        typed = [tf.cast(total, tensor.dtype) for total, tensor in zip(totals, mine, strict=True)]
        return tf.nest.pack_sequence_as(results, typed)

    return tf.nest.map_structure(
        lambda value: strategy.experimental_local_results(value)[0], strategy.run(of_replica, rows)
    )


def sum_over_replicas(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    """The sums of tensors over all replicas. Call it inside `strategy.run`."""
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tensors)


def check_divides(strategy: tf.distribute.Strategy, name: str, value: int) -> None:
    """Raises UserError unless the number of replicas divides a batch size."""
    count = strategy.num_replicas_in_sync
    if value % count:
        raise UserError(f"{name} is {value}; the number of replicas, {count}, must divide it")


def slot_of_replica(value: tf.Tensor) -> tf.Tensor:
    """A vector [N] with a scalar in the slot of this replica, so that the sum over replicas keeps every scalar."""
    context = tf.distribute.get_replica_context()
    return value * tf.one_hot(context.replica_id_in_sync_group, context.num_replicas_in_sync)

"""What the workers of a run tell each other: one small object, which a run on one machine has too, and says nothing.

A worker is a process, as a rule one on each machine. All of them train: each computes the rows of its replicas. Worker
0, the chief, alone calls reward functions, writes and prints (`tfppo.cluster`). What one of them finds out by itself
and the training depends on (scores, a signal, what is in a file) goes through here, or they would part.

Everything here is a sum over workers, as the gradients are. TensorFlow numbers these sums as they come: all workers
must make the same ones in the same order.
"""

import io
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfppo.cluster import Cluster, this_cluster
from tfppo.errors import UserError
from tfppo.training.checkpoint import CheckpointKeeper, digest, weights_digest

Answer = Mapping[str, np.ndarray | float]

_PIECE = 2**14  # numbers in one message of `_share`: the scores of a usual batch, with their means, fit
_HEAD = 3  # of the first one: whether it is an error, and the number of bytes in two parts
_BASE = 2**16  # bytes go in pairs, as numbers that float32 holds exactly on every device
_DIGITS = 4  # such numbers of a digest
_SECONDS_TO_NOTICE = 1.0  # for others to end by the same error, before they find that this worker is gone
_PLACE = re.compile(r"/job:worker/(?:replica:\d+/)?task:(\d+)")
_REASON = {True: "it has not been heard of for some seconds", False: "it has closed its connection"}
SHARED = (
    "--workdir, and the models and data that settings name, must be on a file system that all machines share, or be "
    "the same everywhere"
)
_AGAIN = "start all workers again with the same command to go on from the last checkpoint"


class Alone:
    """The only worker: everything holds everywhere."""

    cluster = Cluster()

    def barrier(self) -> None:
        """Waits until all workers are here."""

    def any_of(self, flag: bool) -> bool:
        """Whether a flag is set at some worker. All ask at the same place."""
        return bool(flag)

    def part(self) -> None:
        """Ends the run: waits until all workers are at its end."""

    def agree(self, what: str, value: str, remedy: str) -> None:
        """Raises UserError at every worker where one has another value. Args: what: the value is of."""

    def chief_answers(self, answer: Callable[[], Answer], meanwhile: Callable[[], object] = lambda: None) -> Answer:
        """What `answer` returns at the chief, which alone calls it.

        Args: meanwhile: is called at every worker before the answer is told: sums of another thread end there.
        Raises: at the chief what `answer` does; at the others UserError with the same text.
        """
        found = answer()
        meanwhile()
        return found


class Several(Alone):
    """One of several workers, under a strategy that sums over them."""

    def __init__(self, strategy: tf.distribute.Strategy, cluster: Cluster):
        self.cluster = cluster
        self._strategy = strategy
        self._replicas = strategy.num_replicas_in_sync // cluster.count  # of each worker
        self._total = tf.function(self._total_of, autograph=False)

    def barrier(self) -> None:
        """Waits until all workers are here."""
        self._sum(np.zeros(1))

    def any_of(self, flag: bool) -> bool:
        """Whether a flag is set at some worker. All ask at the same place."""
        found = bool(self._sum(np.array([float(flag)]))[0])
        if found:
            self._see_all_told()
        return found

    def part(self) -> None:
        """Ends the run: waits until all workers are at its end."""
        self.barrier()
        self._see_all_told()

    def agree(self, what: str, value: str, remedy: str) -> None:
        """Raises UserError at every worker where one has another value. Args: what: the value is of."""
        digits = np.frombuffer(bytes.fromhex(digest(value.encode())), ">u2")[:_DIGITS]
        mine = np.zeros([self.cluster.count, _DIGITS])
        mine[self.cluster.index] = digits
        all_of_them = self._sum(mine.ravel()).reshape(mine.shape)
        others = [number for number in range(self.cluster.count) if (all_of_them[number] != all_of_them[0]).any()]
        if others:
            self._see_all_told()
            raise UserError(f"{what} at worker {others[0]} is not that of worker 0, the chief; {remedy}")

    def chief_answers(self, answer: Callable[[], Answer], meanwhile: Callable[[], object] = lambda: None) -> Answer:
        """As that of `Alone`."""
        error: Exception | None = None
        content = b""
        if self.cluster.is_chief:
            try:
                found = answer()
                content = _packed(found)
            except Exception as failure:
                error, content = failure, (str(failure) or type(failure).__name__).encode()
        meanwhile()
        failed, content = self._share(error is not None, content)
        if failed:
            self._see_all_told()
        if error is not None:
            raise error
        if failed:
            raise UserError(f"the chief, worker 0, ended: {content.decode(errors='replace')}")
        return found if self.cluster.is_chief else _unpacked(content)

    def _see_all_told(self):
        """Waits until all workers have the last sum, before this one ends by it: it passes on what others fetch.

        One that gets here later may find that others are gone, and has what it needs to know.
        """
        with suppress(tf.errors.OpError):
            self.barrier()

    def _share(self, failed, content):
        """The flag and the bytes of the chief, at every worker."""
        pairs = np.frombuffer(content + b"\0" * (len(content) % 2), ">u2")
        numbers = np.array([failed, *divmod(len(content), _BASE), *pairs], np.float64)
        first, *rest = self._messages(numbers)
        received = self._sum(first)
        high, low = map(int, received[1:_HEAD])
        length = high * _BASE + low
        missing = -(-(_HEAD + (length + 1) // 2) // _PIECE) - 1
        rest = rest if self.cluster.is_chief else [np.zeros(_PIECE)] * missing
        whole = np.concatenate([received, *map(self._sum, rest)])
        return bool(whole[0]), whole[_HEAD:].astype(">u2").tobytes()[:length]

    def _messages(self, numbers):
        """The numbers of the chief in pieces of one size; of others a piece of zeros."""
        padded = np.zeros(-(-len(numbers) // _PIECE) * _PIECE)
        padded[: len(numbers)] = numbers * self.cluster.is_chief
        return np.split(padded, len(padded) // _PIECE)

    def _sum(self, vector):
        return self._total(tf.constant(vector, tf.float32)).numpy()

    def _total_of(self, vector):
        def of_replica(vector):
            context = tf.distribute.get_replica_context()
            counts = context.replica_id_in_sync_group % self._replicas == 0  # once for each worker
            return context.all_reduce(tf.distribute.ReduceOp.SUM, vector * tf.cast(counts, tf.float32))

        return self._strategy.experimental_local_results(self._strategy.run(of_replica, (vector,)))[0]


def _packed(answer):
    content = io.BytesIO()
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in answer.items()}
    np.savez(content, **arrays)
    return content.getvalue()


def _unpacked(content):
    with np.load(io.BytesIO(content)) as arrays:
        return {name: arrays[name] for name in arrays.files}


_ALONE = Alone()
_known: dict[tf.distribute.Strategy, Several] = {}


def is_several(strategy: tf.distribute.Strategy) -> bool:
    """Whether a strategy is over several workers."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def workers_of(strategy: tf.distribute.Strategy) -> Alone:
    """The workers that a strategy is over: one object for each strategy."""
    if not is_several(strategy):
        return _ALONE
    if strategy not in _known:
        _known[strategy] = Several(strategy, this_cluster())
    return _known[strategy]


def restore_together(keeper: CheckpointKeeper, model: keras.Layer, workers: Alone) -> int:
    """Restores the newest checkpoint; returns the steps done.

    Raises: UserError where workers have read another one, or train with other data or models.
    """
    for name, value in keeper.identity.items():
        workers.agree(f"the {name}", json.dumps(value), SHARED)
    done = keeper.restore()
    if workers.cluster.count > 1:
        workers.agree(f"the checkpoint of {done} steps", f"{done} {weights_digest(model)}", SHARED)
    return done


@contextmanager
def together() -> Iterator[None]:
    """Context of a run: at its end all workers wait for each other, and one that goes before ends the others.

    Raises: UserError of one line, in place of TensorFlow's errors about a worker that is gone.
    """
    if this_cluster().count == 1:
        yield
        return
    try:
        yield
        for workers in list(_known.values()):
            workers.part()
    except UserError:
        time.sleep(_SECONDS_TO_NOTICE)
        raise
    except tf.errors.OpError as error:
        time.sleep(_SECONDS_TO_NOTICE)
        text = str(error)
        if "Collective ops is aborted" not in text and not isinstance(error, tf.errors.UnavailableError):
            raise
        raise UserError(f"{_who_is_gone(text)}; {_AGAIN}") from error


def _who_is_gone(text):
    """The worker that an error of TensorFlow is about, and why, as far as it says so."""
    found = _PLACE.search(text)
    who = f"worker {found[1]}" if found else "a worker"
    return f"{who} is gone: {_REASON['heartbeats' in text]}"

"""What TensorFlow reaches on this machine: rates of matrix products and of copies."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import tensorflow as tf

from tfppo.computation.devices import has_gpu, round_products, rounds_products
from tfppo.computation.modes import seconds_of


@dataclasses.dataclass(frozen=True)
class Load:
    """How much the rates are taken from.

    Args: size: of the square matrices; megabytes: of 2^20 bytes, that a copy reads and writes; repeats: calls that are
        timed together.
    """

    size: int
    megabytes: int
    repeats: int = 1


# A GPU's rates need products that fill it, copies that its cache cannot hold, and many calls for one wait.
LOADS = {"CPU": Load(2048, 256), "GPU": Load(8192, 2048, repeats=10)}


class Ceilings:
    """The largest rates that TensorFlow reaches: products of square matrices in GFLOP/s, copies in GB/s.

    float32 means float32: TF32, which GPUs of NVIDIA may put in its place, is off while it is measured. Where TF32 is
    on otherwise, its rate is there too, as "tensorfloat32_gflops".

    Args: load: what to multiply and copy; None: what fits the devices.
    """

    def __init__(self, load: Load | None = None):
        load = load or LOADS["GPU" if has_gpu() else "CPU"]
        matrix = tf.random.stateless_normal([load.size] * 2, [0, 0])
        product = tf.function(tf.matmul, autograph=False)
        copy = tf.function(lambda x: -x, autograph=False)
        flop, copied = 2 * load.size**3 / 1e9, 2 * load.megabytes * 2**20 / 1e9  # a copy is read and written
        self._repeats = load.repeats
        self._tasks = {
            "float32_gflops": (product, [matrix] * 2, flop),
            "bfloat16_gflops": (product, [tf.cast(matrix, tf.bfloat16)] * 2, flop),
            "copy_gb_per_second": (copy, [tf.ones([load.megabytes, 2**18])], copied),
        }
        self._in_tensorfloat32 = {}
        if rounds_products():
            another = tf.function(tf.matmul, autograph=False)  # what is traced may keep how it multiplies
            self._in_tensorfloat32 = {"tensorfloat32_gflops": (another, [matrix] * 2, flop)}
        self.measure()  # traces

    def measure(self, runs: int = 3) -> dict[str, float]:
        """The rates at this moment, of the fastest of a few runs."""
        with tensorfloat32(False):
            rates = {name: self._rate(task, runs) for name, task in self._tasks.items()}
        return rates | {name: self._rate(task, runs) for name, task in self._in_tensorfloat32.items()}

    def _rate(self, task, runs):
        function, arguments, amount = task

        def run():
            for _ in range(self._repeats):
                result = function(*arguments)
            result[0, 0].numpy()  # waits

        return amount * self._repeats / min(seconds_of(run) for _ in range(runs))


@contextmanager
def tensorfloat32(on: bool) -> Iterator[None]:
    """A context in which TensorFlow multiplies float32 in TF32 on GPUs, or does not; afterwards as before."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    round_products(tensorfloat32=on)
    try:
        yield
    finally:
        round_products(tensorfloat32=before)


def larger_of_neighbours(rates: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """The larger rates of each two neighbours, from {name: rate} at successive moments."""
    return [{name: max(before[name], after[name]) for name in before} for before, after in itertools.pairwise(rates)]

"""What a benchmark finds, phase by phase, and the time that it has for that."""

import dataclasses
import math
import threading
import time
from collections.abc import Callable

from tfppo.planning.work import Work

PHASES = ("sampling", "reward", "reference", "advantages", "update", "iteration")


@dataclasses.dataclass
class Timing:
    """Seconds of one phase: of its first call, which traces and compiles, and the median of the later ones.

    Args: runs: how many later ones; device_gb: the most memory that a GPU held meanwhile, in GB of 1e9 bytes.
    """

    first: float
    seconds: float
    runs: int
    device_gb: float | None = None


class Clock:
    """The time that a benchmark has. Args: seconds: None is without end."""

    def __init__(self, seconds: float | None = None):
        self._end = math.inf if seconds is None else time.perf_counter() + seconds

    def left(self) -> float:
        """Seconds, below 0 after the end."""
        return self._end - time.perf_counter()


@dataclasses.dataclass
class Findings:
    """What a benchmark has found so far; `measure` fills it in, and it can be read meanwhile.

    Args:
        timings: by phase; left_out: phases that have none, and why.
        length: mean tokens of a response; ceilings: rates of the machine, empty until they are measured.
        shares: by phase, of the time that its work needs at the ceilings.
        peak_memory_gb: the most memory that the process held in its phases, in GB of 1e9 bytes; 0: it is not known, as
            where the ceilings came first.
        now: what is being done.
        work: of the phases, once the models are made; sampled_by: the engine, once it is known.
    """

    timings: dict[str, Timing] = dataclasses.field(default_factory=dict)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    length: float = 0.0
    ceilings: dict[str, float] = dataclasses.field(default_factory=dict)
    shares: dict[str, float] = dataclasses.field(default_factory=dict)
    peak_memory_gb: float = 0.0
    now: str = "the models"
    work: Work | None = None
    sampled_by: str | None = None


def within(seconds: float, function: Callable[[], None]) -> bool:
    """Runs a function; says False where it has not returned after so many seconds. It then goes on, in its thread.

    Raises: what the function raises until then.
    """
    with_errors: list[BaseException] = []

    def run():
        try:
            function()
        except BaseException as error:
            with_errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(max(seconds, 0.0))
    if with_errors:
        raise with_errors[0]
    return not thread.is_alive()

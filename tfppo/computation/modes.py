"""Whether XLA compiles sampling or a plain graph computes it, where no setting says so: the faster one, by the clock.

A mode is True for XLA, False for the plain graph. What was measured is kept for the machine, so that a later process
need not measure it again.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from absl import logging

from tfppo.computation.native.building import WORK
from tfppo.computation.native.cache import cache_folder, make_cache_folder
from tfppo.computation.native.processor import processor
from tfppo.files import work_folder

_RUNS = 3  # timed calls of each mode, of which the fastest counts: noise only ever adds
_MARGIN = 0.1  # of the time that the other mode has to save: less may be noise
_NAMES = {True: "XLA", False: "the plain graph"}


def resolve_mode(key: str, rule: bool, run: Callable[[bool], object]) -> bool:
    """The mode kept under a key; if there is none, measures which is faster and keeps that.

    Args: rule: the default mode, used when neither is clearly faster; run: samples in a mode and returns when done.
    """
    mode = kept_mode(key)
    if mode is not None:
        logging.info("sampling by %s, as it was measured before", _NAMES[mode])
        return mode
    seconds = measure(rule, run)
    if seconds is None:
        logging.info("sampling by %s: %s can't", _NAMES[rule], _NAMES[not rule])
        return rule
    mode = choose(rule, seconds)
    logging.info("sampling by %s: XLA took %.4g s, the plain graph %.4g s", _NAMES[mode], seconds[True], seconds[False])
    keep_mode(key, mode)
    return mode


def choose(rule: bool, seconds: Mapping[bool, float]) -> bool:
    """The default mode `rule`, unless the other one takes at least 10 % less time. Args: seconds: by mode."""
    return not rule if seconds[not rule] <= (1 - _MARGIN) * seconds[rule] else rule


def measure(rule: bool, run: Callable[[bool], object]) -> dict[bool, float] | None:
    """Seconds that each mode takes. The first call is not counted, since it traces and compiles.

    Returns: {mode: seconds}; None if the other mode than `rule` fails, for example because memory runs out.
    Raises: what `run(rule)` raises in its first call.
    """
    run(rule)
    seconds = {rule: math.inf, not rule: math.inf}
    try:
        run(not rule)
        for _ in range(_RUNS):
            for mode in seconds:  # in turn: a busy moment of the machine is in both
                seconds[mode] = min(seconds[mode], seconds_of(run, mode))
    except tf.errors.OpError:
        return None
    return seconds


def seconds_of(function: Callable, *arguments: Any) -> float:
    """Seconds that one call takes, which must have finished its work when it returns."""
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def mode_key(**facts: object) -> str:
    """The key of a measurement: the facts that time depends on, with devices and TensorFlow's version."""
    facts |= {"devices": describe_devices(), "tensorflow": tf.__version__}
    return ", ".join(f"{name}={facts[name]}" for name in sorted(facts))


def describe_devices() -> str:
    """What computes here: the GPUs by name, or a fingerprint of the processor and its number of cores."""
    details = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
    gpus = [detail.get("device_name", "GPU") for detail in details]
    if gpus:
        return " + ".join(gpus)
    return f"CPU {hashlib.sha256(processor().encode()).hexdigest()[:16]} of {os.cpu_count()} cores"


def modes_file() -> Path:
    """The file that keeps measured modes. Raises: RuntimeError if there is no home folder."""
    return cache_folder() / "modes.json"


def kept_mode(key: str) -> bool | None:
    """The mode that is kept under a key; None where there is none, or none that can be read."""
    mode = _read_modes().get(key)
    return mode if isinstance(mode, bool) else None


def keep_mode(key: str, mode: bool) -> None:
    """Keeps a mode under a key, beside the others. Where that can't be written, the next process measures again."""
    try:
        file = modes_file()
        make_cache_folder(file.parent)
        with work_folder(file.parent, WORK) as folder:
            fresh = folder / file.name
            fresh.write_text(json.dumps({**_read_modes(), key: mode}, indent=1))
            fresh.replace(file)  # at once: another process finds the whole file
    except (OSError, RuntimeError) as error:
        logging.info("what was measured can't be kept: %s", error)


def _read_modes():
    try:
        modes = json.loads(modes_file().read_text())
    except (OSError, RuntimeError, ValueError):
        return {}
    return modes if isinstance(modes, dict) else {}

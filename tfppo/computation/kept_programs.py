"""Programs that XLA has compiled, kept on the disk: a later process that needs the same ones starts sooner."""

import hashlib
import os
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from absl import logging

from tfppo.computation.native.cache import folders, make_cache_folder
from tfppo.computation.native.processor import processor

GPUS = "/proc/driver/nvidia/gpus"


def keep_programs(gpus: str | Path = GPUS, *, deterministic: bool = False) -> None:
    """Lets XLA keep its programs, and what it measured of GPU kernels, for TensorFlow's version and this machine.

    TensorFlow reads where to keep them from its environment as it is imported: call this before. Flags of the same name
    that are in the environment already stay as they are.

    Args: gpus: where the driver describes the GPUs; deterministic: whether the run is one of deterministic operations.
    """
    place = next(folders(), None)
    if place is None:
        logging.warning("compiled programs are not kept: there is no folder of this user's own for them")
        return
    models = _models(gpus)
    # XLA finds a program by what it computes, not by how it was compiled: options need a folder of their own.
    options = [os.environ.get("XLA_FLAGS", ""), f"deterministic={deterministic}"]
    machine = hashlib.sha256("\n".join([processor(), *models, *options]).encode())
    try:
        folder = make_cache_folder(place / "programs" / f"{version('tensorflow')}-{machine.hexdigest()[:16]}")
    except OSError as error:
        logging.warning("compiled programs are not kept: %s", error)
        return
    _remove_cut_off(folder)
    _add_flag("TF_XLA_FLAGS", "--tf_xla_persistent_cache_directory", folder)
    if models:
        _add_flag("XLA_FLAGS", "--xla_gpu_per_fusion_autotune_cache_dir", make_cache_folder(folder / "kernels"))


def _remove_cut_off(folder):
    """Removes programs of which a crash of the machine has left a part: TensorFlow would end the run by them."""
    for path in folder.glob("*.pb"):
        if not _is_whole(path.read_bytes()):
            logging.warning("%s is cut off; it is compiled anew", path)
            with suppress(OSError):
                path.unlink()


def _is_whole(message):
    """Whether the fields of a protocol buffer, numbers or bytes with their length, end where it does."""
    place = 0
    try:
        while place < len(message):
            kind, place = _number_at(message, place)
            value, place = _number_at(message, place)
            place += value * (kind & 7 == 2)
    except IndexError:
        return False
    return 0 < place == len(message)


def _number_at(message, place):
    value = shift = 0
    while message[place] & 0x80:
        value, shift, place = value | (message[place] & 0x7F) << shift, shift + 7, place + 1
    return value | message[place] << shift, place + 1


def _models(gpus):
    """The models of the GPUs by name. The driver says more of each, such as its number: no reason to compile anew."""
    texts = [path.read_text() for path in Path(gpus).glob("*/information")]
    return sorted({line for text in texts for line in text.splitlines() if line.startswith("Model")})


def _add_flag(variable, name, value):
    flags = os.environ.get(variable, "")
    if f"{name}=" not in flags:
        os.environ[variable] = f"{flags} {name}={value}".strip()

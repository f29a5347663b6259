"""Programs that XLA has compiled, kept on the disk: a later process that needs the same ones starts sooner."""

import hashlib
import os
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
    folder = place / "programs" / f"{version('tensorflow')}-{machine.hexdigest()[:16]}"
    try:
        make_cache_folder(folder / "kernels")
    except OSError as error:
        logging.warning("compiled programs are not kept: %s", error)
        return
    _add_flag("TF_XLA_FLAGS", "--tf_xla_persistent_cache_directory", folder)
    if models:
        _add_flag("XLA_FLAGS", "--xla_gpu_per_fusion_autotune_cache_dir", folder / "kernels")


def _models(gpus):
    """The models of the GPUs by name. The driver says more of each, such as its number: no reason to compile anew."""
    texts = [path.read_text() for path in Path(gpus).glob("*/information")]
    return sorted({line for text in texts for line in text.splitlines() if line.startswith("Model")})


def _add_flag(variable, name, value):
    flags = os.environ.get(variable, "")
    if f"{name}=" not in flags:
        os.environ[variable] = f"{flags} {name}={value}".strip()

"""Builds the operations of this folder for this machine and loads them; the result is kept for the next run."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import tensorflow as tf

from tfppo.computation.native import cache
from tfppo.computation.native.processor import processor
from tfppo.files import sweep_work, work_folder

_FOLDER = Path(__file__).parent
_SOURCES = sorted(_FOLDER.glob("*.cc"))
_HEADERS = sorted(_FOLDER.glob("*.h"))
_FLAGS = ("-std=c++20", "-O3", "-ffp-contract=fast", "-fno-strict-aliasing", "-fopenmp", "-fPIC")
# With TensorFlow's C++ headers: compiled for any processor, as they don't know all instructions, and left out where the
# processor has no operations that train.
WITH_CPP_HEADERS = {"variables.cc"}
WORK = "tmp"  # how the names of folders begin in which something is being made


def compile_command() -> list[str]:
    """The compiler (CXX of the environment, else c++) and its flags; TensorFlow's headers count as system headers."""
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    flags = (
        flag.replace("-I", "-isystem", 1) if flag.startswith("-I") else flag
        for flag in tf.sysconfig.get_compile_flags()
    )
    return [*compiler, *flags, *_FLAGS]


def build() -> Path:
    """The path of the built library, from the cache where this machine has built these sources before.

    The compiler and what it is given are those of `compile_command`. Raises: OSError or subprocess.CalledProcessError.
    """
    command = compile_command()
    facts = "\n".join([*command, tf.__version__, platform.machine(), processor()])
    digest = hashlib.sha256(facts.encode() + b"".join(source.read_bytes() for source in [*_SOURCES, *_HEADERS]))
    identity = digest.hexdigest()[:16]
    for folder in cache.folders():
        sweep_work(folder, WORK)
        found = cache.find(folder, identity)
        if found is not None:
            return found
        if os.access(folder, os.W_OK):
            print("building the C++ operations for this processor, once: up to a minute", file=sys.stderr, flush=True)
            with work_folder(folder, WORK) as scratch:
                return cache.keep(_compile(command, scratch), folder, identity)
    raise PermissionError(f"there is no folder to build in: {cache.cache_folder()} is none of this user's own")


def _compile(command, folder):
    """Compiles the sources in a folder. Returns: the path of the library."""

    def run(*arguments):
        subprocess.run([*command, *map(str, arguments)], check=True, capture_output=True, text=True)

    def compile_source(source):
        compiled = folder / f"{source.stem}.o"
        run(*([] if source.name in WITH_CPP_HEADERS else ["-march=native"]), "-c", source, "-o", compiled)
        return compiled

    trains = "avx512_bf16" in processor().split()
    sources = [source for source in _SOURCES if trains or source.name not in WITH_CPP_HEADERS]
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        compiled = list(workers.map(compile_source, sources))
    built = folder / "ops.so"
    run("-shared", *compiled, "-o", built)
    return built


def _load_library(path):
    """The module of a built library's operations. Raises: RuntimeError or tf.errors.OpError where they aren't all."""
    ops = tf.load_op_library(str(path))
    failure = ctypes.CDLL(str(path)).tfppo_registration_failure
    failure.restype = ctypes.c_char_p
    if failure():
        raise RuntimeError(f"an operation could not be registered: {failure().decode()}")
    return ops


@functools.cache
def load() -> tuple[ModuleType, None] | tuple[None, str]:
    """The module of operations and None; or None and the reason why they cannot be had. Builds them once."""
    try:
        return _load_library(build()), None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.splitlines()
        errors = [line for line in lines if "error:" in line] or lines[-1:]  # a linker's last word is its error
        return None, f"{error.cmd[0]} failed: {errors[0] if errors else error}"
    except (OSError, RuntimeError, tf.errors.OpError) as error:  # RuntimeError: also where there is no home folder
        return None, str(error)

"""Which dtypes the devices multiply fast, and how settings of "auto" or None are resolved from that."""

from pathlib import Path

import tensorflow as tf

WIDTH_FOR_BFLOAT16 = 256  # of a model, from which on its update is in bfloat16 by default


def has_gpu() -> bool:
    """Whether a GPU computes here."""
    return bool(tf.config.list_physical_devices("GPU"))


def round_products(*, tensorfloat32: bool) -> None:
    """Whether float32 products on GPUs may round their factors to TensorFloat-32, in what is traced from now on.

    TensorFlow's own default is that they may; then two ways to the same probability differ by thousandths.
    """
    tf.config.experimental.enable_tensor_float_32_execution(tensorfloat32)


def rounds_products() -> bool:
    """Whether float32 products round their factors to TensorFloat-32 here: on a GPU, where that is allowed."""
    return has_gpu() and tf.config.experimental.tensor_float_32_execution_enabled()


def has_fast_bfloat16(cpuinfo: str | Path = "/proc/cpuinfo") -> bool:
    """Whether bfloat16 products are faster than float32 ones here: GPUs of compute capability 8, CPUs that have them.

    Elsewhere they are emulated, at a fraction of the speed.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = (tf.config.experimental.get_device_details(gpu) for gpu in gpus)
        return all(detail.get("compute_capability", (0, 0)) >= (8, 0) for detail in details)
    return "avx512_bf16" in _cpu_flags(cpuinfo) or has_bfloat16_tiles(cpuinfo)


def has_bfloat16_tiles(cpuinfo: str | Path = "/proc/cpuinfo") -> bool:
    """Whether the CPU multiplies tiles of bfloat16 numbers, several times as fast as vectors."""
    return "amx_bf16" in _cpu_flags(cpuinfo)


def _cpu_flags(cpuinfo):
    try:
        return Path(cpuinfo).read_text().split()
    except OSError:
        return []


def resolve_update_dtype(dtype: str, width: int, otherwise: str) -> str:
    """The dtype policy of the PPO update that "auto" stands for: mixed_bfloat16 where that is faster, else `otherwise`.

    Below a width of 256, the products are too small a part of the update for their dtype to matter: on two cores with
    bfloat16, a step at width 128 takes the same time in both, at width 256 it takes 1.4 times as long in float32.
    """
    if dtype != "auto":
        return dtype
    return "mixed_bfloat16" if width >= WIDTH_FOR_BFLOAT16 and has_fast_bfloat16() else otherwise


def resolve_jit_compile(jit_compile: bool | None, dtype: str) -> bool:
    """Whether XLA compiles. A setting of None means yes, except for bfloat16 on CPUs, which is slow inside of XLA."""
    if jit_compile is not None:
        return jit_compile
    return dtype == "float32" or has_gpu()

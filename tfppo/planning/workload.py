"""Inputs of the estimate of memory and time: the workload of an iteration, and the device that runs it."""

import math
from dataclasses import dataclass
from typing import Self

from tfppo.config.validation import require, require_one_of, require_positive, validate_dtype


@dataclass(kw_only=True, frozen=True)
class Workload:
    """The workload of one iteration. Its fields are named as in `tfppo.config`."""

    rollout_batch_size: int = 64  # episodes, over all replicas
    prompt_length: int = 9  # tokens, padding and start token included
    response_length: int = 24  # tokens; every response is assumed to be this long
    ppo_epochs: int = 4
    num_minibatches: int = 4
    accumulation_steps: int = 1
    dtype: str = "mixed_bfloat16"  # of sampling and the reference
    update_dtype: str | None = None  # of the update; None: dtype
    critic: str = "shared"
    num_replicas: int = 1  # devices; each holds all weights and the whole rollout
    native: bool = False  # with the C++ operations, on one CPU

    def validate(self) -> Self:
        """Raises UserError, naming field, value and remedy; returns itself."""
        counts = ("rollout_batch_size", "prompt_length", "response_length", "ppo_epochs")
        divisors = ("num_minibatches", "accumulation_steps", "num_replicas")
        require_positive("workload", self, *counts, *divisors)
        validate_dtype("workload.dtype", self.dtype)
        validate_dtype("workload.update_dtype", self.dtype_of_update)
        require_one_of("workload.critic", self.critic, ("shared", "separate"))
        rows, divided = self.rollout_batch_size, "rollout_batch_size"
        for name in divisors:
            value = getattr(self, name)
            require(rows % value == 0, f"workload.{name}", value, f"it must divide {divided}, which is {rows}")
            rows, divided = rows // value, f"{divided} / {name}"
        computed = (self.dtype, self.dtype_of_update, self.num_replicas)
        remedy = "it is for mixed_bfloat16 on one CPU; choose those, or False"
        require(not self.native or computed == ("mixed_bfloat16", "mixed_bfloat16", 1), "workload.native", True, remedy)
        return self

    @property
    def dtype_of_update(self) -> str:
        """`update_dtype`; where that is empty, `dtype`."""
        return self.update_dtype or self.dtype

    @property
    def rows(self) -> int:
        """Episodes that each replica samples."""
        return self.rollout_batch_size // self.num_replicas

    @property
    def micro_rows(self) -> int:
        """Episodes of a micro-batch on each replica."""
        return self.rows // self.num_minibatches // self.accumulation_steps

    @property
    def length(self) -> int:
        """Positions that are computed and cached; the position of the last token is not."""
        return self.prompt_length + self.response_length - 1

    @property
    def num_steps(self) -> int:
        """Optimizer steps in an iteration."""
        return self.ppo_epochs * self.num_minibatches


@dataclass(kw_only=True, frozen=True)
class Device:
    """An accelerator or a processor. GB are 1e9 bytes.

    Args:
        peak_tflops: speed of matrix products in the dtype of the workload; update_peak_tflops: in its update_dtype,
            None for the same; bandwidth_gb_s: of the memory; memory_gb: its size.
        interconnect_gb_s: bandwidth to the neighbour in a ring, one way.
        update_efficiency: share of the peak that passes over many tokens reach; decode_efficiency: share of the
            roofline (the slower of compute and memory) that sampling reaches.
        base_memory_gb: memory of the process without any model: TensorFlow and its traced and compiled programs;
            docs/scaling.md has measurements.
        allocator: "pool": all phases share one pool of memory (GPU); "growing": a freed block is kept, and a larger
            one is allocated besides (CPU).
    """

    peak_tflops: float
    bandwidth_gb_s: float
    memory_gb: float
    interconnect_gb_s: float
    update_peak_tflops: float | None = None
    update_efficiency: float = 0.4
    decode_efficiency: float = 0.5
    base_memory_gb: float = 1.0
    allocator: str = "pool"

    def validate(self) -> Self:
        """Raises UserError, naming field, value and remedy; returns itself."""
        speeds = ("peak_tflops", "bandwidth_gb_s", "memory_gb", "interconnect_gb_s")
        given = () if self.update_peak_tflops is None else ("update_peak_tflops",)
        require_positive("device", self, *speeds, *given)
        for name in ("update_efficiency", "decode_efficiency"):
            value = getattr(self, name)
            require(0 < value <= 1, f"device.{name}", value, "it is a share: choose one above 0 and at most 1")
        base = self.base_memory_gb
        require(0 <= base < math.inf, "device.base_memory_gb", base, "it must be finite and not negative")
        require_one_of("device.allocator", self.allocator, ("pool", "growing"))
        return self

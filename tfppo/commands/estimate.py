"""Works out on paper what an iteration of PPO takes in memory and time. Nothing is run, and TensorFlow is not started.

    tfppo estimate --model=1.3b,7b --device=h100 --num_replicas=8 --rollout_batch_size=512 \\
        --prompt_length=512 --response_length=512 --accumulation_steps=16

Prints a Markdown table, a column for every model on every device. A flag of a size or a speed overrides the one that
goes with the name. docs/scaling.md explains the figures.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from tfppo.config.validation import require, require_one_of
from tfppo.planning.costs import MODEL_SIZES, model_of_sizes
from tfppo.planning.estimate import GIGA, Estimate, estimate
from tfppo.planning.workload import Device, Workload
from tfppo.stages.cli import one_line_errors, run_without_config

# Products in bfloat16 without sparsity; the interconnect is NVLink within a host.
DEVICES = {
    "h100": Device(peak_tflops=989, bandwidth_gb_s=3350, memory_gb=80, interconnect_gb_s=450),
    "a100": Device(peak_tflops=312, bandwidth_gb_s=2000, memory_gb=80, interconnect_gb_s=300),
}

# GB/s to the neighbour in a ring, one way: half of what makers give for NVLink, which is both ways; 16 lanes of PCI
# Express with their 128/130 coding; the line rate of a network card for each GPU. docs/scaling.md has the sources.
INTERCONNECTS = {
    "nvlink3": 300.0,
    "nvlink4": 450.0,
    "pcie4": 31.5,
    "pcie5": 63.0,
    "ethernet25": 3.125,
    "ethernet100": 12.5,
}

MODEL = flags.DEFINE_list("model", ["gpt2"], f"Names of models, of {', '.join(MODEL_SIZES)}.")
SIZES = {
    "num_layers": flags.DEFINE_integer("num_layers", None, "Transformer blocks, instead of the model's."),
    "hidden_dim": flags.DEFINE_integer("hidden_dim", None, "Width, instead of the model's; the MLP has four times it."),
    "num_heads": flags.DEFINE_integer("num_heads", None, "Attention heads, instead of the model's."),
    "vocabulary_size": flags.DEFINE_integer("vocabulary_size", None, "Tokens, instead of the model's."),
}
WORKLOAD = {
    "rollout_batch_size": flags.DEFINE_integer(
        "rollout_batch_size", Workload.rollout_batch_size, "Episodes an iteration, over all replicas."
    ),
    "prompt_length": flags.DEFINE_integer(
        "prompt_length", Workload.prompt_length, "Tokens of a prompt, padding and start token included."
    ),
    "response_length": flags.DEFINE_integer("response_length", Workload.response_length, "Tokens of a response."),
    "ppo_epochs": flags.DEFINE_integer("ppo_epochs", Workload.ppo_epochs, "Passes over a rollout."),
    "num_minibatches": flags.DEFINE_integer("num_minibatches", Workload.num_minibatches, "Optimizer steps a pass."),
    "accumulation_steps": flags.DEFINE_integer(
        "accumulation_steps", Workload.accumulation_steps, "Parts that a minibatch is computed in."
    ),
    "dtype": flags.DEFINE_string("dtype", Workload.dtype, "Of sampling and reference: float32 or mixed_bfloat16."),
    "update_dtype": flags.DEFINE_string("update_dtype", "", "Of the update; empty: --dtype."),
    "critic": flags.DEFINE_string("critic", Workload.critic, "shared or separate."),
    "num_replicas": flags.DEFINE_integer("num_replicas", Workload.num_replicas, "Devices; each holds everything."),
    "native": flags.DEFINE_bool("native", Workload.native, "Through the C++ operations, on one CPU."),
}
DEVICE = flags.DEFINE_list("device", ["h100"], f"Names of devices, of {', '.join(DEVICES)}; bfloat16 speeds.")
INTERCONNECT = flags.DEFINE_list(
    "interconnect",
    [""],
    f"Names of what joins the devices, of {', '.join(INTERCONNECTS)}; over machines that between them, which is the "
    "slowest; empty: the device's.",
)
SPEEDS = {
    "peak_tflops": flags.DEFINE_float("peak_tflops", None, "Matrix products in --dtype, instead of the device's."),
    "update_peak_tflops": flags.DEFINE_float(
        "update_peak_tflops", None, "Matrix products in --update_dtype, where that is another one than --dtype."
    ),
    "bandwidth_gb_s": flags.DEFINE_float("bandwidth_gb_s", None, "Of its memory, instead of the device's."),
    "memory_gb": flags.DEFINE_float("memory_gb", None, "Of 1e9 bytes, instead of the device's."),
    "interconnect_gb_s": flags.DEFINE_float(
        "interconnect_gb_s", None, "Sent to the neighbour in a ring, one way, instead of the device's."
    ),
    "update_efficiency": flags.DEFINE_float(
        "update_efficiency", Device.update_efficiency, "Share of the peak in passes over many tokens."
    ),
    "decode_efficiency": flags.DEFINE_float(
        "decode_efficiency", Device.decode_efficiency, "Share of the roofline while sampling."
    ),
    "base_memory_gb": flags.DEFINE_float(
        "base_memory_gb", Device.base_memory_gb, "What a process holds before any model."
    ),
    "allocator": flags.DEFINE_string(
        "allocator",
        Device.allocator,
        "pool: phases take turns in one pool (GPU); growing: freed blocks are kept (CPU).",
    ),
}


def main(argv: Sequence[str]) -> None:
    """Works out and prints the table."""
    with one_line_errors():
        require(len(argv) == 1, "argument", argv[-1], "it is not a flag; write --name=value")
        workload = Workload(**given(WORKLOAD)).validate()
        columns = {}
        for model, device, interconnect in itertools.product(MODEL.value, DEVICE.value, INTERCONNECT.value):
            require_one_of("model", model, MODEL_SIZES)
            require_one_of("device", device, DEVICES)
            joined, over = joined_by(interconnect)
            positions = workload.prompt_length + workload.response_length
            sizes = model_of_sizes(positions=positions, **{**MODEL_SIZES[model], **given(SIZES)})
            speeds = dataclasses.replace(DEVICES[device], **{**joined, **given(SPEEDS)})
            columns[f"{model}, {workload.num_replicas} {device}{over}"] = estimate(sizes, workload, speeds)
        require(bool(columns), "model, device", (MODEL.value, DEVICE.value), "name at least one of each")
    print(table(columns))


def joined_by(interconnect: str) -> tuple[dict[str, float], str]:
    """The speed of an interconnect, as a field of Device, and what names it in a column; "" is the device's own."""
    if not interconnect:
        return {}, ""
    require_one_of("interconnect", interconnect, INTERCONNECTS)
    return {"interconnect_gb_s": INTERCONNECTS[interconnect]}, f" over {interconnect}"


def given(holders: Mapping[str, flags.FlagHolder]) -> dict[str, Any]:
    """The values of flags, by name, but for those that were left out."""
    return {name: holder.value for name, holder in holders.items() if holder.value is not None}


def table(estimates: dict[str, Estimate]) -> str:
    """Estimates as a Markdown table, a column each."""
    columns = [column(estimate) for estimate in estimates.values()]
    lines = [["", *estimates], ["---", *["---:"] * len(estimates)]]
    lines += [[name, *(cells[name] for cells in columns)] for name in columns[0]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def column(estimate: Estimate) -> dict[str, str]:
    """The cells of one estimate, by the name of their row."""
    memory = estimate.memory
    cells = {"trained parameters, millions": number(estimate.num_parameters / 1e6)}
    cells |= {f"GB always: {part}": number(size / GIGA) for part, size in memory.held.items()}
    for phase, parts in memory.phases.items():
        cells |= {f"GB in {phase}: {part}": number(size / GIGA) for part, size in parts.items()}
    cells["largest phase"] = memory.largest_phase
    cells["**GB a device**"] = f"**{number(memory.total / GIGA)}**"
    cells["fits"] = "yes" if estimate.fits else "**no**"
    for span in estimate.spans:
        cells[f"s in {span.phase}: {span.name}"] = f"{number(span.seconds)} ({span.limit})"
    cells["**s an iteration**"] = f"**{number(estimate.seconds)}**"
    cells["response tokens a second"] = number(estimate.tokens_per_second)
    cells["limit"] = estimate.limit
    cells["all-reduce could hide behind the backward pass"] = "yes" if estimate.all_reduce_could_hide else "no"
    return cells


def number(value: float) -> str:
    """Three digits, but thousands in full and at most four decimals."""
    decimals = 2 - math.floor(math.log10(value)) if value else 0
    return f"{value:,.{min(max(decimals, 0), 4)}f}"


def run() -> None:
    """The command, with the flags of sys.argv."""
    run_without_config(main, doc=__doc__, module=__name__)

"""Times the phases of a PPO iteration, and says how much of the machine's own speed each one reaches.

    tfppo benchmark --preset=tiny --batch=16

Prints a JSON line (which --output appends to a file) and a table. Nothing is read and nothing is trained to keep:
weights and prompts are random. docs/benchmarks.md has figures.

    tfppo benchmark --preset=gpt2 --batch=64 --seconds=180

ends after three minutes with what is found by then, and says what is left out.
"""

import json
import math
import os
import sys
import time
from collections.abc import Sequence

from absl import flags

from tfppo.config import Config, EvaluationConfig, PpoConfig, SamplingConfig
from tfppo.config.validation import require, require_one_of
from tfppo.files import user_path
from tfppo.planning.costs import BENCHMARKED, MODEL_SIZES, model_of_sizes
from tfppo.planning.findings import PHASES, Clock, Findings, within
from tfppo.stages.cli import one_line_errors, run_without_config
from tfppo.stages.start import start_tensorflow

STARTED = time.perf_counter()

PRESET = flags.DEFINE_enum("preset", "tiny", list(BENCHMARKED), "Size of the model.")
BATCH = flags.DEFINE_integer("batch", 16, "Episodes an iteration.")
PROMPT_LENGTH = flags.DEFINE_integer("prompt_length", 32, "Tokens of every prompt.")
RESPONSE_LENGTH = flags.DEFINE_integer("response_length", 64, "Tokens of every response.")
MEAN_LENGTH = flags.DEFINE_integer(
    "mean_length", 0, "Responses stop at random, after so many tokens on average; 0: never."
)
EPOCHS = flags.DEFINE_integer("epochs", 4, "Passes over the rollout in an update.")
MINIBATCHES = flags.DEFINE_integer("minibatches", 4, "Optimizer steps of each pass.")
CRITIC = flags.DEFINE_enum("critic", "shared", ["shared", "separate"], "Whether the critic has a trunk of its own.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "mixed_bfloat16"], "Of the models.")
DTYPES = ["auto", "float32", "mixed_bfloat16"]
ROLLOUT_DTYPE = flags.DEFINE_enum("rollout_dtype", "auto", DTYPES, "Of sampling and the reference.")
UPDATE_DTYPE = flags.DEFINE_enum("update_dtype", "auto", DTYPES, "Of the update.")
MODES = {"auto": None, "true": True, "false": False}
TENSORFLOAT32 = flags.DEFINE_bool("tensorfloat32", False, "On GPUs, let float32 products be in TF32.")
COMPILE_SAMPLING = flags.DEFINE_enum(
    "compile_sampling", "auto", list(MODES), "Compile sampling and reference with XLA."
)
NATIVE = flags.DEFINE_enum("native", "auto", list(MODES), "Sample with C++ built for this CPU.")
NATIVE_UPDATE = flags.DEFINE_enum("native_update", "auto", list(MODES), "Update with C++ built for this CPU.")
COMPILE_UPDATE = flags.DEFINE_enum("compile_update", "auto", list(MODES), "Compile the update with XLA.")
CHECKPOINTING = flags.DEFINE_bool("gradient_checkpointing", False, "Keep only each block's input for the gradient.")
REPLICAS = flags.DEFINE_integer("replicas", 1, "Replicas of MirroredStrategy; -1: no strategy at all.")
RUNS = flags.DEFINE_integer(
    "runs", 5, "Timed runs of each phase, after one that compiles; then as many for its share of the ceiling. Medians."
)
CHOSEN = flags.DEFINE_list(
    "phases", list(PHASES), "What to time. Without sampling, an update is of responses that no model has drawn."
)
SHARES = flags.DEFINE_bool("shares", True, "Time once more what has a share of the ceiling, beside the ceilings.")
SECONDS = flags.DEFINE_integer(
    "seconds", 0, "End after so many seconds with what is found by then, compilation or not; 0: take the time it needs."
)
PEAK_TFLOPS = flags.DEFINE_float(
    "peak_tflops", None, "What the vendor states for products in bfloat16, in TFLOP/s; then there is a share of it too."
)
OUTPUT = flags.DEFINE_string("output", None, "File that the JSON line is appended to.")


def make_config() -> Config:
    """The configuration of the flags. Raises: UserError for values that do not fit."""
    for flag in (BATCH, RESPONSE_LENGTH, EPOCHS, MINIBATCHES, RUNS):
        require(flag.value > 0, f"--{flag.name}", flag.value, "it must be above 0")
    require(PROMPT_LENGTH.value > 1, "--prompt_length", PROMPT_LENGTH.value, "it must be above 1")
    require(MEAN_LENGTH.value >= 0, "--mean_length", MEAN_LENGTH.value, "use 0 for full length or a positive number")
    require(REPLICAS.value >= -1, "--replicas", REPLICAS.value, "use -1 for no strategy or a positive number")
    require(SECONDS.value >= 0, "--seconds", SECONDS.value, "use 0 for no end or a positive number")
    peak = PEAK_TFLOPS.value
    require(peak is None or 0 < peak < math.inf, "--peak_tflops", peak, "it must be above 0 and finite")
    for phase in CHOSEN.value or [""]:
        require_one_of("--phases", phase, PHASES)
    ppo = PpoConfig(
        total_episodes=BATCH.value,
        rollout_batch_size=BATCH.value,
        ppo_epochs=EPOCHS.value,
        num_minibatches=MINIBATCHES.value,
        critic=CRITIC.value,
        dtype=DTYPE.value,
        rollout_dtype=ROLLOUT_DTYPE.value,
        update_dtype=UPDATE_DTYPE.value,
        jit_compile=MODES[COMPILE_UPDATE.value],
        native=MODES[NATIVE_UPDATE.value],
        gradient_checkpointing=CHECKPOINTING.value,
        learning_rate=1e-6,  # the model stays what it is, and with it the lengths of its responses
    )
    config = Config(
        tensorfloat32=TENSORFLOAT32.value,
        num_replicas=max(REPLICAS.value, 0),
        model=model_of_sizes(positions=PROMPT_LENGTH.value + RESPONSE_LENGTH.value, **MODEL_SIZES[PRESET.value]),
        sampling=SamplingConfig(
            response_length=RESPONSE_LENGTH.value,
            stop_at_eos=MEAN_LENGTH.value > 0,
            jit_compile=MODES[COMPILE_SAMPLING.value],
            native=MODES[NATIVE.value],
        ),
        ppo=ppo,
        evaluation=EvaluationConfig(samples_every=0),
    )
    # A start token is counted besides.
    config.data.min_prompt_tokens = config.data.max_prompt_tokens = PROMPT_LENGTH.value - 1
    return config.validate()


def main(argv: Sequence[str]) -> None:
    """Measures, and prints the figures."""
    with one_line_errors():
        require(len(argv) == 1, "argument", argv[-1], "it is not a flag; write --name=value")
        config = make_config()
        clock = Clock(SECONDS.value or None)
        start_tensorflow()
        from tfppo.computation.modes import describe_devices
        from tfppo.planning.benchmark import Benchmark, measure

        startup = time.perf_counter() - STARTED
        findings = Findings()

        def make():
            return Benchmark(config, PROMPT_LENGTH.value, MEAN_LENGTH.value, REPLICAS.value >= 0)

        def run():
            wanted = [phase for phase in PHASES if phase in CHOSEN.value]
            measure(
                make,
                findings,
                phases=wanted,
                runs=RUNS.value,
                clock=clock,
                shares=SHARES.value and not MEAN_LENGTH.value,
            )

        in_time = True
        if SECONDS.value:
            in_time = within(clock.left(), run)
        else:
            run()
    record = {
        **{flag.name: flag.value for flag in FLAGS_OF_A_RUN},
        "device": describe_devices(),
        "startup_seconds": startup,
        **figures(findings, in_time),
    }
    line = json.dumps(record)
    print(line)
    if OUTPUT.value:
        with open(user_path(OUTPUT.value), "a") as file:
            file.write(line + "\n")
    print(table(record), flush=True)
    if not in_time:
        sys.stderr.flush()
        os._exit(0)  # what still compiles in its thread would go on for minutes


def figures(findings: Findings, in_time: bool) -> dict:
    """What was found, by name. Args: in_time: whether all was done when the time was over."""
    timings, length = dict(findings.timings), findings.length
    seconds = {phase: timing.seconds for phase, timing in timings.items()}
    positions = BATCH.value * (PROMPT_LENGTH.value + length)
    tokens = {"sampling": BATCH.value * length, "update": EPOCHS.value * positions, "iteration": BATCH.value * length}
    missing = {phase: "not begun" for phase in CHOSEN.value if phase not in timings} | {findings.now: "not finished"}
    work = findings.work
    shares = {}
    if work and findings.ceilings and not MEAN_LENGTH.value:
        shares = work.shares(seconds, findings.ceilings, PEAK_TFLOPS.value)
    return {
        "mean_response_length": length,
        "sampled_in": work.rollout_dtype if work else None,
        "sampled_by": findings.sampled_by,
        "updated_in": work.update_dtype if work else None,
        "first_call_seconds": {phase: timing.first for phase, timing in timings.items()},
        "seconds": seconds,
        "runs": {phase: timing.runs for phase, timing in timings.items()},
        "tokens_per_second": {phase: tokens.get(phase, positions) / taken for phase, taken in seconds.items()},
        "share_of_ceiling": dict(findings.shares),
        **shares,
        "ceilings": dict(findings.ceilings),
        "peak_memory_gb": findings.peak_memory_gb or None,
        "device_peak_gb": {phase: timing.device_gb for phase, timing in timings.items() if timing.device_gb},
        "left_out": findings.left_out | ({} if in_time else missing),
    }


FLAGS_OF_A_RUN = (
    PRESET,
    BATCH,
    PROMPT_LENGTH,
    RESPONSE_LENGTH,
    EPOCHS,
    MINIBATCHES,
    CRITIC,
    DTYPE,
    ROLLOUT_DTYPE,
    UPDATE_DTYPE,
    TENSORFLOAT32,
    COMPILE_SAMPLING,
    NATIVE,
    COMPILE_UPDATE,
    NATIVE_UPDATE,
    CHECKPOINTING,
    REPLICAS,
)


# Of a phase: the name in the record, the title and the format. Columns without a figure are left out.
COLUMNS = (
    ("seconds", "s", "{:.4f}"),
    ("tokens_per_second", "tokens/s", "{:,.0f}"),
    ("share_of_ceiling", "share of ceiling", "{:.0%}"),
    ("share_of_memory_roofline", "of the memory roofline", "{:.0%}"),
    ("share_of_bfloat16_products", "of bfloat16 products", "{:.0%}"),
    ("share_of_stated_peak", "of the stated peak", "{:.0%}"),
    ("first_call_seconds", "first call, s", "{:.1f}"),
    ("device_peak_gb", "device memory, GB", "{:.2f}"),
)


def table(record: dict) -> str:
    """The record as a Markdown table, with a line for what is not of a phase."""
    columns = [column for column in COLUMNS if record.get(column[0])]
    lines = []
    if columns:
        lines = [f"| phase | {' | '.join(title for _, title, _ in columns)} |", f"|---|{'---:|' * len(columns)}"]
    for phase in record["seconds"]:
        cells = (style.format(record[name][phase]) if phase in record[name] else "" for name, _, style in columns)
        lines.append(f"| {phase} | {' | '.join(cells)} |")
    memory = record["peak_memory_gb"]
    rest = [
        *(style.format(record["ceilings"][name]) for name, style in CEILINGS if name in record["ceilings"]),
        *([f"peak memory {memory:.2f} GB"] if memory else []),
        f"start-up {record['startup_seconds']:.1f} s",
    ]
    lines.append(f"\non {record['device']}; {'; '.join(rest)}")
    if record["share_of_ceiling"]:
        lines.append("Shares of the ceiling are of separate runs, each beside the rates right before and after it.")
    lines += [f"left out: {what} ({why})" for what, why in record["left_out"].items()]
    return "\n".join(lines)


CEILINGS = (
    ("float32_gflops", "{:.0f} GFLOP/s float32"),
    ("tensorfloat32_gflops", "{:.0f} TF32"),
    ("bfloat16_gflops", "{:.0f} bfloat16"),
    ("copy_gb_per_second", "copy {:.1f} GB/s"),
)


def run() -> None:
    """The command, with the flags of sys.argv."""
    run_without_config(main, doc=__doc__, module=__name__)

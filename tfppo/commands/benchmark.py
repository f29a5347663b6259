"""Times the phases of a PPO iteration, and says how much of the machine's own speed each one reaches.

    tfppo benchmark --preset=tiny --batch=16

Prints a JSON line (which --output appends to a file) and a table. Nothing is read and nothing is trained to keep:
weights and prompts are random. docs/benchmarks.md has figures.
"""

import json
import time
from collections.abc import Sequence

from absl import flags

from tfppo.config import Config, EvaluationConfig, PpoConfig, SamplingConfig
from tfppo.config.validation import require
from tfppo.files import user_path
from tfppo.planning.costs import MODEL_SIZES, model_of_sizes
from tfppo.stages.cli import one_line_errors, run_without_config
from tfppo.stages.start import start_tensorflow

STARTED = time.perf_counter()

PRESET = flags.DEFINE_enum("preset", "tiny", ["tiny", "small", "gpt2"], "Size of the model.")
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
OUTPUT = flags.DEFINE_string("output", None, "File that the JSON line is appended to.")


def make_config() -> Config:
    """The configuration of the flags. Raises: UserError for values that do not fit."""
    for flag in (BATCH, RESPONSE_LENGTH, EPOCHS, MINIBATCHES, RUNS):
        require(flag.value > 0, f"--{flag.name}", flag.value, "it must be above 0")
    require(PROMPT_LENGTH.value > 1, "--prompt_length", PROMPT_LENGTH.value, "it must be above 1")
    require(MEAN_LENGTH.value >= 0, "--mean_length", MEAN_LENGTH.value, "use 0 for full length or a positive number")
    require(REPLICAS.value >= -1, "--replicas", REPLICAS.value, "use -1 for no strategy or a positive number")
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
        start_tensorflow()
        from tfppo.planning.benchmark import Benchmark, Ceilings, peak_memory_gb, shares_of_ceilings

        startup = time.perf_counter() - STARTED
        benchmark = Benchmark(config, PROMPT_LENGTH.value, MEAN_LENGTH.value, REPLICAS.value >= 0)
    timings, length = benchmark.measure(RUNS.value)
    peak = peak_memory_gb()  # before the ceilings, whose matrices are not the iteration's
    shares: dict[str, float] = {}
    if MEAN_LENGTH.value:
        ceilings = Ceilings().measure()
    else:
        shares, ceilings = shares_of_ceilings(benchmark, RUNS.value)
    positions = BATCH.value * (PROMPT_LENGTH.value + length)
    tokens = {"sampling": BATCH.value * length, "update": EPOCHS.value * positions, "iteration": BATCH.value * length}
    sampler = benchmark.collector.sampler
    record = {
        **{flag.name: flag.value for flag in FLAGS_OF_A_RUN},
        "mean_response_length": length,
        "sampled_in": benchmark.computation.sampling.engine.dtype,
        "sampled_by": sampler.engine.name if sampler.engine else None,
        "updated_in": benchmark.computation.update.engine.dtype,
        "startup_seconds": startup,
        "first_call_seconds": {phase: timing.first for phase, timing in timings.items()},
        "seconds": {phase: timing.seconds for phase, timing in timings.items()},
        "tokens_per_second": {
            phase: tokens.get(phase, positions) / timing.seconds for phase, timing in timings.items()
        },
        "share_of_ceiling": shares,
        "ceilings": ceilings,
        "peak_memory_gb": peak,
    }
    line = json.dumps(record)
    print(line)
    if OUTPUT.value:
        with open(user_path(OUTPUT.value), "a") as file:
            file.write(line + "\n")
    print(table(record))


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
    COMPILE_SAMPLING,
    NATIVE,
    COMPILE_UPDATE,
    NATIVE_UPDATE,
    CHECKPOINTING,
    REPLICAS,
)


def table(record: dict) -> str:
    """The record as a Markdown table, with a line for what is not of a phase."""
    lines = ["| phase | s | tokens/s | share of ceiling | first call, s |", "|---|---:|---:|---:|---:|"]
    for phase, seconds in record["seconds"].items():
        share = record["share_of_ceiling"].get(phase)
        cells = (
            f"{seconds:.4f}",
            f"{record['tokens_per_second'][phase]:,.0f}",
            "" if share is None else f"{share:.0%}",
            f"{record['first_call_seconds'][phase]:.1f}",
        )
        lines.append(f"| {phase} | {' | '.join(cells)} |")
    ceilings = record["ceilings"]
    lines.append(
        f"\nceilings: {ceilings['float32_gflops']:.0f} GFLOP/s float32, {ceilings['bfloat16_gflops']:.0f} bfloat16, "
        f"copy {ceilings['copy_gb_per_second']:.1f} GB/s; peak memory {record['peak_memory_gb']:.2f} GB; "
        f"start-up {record['startup_seconds']:.1f} s"
        "\nShares come from separate runs, each compared with the ceilings measured right before and after it."
    )
    return "\n".join(lines)


def run() -> None:
    """The command, with the flags of sys.argv."""
    run_without_config(main, doc=__doc__, module=__name__)

"""The steps of tools/gpu_figures.py, in the order in which they run: what matters most comes first."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from on_a_card.running import Step, last_json
from tfppo.planning.costs import MODEL_SIZES

HERE = Path(__file__).parent
TOOLS = HERE.parent
BFLOAT16 = ("--rollout_dtype=mixed_bfloat16", "--update_dtype=mixed_bfloat16")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large the steps are.

    Args:
        middle, large: names in MODEL_SIZES. batch: (rows, prompt, response, epochs, minibatches) of the middle one;
            context: (rows, prompt, response) of the middle one's longest texts; sampled, updated: of the large one.
        runs: timed calls, of which the medians count.
        device: of PyTorch: cuda or cpu.
        settings: of every training besides; quickstart: of the quickstart besides.
        variables: of each step's environment.
    """

    middle: str
    large: str
    batch: tuple[int, int, int, int, int]
    context: tuple[int, int, int]
    sampled: tuple[int, int, int]
    updated: tuple[int, int, int]
    runs: int
    device: str
    settings: tuple[str, ...] = ()
    quickstart: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)


CARD = Scale(
    middle="gpt2",
    large="1.3b",
    batch=(64, 32, 64, 4, 4),
    context=(8, 2048, 2048),
    sampled=(32, 256, 256),
    updated=(8, 512, 512),
    runs=5,
    device="cuda",
    settings=("compilation_cache=True",),
)
_PLAIN = ("sampling.jit_compile=False", "sampling.native=False", "ppo.native=False", "ppo.jit_compile=False")
REHEARSAL = Scale(
    middle="tiny",
    large="tiny",
    batch=(8, 8, 4, 2, 4),
    context=(2, 4, 4),
    sampled=(4, 4, 4),
    updated=(2, 4, 4),
    runs=1,
    device="cpu",
    settings=_PLAIN,
    quickstart=(
        *_PLAIN,
        "model.vocabulary_size=300",
        "model.num_layers=1",
        "model.hidden_dim=16",
        "lm.num_steps=4",
        "lm.warmup_steps=2",
        "lm.eval_every=4",
        "ppo.total_episodes=128",
        "sampling.response_length=4",
        "evaluation.num_prompts=16",
        "evaluation.batch_size=8",
    ),
    variables={"CUDA_VISIBLE_DEVICES": "-1"},  # a card that is there is left alone
)
# The quickstart's model, as configs/movie_snippets.py has it.
QUICKSTART = dict(num_layers=4, hidden_dim=128, num_heads=2, vocabulary_size=8192)


def all_steps(scale: Scale, folder: Path, torch_python: str, data: tuple[str, ...] = ()) -> dict[str, Step]:
    """The steps by name. Args: folder: where they write; torch_python: an interpreter with PyTorch, transformers and
    TRL; data: settings that say where the quickstart finds its texts.
    """
    folder = folder.resolve()
    return {**_tfppo(scale), **_torch(scale, torch_python), **_commands(scale, folder, data)}


def _tfppo(scale):
    rows, prompt, response, epochs, minibatches = scale.batch
    words = f"{scale.middle}, batch {rows}, {prompt} + {response}, {epochs} epochs x {minibatches}, bfloat16"
    return {
        "gpt2": Step(
            _benchmark(
                scale.middle, scale.batch[:3], scale, "sampling,reference,update,iteration", 150, epochs, minibatches
            ),
            160,
            words,
            _read_benchmark,
        ),
        "1.3b sampling": Step(
            _benchmark(scale.large, scale.sampled, scale, "sampling", 100),
            110,
            "{}, batch {}, {} + {}, bfloat16".format(scale.large, *scale.sampled),
            _read_benchmark,
        ),
        "1.3b update": Step(
            _benchmark(scale.large, scale.updated, scale, "update", 120),
            130,
            "{}, {} x ({} + {}) tokens, one step, bfloat16".format(scale.large, *scale.updated),
            _read_benchmark,
        ),
        "long context": Step(
            _benchmark(scale.middle, scale.context, scale, "update", 90),
            100,
            "{}, {} x ({} + {}) tokens, one step, bfloat16".format(scale.middle, *scale.context),
            _read_benchmark,
        ),
    }


def _benchmark(preset, sizes, scale, phases, seconds, epochs=1, minibatches=1):
    rows, prompt, response = sizes
    flags = (
        f"--preset={preset}",
        f"--batch={rows}",
        f"--prompt_length={prompt}",
        f"--response_length={response}",
        f"--epochs={epochs}",
        f"--minibatches={minibatches}",
        f"--phases={phases}",
        f"--runs={scale.runs}",
        f"--seconds={seconds}",
    )
    return sys.executable, str(TOOLS / "benchmark.py"), *flags, *BFLOAT16


def _read_benchmark(out, folder):
    """The record of the benchmark, with the seconds of an optimizer step. Raises: ValueError where nothing is timed."""
    record = last_json(out, folder)
    if not record["seconds"]:
        raise ValueError(f"nothing was timed: {record['left_out']}")
    if "update" in record["seconds"]:
        record["seconds_a_step"] = record["seconds"]["update"] / record["epochs"] / record["minibatches"]
    return record


def _torch(scale, torch_python):
    size = MODEL_SIZES[scale.middle]
    rows, prompt, response, epochs, minibatches = scale.batch
    how = dict(
        device=scale.device,
        layers=size["num_layers"],
        width=size["hidden_dim"],
        heads=size["num_heads"],
        vocabulary=size["vocabulary_size"],
        batch=rows,
        prompt=prompt,
        response=response,
        epochs=epochs,
        minibatches=minibatches,
        runs=scale.runs,
    )
    words = f"{scale.middle}, batch {rows}, {prompt} + {response}"
    steps = f"{words}, {minibatches} minibatches"

    def step(what, limit, workload):
        command = torch_python, str(HERE / "yardstick.py"), json.dumps({"what": what, **how})
        return Step(command, limit, workload)

    trainer = torch_python, str(HERE / "trl_trainer.py"), json.dumps(how)
    return {
        "PyTorch loop": step("loop", 90, f"{words}, bfloat16"),
        "PyTorch generate at its best": step("generate at its best", 90, f"{words}, bfloat16"),
        "PyTorch generate": step("generate", 60, f"{words}, float32"),
        "PyTorch update, compiled": step("update, compiled", 90, f"{steps}, bfloat16"),
        "PyTorch update, eager": step("update, eager", 60, f"{steps}, bfloat16"),
        "TRL": Step(trainer, 90, f"{words}, {epochs} epochs x {minibatches}"),
    }


def _commands(scale, folder, data):
    rows, prompt, response, epochs, minibatches = scale.batch
    models = {
        "quickstart": QUICKSTART | {"positions": 64},
        "gpt2": MODEL_SIZES[scale.middle] | {"positions": prompt + response},
    }
    of_gpt2 = (
        f"ppo.rollout_batch_size={rows}",
        f"ppo.ppo_epochs={epochs}",
        f"ppo.num_minibatches={minibatches}",
        f"sampling.response_length={response}",
        f"data.min_prompt_tokens={prompt - 1}",  # a start token comes before
        f"data.max_prompt_tokens={prompt - 1}",
    )
    how = {"folder": str(folder), "models": models}
    quickstart = sys.executable, str(TOOLS / "quickstart.py"), f"--workdir={folder / 'quickstart_run'}"
    texts = () if scale.device == "cuda" else (f"data.source={folder / 'texts.txt'}",)
    return {
        "models": Step((sys.executable, str(HERE / "random_models.py"), json.dumps(how)), 90, "random weights"),
        **_starts("quickstart", 64, (), scale, folder, 60, "quickstart size"),
        **_starts("gpt2", rows, of_gpt2, scale, folder, 100, scale.middle),
        "quickstart": Step(
            (*quickstart, *_flags(*scale.quickstart, *texts, *data)), 120, "one card, all in", _read_quickstart
        ),
    }


def _starts(name, rows, settings, scale, folder, limit, words):
    """A cold start and a warm one, of two iterations each."""
    work = folder / f"{name}_start"
    training = _flags(
        f"language_model={folder / name}",
        f"data.source={folder / 'texts.txt'}",
        f"ppo.total_episodes={2 * rows}",
        *settings,
        *scale.settings,
    )
    command = sys.executable, str(TOOLS / "train_ppo.py"), "--config=movie_snippets", f"--workdir={work}", *training
    steps = {}
    for kind in ("cold", "warm"):
        how = dict(command=command, record=f"{work}/ppo.jsonl", cache=f"{folder / name}_cache", cold=kind == "cold")
        call = sys.executable, str(HERE / "first_tick.py"), json.dumps(how)
        steps[f"{name} start, {kind}"] = Step(call, limit, words)
    return steps


def _read_quickstart(out, folder):
    """What it has learned, from its evaluation."""
    after = json.loads((folder / "quickstart_run" / "evaluation.json").read_text())["after PPO"]
    return {"reward": after["reward"], "reward_standard_error": after["reward_standard_error"], "kl": after["kl"]}


def _flags(*settings):
    return tuple(f"--config.{setting}" for setting in settings)

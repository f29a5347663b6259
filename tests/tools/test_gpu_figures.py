"""The figures of a card: what each step computes, what becomes of one that fails, and the table by hand."""

import json
import os
import subprocess
import sys
import time

import pytest
from binaries import ROOT, command, environment, run

sys.path.append(str(ROOT / "tools"))

from on_a_card import first_tick, rows, running, steps  # noqa: E402  the path comes first

from tfppo.stages.overrides import check_overrides  # noqa: E402


def python(program, *arguments):
    return sys.executable, "-c", program, *arguments


def step(program, limit=30.0, **more):
    return running.Step(python(program), limit, **more)


FIGURES = "print('a note'); print('{\"seconds\": 2.0}'); print('the end')"


def test_the_steps_have_the_workloads_that_are_asked_for(tmp_path):
    found = steps.all_steps(steps.CARD, tmp_path, "python-of-torch")
    words = {name: found[name].workload for name in ("gpt2", "1.3b sampling", "1.3b update", "long context", "TRL")}
    assert words == {
        "gpt2": "gpt2, batch 64, 32 + 64, 4 epochs x 4, bfloat16",
        "1.3b sampling": "1.3b, batch 32, 256 + 256, bfloat16",
        "1.3b update": "1.3b, 8 x (512 + 512) tokens, one step, bfloat16",
        "long context": "gpt2, 8 x (2048 + 2048) tokens, one step, bfloat16",
        "TRL": "gpt2, batch 64, 32 + 64, 4 epochs x 4",
    }
    for name in found:
        if name.startswith("PyTorch") or name == "TRL":
            interpreter, file, text = found[name].command
            how = json.loads(text)
            assert interpreter == "python-of-torch" and os.path.isfile(file)
            assert (how["layers"], how["width"], how["heads"], how["vocabulary"]) == (12, 768, 12, 50257)
            assert (how["batch"], how["prompt"], how["response"]) == (64, 32, 64)
            assert (how["epochs"], how["minibatches"], how["device"]) == (4, 4, "cuda")


PARSED = """
import json, sys
from absl import flags
from tfppo.commands import benchmark
for arguments in json.loads(sys.argv[1]):
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["benchmark", *arguments])
    config = benchmark.make_config()
    model, ppo = config.model, config.ppo
    print(json.dumps([model.num_layers, model.hidden_dim, ppo.rollout_batch_size, config.data.max_prompt_tokens + 1,
        config.sampling.response_length, ppo.ppo_epochs, ppo.num_minibatches, ppo.rollout_dtype, ppo.update_dtype]))
"""


def test_the_benchmark_understands_its_steps(tmp_path):
    found = steps.all_steps(steps.CARD, tmp_path, "")
    calls = [found[name].command[2:] for name in ("gpt2", "1.3b sampling", "1.3b update", "long context")]
    argv = python(PARSED, json.dumps(calls))
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    both = ["mixed_bfloat16"] * 2
    assert list(map(json.loads, done.stdout.splitlines())) == [
        [12, 768, 64, 32, 64, 4, 4, *both],
        [24, 2048, 32, 256, 256, 1, 1, *both],
        [24, 2048, 8, 512, 512, 1, 1, *both],
        [12, 768, 8, 2048, 2048, 1, 1, *both],
    ]


@pytest.mark.parametrize("scale", [steps.CARD, steps.REHEARSAL], ids=["card", "rehearsal"])
def test_the_settings_of_trainings_are_ones(scale, tmp_path):
    found = steps.all_steps(scale, tmp_path, "", ("data.data_dir=folder",))
    commands = [json.loads(found[name].command[2])["command"] for name in found if " start, " in name]
    settings = [flag for command in [*commands, found["quickstart"].command] for flag in command if "config." in flag]
    assert "--config.data.data_dir=folder" in settings
    check_overrides(settings)


def test_a_step_has_the_figures_of_its_last_line_of_json(tmp_path):
    record = running.run_step("one", step(FIGURES, workload="nothing"), tmp_path, 30)
    assert record["seconds"] == 2.0 and record["wall_seconds"] > 0 and record["workload"] == "nothing"
    assert (tmp_path / "logs" / "one.out").read_text() == "a note\n" + '{"seconds": 2.0}' + "\nthe end\n"


def test_a_rehearsal_sees_no_card(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    seen = step("import json, os; print(json.dumps({'card': os.environ['CUDA_VISIBLE_DEVICES']}))")
    for scale, card in ((steps.CARD, "0"), (steps.REHEARSAL, "-1")):
        (record,) = running.run_steps({"one": seen}, tmp_path / f"{card}.jsonl", 100, variables=scale.variables)
        assert record["card"] == card


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; print('first', file=sys.stderr); sys.exit('the card is gone')", "exit code 1: the card is gone"),
        ("import os; os.kill(os.getpid(), 9)", "exit code -9: "),
        ("print('no figure')", "no figures: it printed no figures"),
        ("print('{\"seconds\": ')", "no figures: "),
    ],
)
def test_a_step_that_fails_says_why(program, reason, tmp_path):
    record = running.run_step("one", step(program), tmp_path, 30)
    assert record["failed"].startswith(reason) and "seconds" not in record


def test_an_interpreter_that_is_not_there_is_a_step_that_fails(tmp_path):
    record = running.run_step("one", running.Step(("/no/python",), 30), tmp_path, 30)
    assert "/no/python" in record["failed"]


def test_a_step_that_takes_too_long_ends_with_all_that_it_started(tmp_path):
    child = tmp_path / "child"
    program = (
        "import pathlib, subprocess, sys, time\n"
        f"process = subprocess.Popen(['sleep', '60'])\npathlib.Path({str(child)!r}).write_text(str(process.pid))\n"
        "time.sleep(60)"
    )
    started = time.monotonic()
    record = running.run_step("one", step(program), tmp_path, 1.0)
    assert record["failed"] == "it took longer than 1 s" and time.monotonic() - started < 20
    pid, deadline = int(child.read_text()), time.monotonic() + 20
    while running_still(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not running_still(pid)


def running_still(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_steps_with_figures_are_not_run_again_and_the_others_are(tmp_path):
    results = tmp_path / "results.jsonl"
    chosen = {"good": step(FIGURES), "bad": step("raise SystemExit('no')"), "last": step(FIGURES)}
    told = []
    records = running.run_steps(chosen, results, 100, told.append)
    assert [record["step"] for record in records] == ["good", "bad", "last"] and told == records
    assert records[1]["failed"] == "exit code 1: no"
    told.clear()
    records = running.run_steps({**chosen, "bad": step(FIGURES)}, results, 100, told.append)
    assert [record["step"] for record in told] == ["bad"] and records[1]["seconds"] == 2.0
    assert len(running.read_records(results)) == 4
    told.clear()
    another = step(FIGURES.replace("2.0", "3.0"))  # of another size, say
    records = running.run_steps({"good": another}, results, 100, told.append)
    assert [record["seconds"] for record in records] == [3.0] == [record["seconds"] for record in told]


ENDS = """
import pathlib, sys
sys.path.append(sys.argv[1])
from on_a_card import running
running.end_on_sigterm()
child = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(60)"
folder = pathlib.Path(sys.argv[2])
running.run_step("one", running.Step((sys.executable, "-c", child, str(folder / "child")), 60), folder, 60)
"""


def test_the_step_that_runs_ends_with_the_program(tmp_path):
    process = subprocess.Popen(python(ENDS, str(ROOT / "tools"), str(tmp_path)), env=environment())
    child, deadline = tmp_path / "child", time.monotonic() + 30
    while not (child.exists() and child.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.terminate()
    assert process.wait(30) == 128 + 15
    assert not running_still(int(child.read_text()))


def test_the_last_step_has_what_time_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "LEAST", 0.1)
    (record,) = running.run_steps({"one": step("import time; time.sleep(60)")}, tmp_path / "results.jsonl", 1.0)
    assert record["failed"] == "it took longer than 1 s" and record["wall_seconds"] < 20


def test_no_step_begins_without_time(tmp_path):
    results = tmp_path / "results.jsonl"
    assert running.run_steps({"one": step(FIGURES)}, results, running.LEAST - 1) == []
    assert not results.exists()


WRITES = """
import pathlib, sys, time
record = pathlib.Path(sys.argv[1])
time.sleep(0.3)
record.parent.mkdir()
for _ in range(2):
    with record.open("a") as file:
        file.write("{}\\n")
    time.sleep(0.5)
"""


def test_the_first_tick_is_that_of_a_fresh_run_with_the_cache_that_is_asked_for(tmp_path, capfd):
    record, cache = tmp_path / "run" / "ppo.jsonl", tmp_path / "cache"
    how = dict(command=python(WRITES, str(record)), record=str(record), cache=str(cache), cold=True)
    cache.mkdir()
    (cache / "kept").touch()
    first_tick.main(json.dumps(how))
    assert not (cache / "kept").exists()
    (cache / "kept").touch()
    first_tick.main(json.dumps(how | {"cold": False}))  # the folder of the run is there from before
    assert (cache / "kept").exists()
    for line in capfd.readouterr().out.splitlines():
        found = json.loads(line)
        assert 0.3 <= found["seconds"] < 10 and len(found["next_seconds"]) == 1
        assert 0.3 <= found["next_seconds"][0] < 10
    assert first_tick.environment(cache)["XDG_CACHE_HOME"] == str(cache)


def test_a_warm_start_needs_a_cold_one_and_a_run_without_a_tick_is_an_error(tmp_path):
    how = dict(command=python(""), record=str(tmp_path / "run" / "ppo.jsonl"), cache=str(tmp_path / "cache"))
    with pytest.raises(SystemExit, match="a cold start comes first"):
        first_tick.main(json.dumps(how | {"cold": False}))
    with pytest.raises(SystemExit, match="code 0 after 0 iterations"):
        first_tick.main(json.dumps(how | {"cold": True}))


RECORDS = [
    {
        "step": "gpt2",
        "workload": "ours",
        "wall_seconds": 90.0,
        "device": "A CARD",
        "tokens_per_second": {"sampling": 60_000.0, "update": 1.0},
        "seconds": {"iteration": 0.5},
        "seconds_a_step": 0.02,
        "device_peak_gb": {"iteration": 3.0},
        "first_call_seconds": {"sampling": 12.34},
    },
    {"step": "PyTorch loop", "workload": "theirs", "wall_seconds": 20.0, "tokens_per_second": 50_000.0},
    {"step": "PyTorch update, eager", "workload": "a step", "wall_seconds": 9.0, "seconds_a_step": 0.03},
    {"step": "PyTorch generate", "workload": "slow", "wall_seconds": 60.0, "failed": "it took longer than 60 s"},
    {
        "step": "TRL",
        "workload": "an iteration",
        "wall_seconds": 30.0,
        "seconds": 2.5,
        "device_peak_gb": 4.0,
        "first_call_seconds": 5.0,
    },
    {"step": "1.3b update", "workload": "large", "wall_seconds": 1.0, "left_out": {"update": "memory ran out"}},
    {"step": "quickstart", "workload": "all in", "wall_seconds": 80.0, "reward": 0.68},
]


@pytest.mark.parametrize(
    "line",
    [
        "on A CARD; medians",
        "| sampling over a loop with CUDA graphs in bfloat16 | theirs | 60,000 tokens/s | 50,000 tokens/s | 1.20 x "
        "| at least 1.10 x | met |",
        "| optimizer step over eager PyTorch | a step | 0.0200 s | 0.0300 s | 1.50 x | at least 2.00 x | missed |",
        "| sampling over `generate` as TRL calls it | slow | | | not measured | at least 10.00 x "
        "| `PyTorch generate`: it took longer than 60 s |",
        "| whole iteration over TRL's trainer | an iteration | 0.5000 s | 2.5000 s | 5.00 x | at least 4.00 x | met |",
        "| device memory of that iteration over TRL's | an iteration | 3.00 GB | 4.00 GB | 0.75 x | at most 0.60 x "
        "| missed |",
        "| update, share of TensorFlow's bfloat16 products | large | | | not measured | at least 40% "
        "| `1.3b update`: update memory ran out |",
        "| quickstart, all in | all in | 80.0 s |  | 80.0 s | at most 90.0 s | met |",
        "| quickstart, held-out reward | all in | 0.680 |  | 0.680 | at least 0.690 | missed |",
        "| start to first tick, cold |  | | | not measured | at most 60.0 s | `gpt2 start, cold` was not run |",
        "| gpt2 | 90 | sampling first call 12.3 s |",
        "| TRL | 30 | first call 5.0 s |",
        "| PyTorch generate | 60 | it took longer than 60 s |",
    ],
)
def test_the_table_by_hand(line):
    assert line in rows.report(RECORDS).splitlines()


def test_every_row_has_steps_that_are_run(tmp_path):
    known = steps.all_steps(steps.CARD, tmp_path, "")
    for row in rows.ROWS:
        assert {row.workload, row.ours.step, *([row.theirs.step] if row.theirs else [])} <= set(known), row.what


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--steps=gpt2,none"], ["--steps", "none", "PyTorch loop"]),
        (["--seconds=0"], ["--seconds", "0", "above 0"]),
        (["surplus"], ["surplus", "not a flag"]),
    ],
)
def test_mistakes_are_one_line(flags, parts, tmp_path):
    done = run(command("gpu_figures", f"--workdir={tmp_path / 'new'}", *flags))
    assert done.code == 1 and len(done.err) == 1, done.raw
    assert all(part in done.err[0] for part in parts)
    assert not (tmp_path / "new").exists()


def test_the_list_says_what_would_run(tmp_path):
    done = run(command("gpu_figures", f"--workdir={tmp_path / 'new'}", "--list"))
    assert done.code == 0, done.raw
    assert "1.3b sampling: at most 110 s, 1.3b, batch 32, 256 + 256, bfloat16" in done.out.splitlines()
    assert not (tmp_path / "new").exists()

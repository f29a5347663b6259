"""The benchmark: its model of random lengths, its time, and the real binary."""

import json
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from binaries import command
from binaries import run as run_binary

from tfppo.computation.choice import choose_sampling
from tfppo.config import SamplingConfig
from tfppo.models.language_model import LanguageModel
from tfppo.planning.benchmark import make_tokenizer, measure, shares_of_ceilings, stop_at_random, timed
from tfppo.planning.ceilings import Ceilings
from tfppo.planning.findings import Clock, Findings, within

TINY = ("--batch=4", "--prompt_length=3", "--response_length=5", "--epochs=1", "--minibatches=2", "--runs=1")


def run(*arguments):
    return run_binary(command("benchmark", *arguments))


@pytest.mark.parametrize("size", [258, 260, 1000, 8192])
def test_the_tokenizer_has_exactly_the_size_asked_for(size):
    tokenizer = make_tokenizer(size)
    assert tokenizer.vocabulary_size == size
    assert tokenizer.decode(list(range(2, size)))


def test_stops_have_the_same_probability_in_every_state():
    model = LanguageModel(50, 2, 2, 16, 32, 12)
    stop_at_random(model, stop_id=1, probability=0.25)
    logits = model(tf.constant(np.random.default_rng(0).integers(2, 50, [3, 12])))
    np.testing.assert_allclose(tf.nn.softmax(logits)[..., 1], 0.25, rtol=1e-5)


def test_timed_leaves_the_first_call_out_of_the_median():
    calls = []
    timing = timed(lambda: calls.append(1), 3)
    assert len(calls) == 4 and timing.first > 0 and timing.seconds > 0


def test_with_little_time_a_phase_is_timed_once():
    timing = timed(lambda: time.sleep(0.02), 50, Clock(0.01))
    assert timing.runs == 1 and timing.seconds >= 0.02
    assert timed(lambda: time.sleep(0.001), 3, Clock()).runs == 3


def test_what_runs_within_its_time_is_done_and_what_does_not_is_left():
    done, may_go_on = [], threading.Event()
    assert within(30, lambda: done.append(1)) and done == [1]
    assert not within(0.01, lambda: may_go_on.wait(30))
    may_go_on.set()
    with pytest.raises(ValueError, match="as it was"):
        within(30, lambda: int("as it was"))


class Phases:
    """A benchmark whose reference finds no memory."""

    def __init__(self):
        self.done = []
        self.work = "work"

    def __getattr__(self, phase):
        return lambda *arguments: self.done.append((phase, *arguments))

    def reference(self):
        raise tf.errors.ResourceExhaustedError(None, None, "out of memory")

    def mean_length(self):
        return 5.0

    def sampled_by(self):
        return "XLA"


def found(phases):
    benchmark, findings = Phases(), Findings()
    measure(lambda: benchmark, findings, phases=phases, runs=1, clock=Clock(), shares=False)
    return benchmark.done, findings


def test_a_phase_that_finds_no_memory_is_left_out_and_the_next_one_is_timed(monkeypatch):
    monkeypatch.setattr(Ceilings, "__init__", lambda self: None)
    monkeypatch.setattr(Ceilings, "measure", lambda self: {"a": 1.0})
    done, findings = found(["sampling", "reference", "update"])
    assert list(findings.timings) == ["sampling", "update"] and findings.left_out == {"reference": "memory ran out"}
    assert done == [("sampling",)] * 2 + [("prepare_update", True)] + [("update",)] * 2
    assert (findings.length, findings.sampled_by, findings.work, findings.ceilings) == (5.0, "XLA", "work", {"a": 1.0})
    assert findings.peak_memory_gb > 0
    done, _ = found(["update"])
    assert done[0] == ("prepare_update", False)  # nothing is compiled that draws


def test_with_an_end_the_models_are_made_before_anything_computes(monkeypatch):
    """Logical devices for replicas cannot be had once TensorFlow has computed."""
    order, findings = [], Findings()
    monkeypatch.setattr(Ceilings, "__init__", lambda self: order.append("ceilings"))
    monkeypatch.setattr(Ceilings, "measure", lambda self: {"a": 1.0})

    def make():
        order.append("models")
        return Phases()

    measure(make, findings, phases=["sampling"], runs=1, clock=Clock(60), shares=False)
    assert order == ["models", "ceilings"] and findings.ceilings == {"a": 1.0}
    assert findings.peak_memory_gb == 0  # matrices of the ceilings would be in it


def test_the_binary_prints_json_and_a_table_and_appends_to_a_file(tmp_path):
    output = tmp_path / "runs.jsonl"
    done = run(*TINY, "--critic=separate", f"--output={output}")
    assert done.code == 0, done.raw
    line, *table = done.out.splitlines()
    record = json.loads(line)
    assert json.loads(output.read_text()) == record
    assert (record["preset"], record["batch"], record["mean_response_length"]) == ("tiny", 4, 5.0)
    assert record["critic"] == "separate"
    phases = ["sampling", "reward", "reference", "advantages", "update", "iteration"]
    assert list(record["seconds"]) == phases and min(record["seconds"].values()) > 0
    tokens = record["seconds"]["update"] * record["tokens_per_second"]["update"]
    assert tokens == pytest.approx(1 * 4 * (3 + 5))
    sampling = choose_sampling(SamplingConfig(), record["sampled_in"], architecture="gpt2")
    assert record["sampled_by"] in (["C++"] if sampling.engine.name == "C++" else ["XLA", "graph"])
    assert list(record["share_of_ceiling"]) == ["sampling", "reference", "update"]
    assert 0 < record["share_of_ceiling"]["update"] < 1 and record["peak_memory_gb"] > 0.2
    assert list(record["share_of_memory_roofline"]) == ["sampling"] and "share_of_stated_peak" not in record
    assert record["runs"] == dict.fromkeys(phases, 1) and record["left_out"] == {}
    assert [row.split("|")[1].strip() for row in table if row.startswith("| ")] == ["phase", *phases]


def test_the_binary_times_an_update_alone_beside_a_stated_peak():
    done = run(*TINY, "--phases=update", "--peak_tflops=2", "--shares=false")
    assert done.code == 0, done.raw
    record, table = json.loads(done.out.splitlines()[0]), done.out
    assert list(record["seconds"]) == ["update"] and record["share_of_ceiling"] == {}
    measured, stated = record["share_of_bfloat16_products"]["update"], record["share_of_stated_peak"]["update"]
    assert stated * 2000 == pytest.approx(measured * record["ceilings"]["bfloat16_gflops"])
    assert "of the stated peak" in table and "device memory" not in table and record["device_peak_gb"] == {}


def test_the_binary_ends_in_time_with_what_is_found():
    done = run(*TINY, "--seconds=1")  # the models and the ceilings take longer
    assert done.code == 0, done.raw
    record = json.loads(done.out.splitlines()[0])
    assert record["seconds"] == {} and record["left_out"]["update"] == "not begun"
    assert "left out: sampling (not begun)" in done.out


def test_the_binary_takes_every_other_flag():
    done = run(
        *TINY,
        "--phases=sampling,update",
        "--minibatches=4",  # of one episode, which is not cut by length: less to trace
        "--mean_length=2",
        "--dtype=mixed_bfloat16",
        "--rollout_dtype=float32",
        "--update_dtype=float32",
        "--compile_sampling=false",
        "--compile_update=false",
        "--native=false",
        "--native_update=false",
        "--tensorfloat32",
        "--replicas=-1",
    )
    assert done.code == 0, done.raw
    record = json.loads(done.out.splitlines()[0])
    assert record["sampled_in"] == record["updated_in"] == "float32" and record["critic"] == "shared"
    assert record["tensorfloat32"] is True and "tensorfloat32_gflops" not in record["ceilings"]  # of GPUs
    assert record["native"] == record["native_update"] == "false" and record["sampled_by"] == "graph"
    assert 1 <= record["mean_response_length"] < 5 and record["share_of_ceiling"] == {}


class Rates:
    """Ceilings of 1, 3, 2, 4, ... a second, one measurement after the other."""

    def __init__(self):
        self.left = iter([1.0, 3.0, 2.0, 4.0, 8.0])

    def measure(self):
        return {"rate": next(self.left)}


def test_a_share_is_the_median_of_runs_each_beside_its_own_rates(monkeypatch):
    monkeypatch.setattr("tfppo.planning.benchmark.Ceilings", Rates)
    monkeypatch.setattr("tfppo.planning.benchmark.seconds_of", lambda phase: phase())
    needed = SimpleNamespace(seconds_needed=lambda rates: {"sampling": 6.0 / rates["rate"], "update": 8.0})
    benchmark = SimpleNamespace(work=needed, sampling=iter([4.0, 2.0, 3.0]).__next__, update=lambda: 16.0)
    shares, rates = shares_of_ceilings(benchmark, 3, ["sampling"], Clock())
    # Larger neighbours 3, 3, 4 make 2, 2, 1.5 of 4, 2, 3 seconds: shares of 1/2, 1 and 1/2.
    assert shares == {"sampling": 0.5} and rates == {"rate": 2.5}
    shares, rates = shares_of_ceilings(benchmark, 3, ["update"], Clock(0.0))
    assert shares == {} and rates == {"rate": 1.0}  # no time is left


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--batch=0"], ["--batch", "0", "above 0"]),
        (["--batch=6"], ["ppo.num_minibatches"]),
        (["--preset=huge"], ["preset", "tiny"]),
        (["--phases=sampling,scoring"], ["--phases", "scoring", "reference"]),
        (["--phases="], ["--phases", "sampling"]),
        (["--seconds=-1"], ["--seconds", "-1", "0 for no end"]),
        (["--peak_tflops=0"], ["--peak_tflops", "0", "above 0"]),
        (["surplus"], ["surplus", "not a flag"]),
    ],
)
def test_mistakes_are_one_line(arguments, parts):
    done = run(*arguments)
    assert done.code == 1
    (line,) = [line for line in done.raw.splitlines() if line.startswith("error:")]
    assert all(part in line for part in parts), line

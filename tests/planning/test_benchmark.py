"""The benchmark: its model of random lengths, its shares of the ceiling by hand, and the real binary."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from binaries import command
from binaries import run as run_binary

from tfppo.computation.choice import choose_sampling
from tfppo.config import Config, ModelConfig, PpoConfig, SamplingConfig
from tfppo.models.language_model import LanguageModel
from tfppo.planning.benchmark import larger_of_neighbours, make_tokenizer, seconds_needed, stop_at_random, timed

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


def computing_in(rollout_dtype, update_dtype):
    sampling, update = (SimpleNamespace(engine=SimpleNamespace(dtype=dtype)) for dtype in (rollout_dtype, update_dtype))
    return SimpleNamespace(sampling=sampling, update=update)


def test_seconds_that_phases_need_by_hand():
    """One layer of width 2, MLP of 3, 5 tokens: 28 matrix entries, and 10 of the output layer."""
    model = ModelConfig(
        num_layers=1, num_heads=1, hidden_dim=2, intermediate_dim=3, vocabulary_size=5, max_sequence_length=8
    )
    ppo = PpoConfig(rollout_batch_size=2, num_minibatches=1, ppo_epochs=3, critic="shared")
    config = Config(model=model, sampling=SamplingConfig(response_length=2), ppo=ppo)
    computation = computing_in("float32", "mixed_bfloat16")
    benchmark = SimpleNamespace(config=config, prompt_length=2, computation=computation)
    ceilings = {"float32_gflops": 1e-9, "bfloat16_gflops": 2e-9, "copy_gb_per_second": 1e-9}  # 1, 2 and 1 a second
    needed = seconds_needed(benchmark, ceilings)
    # Reading 2 prompts of 2 tokens: queries, keys, values 2 * 2 * 12 a prompt; of its last position the rest, 2 * 16,
    # 4 * 2 * 2 for scores and context; 20 for logits. One step more, with 3 positions: 4 bytes of 28 + 10 weights
    # and of 2 * 2 * 3 * 2 cached numbers are 248; its products, 2 * (56 + 24 + 20) = 200, need less.
    assert needed["sampling"] == pytest.approx(2 * (48 + 32 + 16 + 20) + 248)
    # 2 rows of 3 positions, the rest of the block and logits at 2 of them.
    row = 3 * 24 + 2 * (32 + 4 * 2 * 3 + 20)
    assert needed["reference"] == pytest.approx(2 * row)
    assert needed["update"] == pytest.approx(3 * 3 * 2 * row / 2)
    # In bfloat16, half the bytes are 124, and the products, at twice the rate, need 100.
    benchmark.computation = computing_in("mixed_bfloat16", "mixed_bfloat16")
    needed = seconds_needed(benchmark, ceilings)
    assert needed["sampling"] == pytest.approx(48 + 32 + 16 + 20 + 124)
    assert needed["reference"] == pytest.approx(row)


def test_each_run_stands_between_two_measurements_whose_larger_rates_count():
    rates = [{"a": 1.0, "b": 9.0}, {"a": 3.0, "b": 8.0}, {"a": 2.0, "b": 10.0}]
    assert larger_of_neighbours(rates) == [{"a": 3.0, "b": 9.0}, {"a": 3.0, "b": 10.0}]


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
    assert [row.split("|")[1].strip() for row in table if row.startswith("| ")] == ["phase", *phases]


def test_the_binary_takes_every_other_flag():
    done = run(
        *TINY,
        "--minibatches=4",  # of one episode, which is not cut by length: less to trace
        "--mean_length=2",
        "--dtype=mixed_bfloat16",
        "--rollout_dtype=float32",
        "--update_dtype=float32",
        "--compile_sampling=false",
        "--compile_update=false",
        "--native=false",
        "--native_update=false",
        "--replicas=-1",
    )
    assert done.code == 0, done.raw
    record = json.loads(done.out.splitlines()[0])
    assert record["sampled_in"] == record["updated_in"] == "float32" and record["critic"] == "shared"
    assert record["native"] == record["native_update"] == "false" and record["sampled_by"] == "graph"
    assert 1 <= record["mean_response_length"] < 5 and record["share_of_ceiling"] == {}


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--batch=0"], ["--batch", "0", "above 0"]),
        (["--batch=6"], ["ppo.num_minibatches"]),
        (["--preset=huge"], ["preset", "tiny"]),
        (["surplus"], ["surplus", "not a flag"]),
    ],
)
def test_mistakes_are_one_line(arguments, parts):
    done = run(*arguments)
    assert done.code == 1
    (line,) = [line for line in done.raw.splitlines() if line.startswith("error:")]
    assert all(part in line for part in parts), line

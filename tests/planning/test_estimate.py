"""The calculator of memory and time, against numbers worked out by hand; and its binary."""

import dataclasses
import math
import re
import shlex

import pytest
from binaries import ROOT, command, run, run_all, succeed

from tfppo.config import ModelConfig
from tfppo.errors import UserError
from tfppo.planning.estimate import Memory, all_reduce_seconds, estimate
from tfppo.planning.workload import Device, Workload

# Small enough for the back of an envelope: 2 layers of width 4, 300 tokens, 3 + 5 positions of which 7 are computed.
MODEL = ModelConfig(
    num_layers=2, hidden_dim=4, num_heads=2, intermediate_dim=16, vocabulary_size=300, max_sequence_length=8
)
EPISODES = dict(rollout_batch_size=8, prompt_length=3, response_length=5)
WORKLOAD = Workload(**EPISODES, ppo_epochs=3, num_minibatches=2, accumulation_steps=2, dtype="float32", num_replicas=2)
# A million operations and a million bytes a second; a kilobyte is a millionth of a GB.
SPEEDS = dict(peak_tflops=1e-6, bandwidth_gb_s=1e-3, memory_gb=1e-3, interconnect_gb_s=1e-3)
DEVICE = Device(**SPEEDS, update_efficiency=0.5, decode_efficiency=0.25, base_memory_gb=1e-6)
CPU = dataclasses.replace(DEVICE, allocator="growing")
# Matrices: 2 * (4 * 4 * 4 + 2 * 4 * 16). Vectors: 2 * (9 * 4 + 16) + 2 * 4 = 112. Embeddings: 4 * (300 + 8) = 1232.
MATRICES = 384
WEIGHTS = 1728
TRAINED = WEIGHTS + 5  # and the value head
CACHE = 2 * 2 * (4 * 7 * 4) * 4  # bytes of keys and values of 4 episodes, in 2 layers


def of(workload=WORKLOAD, device=DEVICE, model=MODEL, **changes):
    """The estimate, with some fields of the workload changed."""
    return estimate(model, dataclasses.replace(workload, **changes), device)


def seconds_of(result):
    return {span.name: span.seconds for span in result.spans}


# Memory.


def test_memory_that_is_always_held():
    assert of().memory.held == pytest.approx(
        {
            "process": 1000,
            "policy weights": 4 * WEIGHTS,
            "critic weights": 4 * 5,
            "reference weights": 4 * WEIGHTS,
            "optimizer moments": 8 * TRAINED,
            "rollout": 8 * (3 * 2 + 5 * 12) * 4,  # every replica holds all 8 episodes
        }
    )


def test_memory_of_the_phases():
    # A replica samples 4 episodes and computes the gradient of 1 at a time.
    token_logits, layer_scores = 300 * 4, 2 * 7 * 7 * 4
    kept = 2 * 7 * 4 * (8 * 4 + 3 * 16) + 2 * layer_scores  # of 2 layers
    assert of().memory.phases == {
        "sampling": {
            "cast weights": 0,
            "KV cache": CACHE,
            "logits or prompt pass": 4 * 4 * token_logits,  # logits, exponentials, the same in blocks, softmax
        },
        "reference": {"cast weights": 0, "logits or one layer": 2 * (4 * 5) * token_logits},
        "gradients": {
            "cast weights": 0,
            "gradients": 2 * 4 * TRAINED,  # the sum of the parts so far, and the next part's
            "activations": kept,
            "logits or scores": 3 * 5 * token_logits,  # logits, softmax, gradient
        },
        "optimizer": {"gradients": 4 * TRAINED, "scaled copies": 4 * TRAINED},  # of two replicas: before and after
    }


def test_the_layers_count_where_they_need_more_than_the_logits():
    long = ModelConfig(
        num_layers=2, hidden_dim=4, num_heads=2, intermediate_dim=16, vocabulary_size=258, max_sequence_length=2000
    )
    phases = of(model=long, prompt_length=1000, response_length=1).memory.phases
    # Three tensors of the width, and the scores and the softmax of 2 heads over 1000 positions.
    layer = 4 * 1000 * (3 * 4 * 4 + 2 * 2 * 1000 * 4)
    assert phases["sampling"]["KV cache"] == 2 * 2 * (4 * 1000 * 4) * 4  # is there besides
    assert phases["sampling"]["logits or prompt pass"] == layer
    assert phases["reference"]["logits or one layer"] == layer
    assert phases["gradients"]["logits or scores"] == 2 * 1000 * 1000 * 4
    # With few positions, the MLP needs more than the attention: the width once, and 16 twice.
    wide = dataclasses.replace(MODEL, intermediate_dim=100_000)
    phases = of(model=wide).memory.phases
    assert phases["sampling"]["logits or prompt pass"] == 4 * 3 * 4 * (4 + 2 * 100_000)


def test_memory_in_bfloat16():
    half, full = of(dtype="mixed_bfloat16").memory, of().memory
    assert half.held == full.held  # float32 under every dtype
    assert half.phases["sampling"]["cast weights"] == 2 * TRAINED
    assert half.phases["reference"]["cast weights"] == 2 * WEIGHTS
    assert half.phases["gradients"]["cast weights"] == 2 * TRAINED
    assert half.phases["sampling"]["KV cache"] == full.phases["sampling"]["KV cache"] / 2
    # Attention weights are kept twice: in float32 and cast.
    assert half.phases["gradients"]["activations"] == 2 * 7 * 2 * (8 * 4 + 3 * 16) + 2 * 2 * 7 * 7 * (4 + 2)
    # Of a logit 2 + 2 + 4 + 4 bytes, and 4 + 4 + 4.
    assert half.phases["gradients"]["logits or scores"] == full.phases["gradients"]["logits or scores"]
    # In sampling and in the reference pass the logits themselves are half as large, the softmax is not.
    assert half.phases["sampling"]["logits or prompt pass"] == 4 * 300 * (2 + 3 * 4)
    assert half.phases["reference"]["logits or one layer"] == 4 * 5 * 300 * (2 + 4)


def test_the_update_may_have_a_dtype_of_its_own():
    full, half = of().memory.phases, of(dtype="mixed_bfloat16").memory.phases
    assert of(update_dtype="mixed_bfloat16").memory.phases == {**full, "gradients": half["gradients"]}
    mixed = of(dtype="mixed_bfloat16", update_dtype="float32").memory.phases
    assert mixed == {**half, "gradients": full["gradients"]}
    assert of(dtype="mixed_bfloat16", update_dtype="").memory.phases == half


def test_a_bfloat16_update_on_a_cpu_keeps_other_activations():
    cpu = of(device=CPU, update_dtype="mixed_bfloat16").memory.phases["gradients"]
    # Of a position, norms in float32 2 * 2 * 4 D; in bfloat16 their results 2 D, query, key, value and context 4 D, the
    # MLP before and after GELU 2 * 4 D: 16 + 2 * (6 + 8) = 44 bytes a unit of width.
    assert cpu["activations"] == 2 * 7 * (44 * 4) + 2 * 2 * 7 * 7 * (4 + 2)
    assert of(device=CPU).memory.phases == of().memory.phases  # float32 is compiled there too


def test_memory_of_a_separate_critic():
    alone, shared = of(critic="separate"), of()
    trained = 2 * WEIGHTS + 5
    assert alone.num_parameters == trained
    assert alone.memory.held["critic weights"] == 4 * (WEIGHTS + 5)
    assert alone.memory.held["optimizer moments"] == 8 * trained
    assert alone.memory.phases["gradients"]["gradients"] == 2 * 4 * trained
    for phase, part in (("sampling", "KV cache"), ("gradients", "activations")):
        assert alone.memory.phases[phase][part] == 2 * shared.memory.phases[phase][part]
    assert alone.memory.phases["reference"] == shared.memory.phases["reference"]


NATIVE = dict(native=True, dtype="mixed_bfloat16", num_replicas=1)
# Rows of 4 and of 16 numbers lie 64 apart: a panel of 32, and one more. In bytes of a position: of a block 8 + 12 units
# of the width and 2 of the MLP are kept; a pass without a gradient has GELU's result besides, 2 of the MLP.
KEPT, PASS = 64 * (20 + 2), 64 * (20 + 4)


def test_memory_of_the_native_operations():
    """8 episodes are sampled on the one device, and the gradient of 2 is computed at a time."""
    memory = of(**NATIVE).memory
    assert memory.held == of(num_replicas=1).memory.held
    assert memory.phases == {
        "sampling": {
            "packed weights": 2 * (MATRICES + 300 * 4),
            "KV cache": 2 * 2 * (8 * 7 * 4) * 2,
            "logits or prompt pass": 8 * 3 * (PASS + 4 * 4),
        },
        "reference": {"one layer": 8 * 7 * (PASS + 4 * 4)},
        "gradients": {
            "gradients": 4 * TRAINED + MIXED,
            "activations": 2 * (2 * 7) * KEPT,
            "logits": 2 * (2 * 5) * (320 + 32),
            "backward pass": 2 * 7 * 64 * (18 + 6),
        },
        "optimizer": {"gradients": 4 * TRAINED},
    }
    assert memory.allocator == of(**NATIVE, device=CPU).memory.allocator == "pool"
    wide = of(**NATIVE, model=dataclasses.replace(MODEL, vocabulary_size=5000)).memory
    assert wide.phases["sampling"]["logits or prompt pass"] == 8 * 5000 * 4
    once = of(**NATIVE, accumulation_steps=1).memory.phases
    assert once["gradients"]["gradients"] == once["optimizer"]["gradients"] == MIXED


def test_memory_of_a_separate_critic_in_the_native_operations():
    alone, shared = (of(**NATIVE, critic=critic).memory.phases for critic in ("separate", "shared"))
    assert alone["sampling"]["packed weights"] == shared["sampling"]["packed weights"] + 2 * MATRICES
    assert alone["gradients"]["gradients"] == 4 * (TRAINED + WEIGHTS) + MIXED + 4 * WEIGHTS - 2 * MATRICES
    for phase, part in (("sampling", "KV cache"), ("gradients", "activations")):
        assert alone[phase][part] == 2 * shared[phase][part]
    for phase, part in (("reference", "one layer"), ("gradients", "logits"), ("gradients", "backward pass")):
        assert alone[phase][part] == shared[phase][part]


# A part's own gradients in mixed_bfloat16: 2 bytes of an entry of the blocks' matrices, 4 of all else, biases included.
MIXED = 2 * MATRICES + 4 * (TRAINED - MATRICES)


def gradients(**changes):
    return of(**changes).memory.phases["gradients"]["gradients"]


def test_memory_of_the_gradients():
    half = dict(dtype="float32", update_dtype="mixed_bfloat16")
    assert gradients(accumulation_steps=1) == 4 * TRAINED
    assert gradients(accumulation_steps=1, **half) == MIXED
    assert gradients(accumulation_steps=1, **half, critic="separate") == MIXED + 4 * WEIGHTS - 2 * MATRICES
    # Parts have a sum in float32, whatever their dtype and however many they are.
    for steps in (2, 4):
        parts = dict(rollout_batch_size=32, accumulation_steps=steps)
        assert gradients(**parts) == 4 * TRAINED + 4 * TRAINED
        assert gradients(**parts, **half) == 4 * TRAINED + MIXED
        assert gradients(**parts, **half, num_replicas=1) == 4 * TRAINED + MIXED


def test_one_replica_applies_gradients_one_variable_at_a_time():
    def optimizer(**changes):
        return of(**{"num_replicas": 1, "accumulation_steps": 1, **changes}).memory.phases["optimizer"]

    embedding = 4 * (300 * 4)  # a float32 copy of the largest variable
    half = dict(update_dtype="mixed_bfloat16")
    assert optimizer() == {"gradients": 4 * TRAINED, "scaled copies": embedding}
    assert optimizer(**half) == {"gradients": MIXED, "scaled copies": embedding}
    assert optimizer(**half, accumulation_steps=2) == {"gradients": 4 * TRAINED, "scaled copies": embedding}
    for changes in ({}, half):  # several need all of them, in float32, before and after clipping
        assert optimizer(**changes, num_replicas=2) == {"gradients": 4 * TRAINED, "scaled copies": 4 * TRAINED}


@pytest.mark.parametrize(
    ("sizes", "largest"),
    [
        (dict(intermediate_dim=5000), 4 * 5000),
        (dict(max_sequence_length=400), 4 * 400),
        (dict(hidden_dim=128), 3 * 128 * 128),  # queries, keys and values in one matrix
    ],
)
def test_the_largest_variable(sizes, largest):
    optimizer = of(model=dataclasses.replace(MODEL, **sizes), num_replicas=1).memory.phases["optimizer"]
    assert optimizer["scaled copies"] == 4 * largest


def total(*sizes, allocator):
    phases = {str(i): {"a": size - 1, "b": 1} for i, size in enumerate(sizes)}
    return Memory(held={"weights": 100, "moments": 200}, phases=phases, allocator=allocator).total


def test_in_a_pool_the_phases_take_turns():
    assert total(10, 30, 20, 5, allocator="pool") == 330
    assert total(10, 30, 20, 40, allocator="pool") == 340


def test_where_memory_grows_a_larger_block_is_a_new_one():
    assert total(10, 30, 20, 5, allocator="growing") == 340  # the third fits in the second
    assert total(10, 20, 30, 5, allocator="growing") == 360
    assert total(10, 20, 30, 70, allocator="growing") == 370  # the optimizer's pieces fill the blocks, and 10 more


def test_the_largest_phase_and_the_total():
    memory = of().memory
    assert memory.largest_phase == "reference"
    held = 1000 + 2 * 4 * WEIGHTS + 4 * 5 + 8 * TRAINED + 2112
    assert memory.total == pytest.approx(held + 48_000)
    growing = of(device=CPU).memory
    sampling = CACHE + 19_200
    assert growing.total == pytest.approx(held + sampling + 48_000)  # the update fits in the reference's block


def test_it_fits_up_to_the_last_byte():
    size = of().memory.total / 1e9
    assert of(device=dataclasses.replace(DEVICE, memory_gb=size)).fits
    assert not of(device=dataclasses.replace(DEVICE, memory_gb=size * (1 - 1e-9))).fits


# Time.

# A token's products in a block: queries, keys and values 2 * 3 * 4^2 = 96, the output 2 * 4^2 = 32, the MLP
# 2 * 2 * 4 * 16 = 256; its scores and its context over T positions 2 * 2 * 4 * T. All tokens pass through the first
# block, those whose states are wanted through the second, which makes of the others queries, keys and values alone.
# A state's logits: 2 * 4 * 300.
READ = 3 * (384 + 16 * 3) + 2 * 96 + 1 * (384 + 16 * 3)  # a prompt, for the state of its last token
SCORED = 7 * (384 + 16 * 7) + 2 * 96 + 5 * (384 + 16 * 7)  # an episode, for the states of its 5 response tokens
PROMPTS = 4 * (READ + 1 * 2400)
FORWARD = 4 * (SCORED + 5 * 2400)
STEPS = 3 * 2


def test_time_of_the_spans():
    result = of()
    assert seconds_of(result) == pytest.approx(
        {
            "prompts": PROMPTS / 1e6 / 0.5,
            # 4 rows of products are more than the 4 bytes of a weight; 4 steps, as the prompts give the first token.
            "decoding, weights": 4 * (4 * 2 * (384 + 1200)) / 1e6 / 0.25,
            # Keys and values of 4 rows and 7 positions in 2 layers: more bytes than products.
            "decoding, KV cache": 4 * (2 * 2 * 4 * 7 * 4 * 4) / 1e6 / 0.25,
            "forward": FORWARD / 1e6 / 0.5,
            "forward and backward": 3 * 3 * FORWARD / 1e6 / 0.5,
            # Norm 1 read, clipping 1 read and 1 write, Adam 4 reads and 3 writes; a sum 2 reads and 1 write.
            "optimizer": STEPS * (10 + 3) * 4 * TRAINED / 1e6,
            "all-reduce": STEPS * 4 * TRAINED / 1e6,  # 2 (n - 1) / n = 1 for two
        }
    )
    limits = ["compute", "compute", "bandwidth", "compute", "compute", "bandwidth", "interconnect"]
    assert [span.limit for span in result.spans] == limits
    assert result.seconds == pytest.approx(sum(seconds_of(result).values()))
    assert result.phase_seconds("sampling") == pytest.approx(sum(list(seconds_of(result).values())[:3]))
    assert result.tokens_per_second == pytest.approx(8 * 5 / result.seconds)


def test_time_of_a_separate_critic():
    """It reads prompts, decodes and learns as the actor does, but makes no logits."""
    shared, alone = seconds_of(of()), seconds_of(of(critic="separate"))
    assert alone["prompts"] - shared["prompts"] == pytest.approx(4 * READ / 1e6 / 0.5)
    assert alone["decoding, weights"] - shared["decoding, weights"] == pytest.approx(4 * (4 * 2 * 384) / 1e6 / 0.25)
    assert alone["decoding, KV cache"] == pytest.approx(2 * shared["decoding, KV cache"])
    assert alone["forward"] == shared["forward"]
    more = alone["forward and backward"] - shared["forward and backward"]
    assert more == pytest.approx(3 * 3 * 4 * SCORED / 1e6 / 0.5)


def test_one_replica_reads_a_scaled_gradient_from_the_cache():
    alone = of(num_replicas=1, accumulation_steps=1)
    # Norm 1 read, clipping 1, Adam 3 reads and 3 writes: weight and moments. A bfloat16 gradient counts as float32.
    assert seconds_of(alone)["optimizer"] == pytest.approx(STEPS * 8 * 4 * TRAINED / 1e6)
    half = of(num_replicas=1, accumulation_steps=1, update_dtype="mixed_bfloat16")
    assert seconds_of(half)["optimizer"] == seconds_of(alone)["optimizer"]
    parts = of(num_replicas=1, accumulation_steps=4)
    assert seconds_of(parts)["optimizer"] == pytest.approx(STEPS * (8 + 3 * 3) * 4 * TRAINED / 1e6)
    assert seconds_of(alone)["all-reduce"] == 0


def test_the_native_step_moves_what_it_keeps_and_reads_gradients_twice():
    alone = seconds_of(of(**NATIVE, accumulation_steps=1))["optimizer"]
    assert alone == pytest.approx(STEPS * (6 * 4 * TRAINED + 2 * MIXED) / 1e6)
    parts = seconds_of(of(**NATIVE, accumulation_steps=4))[
        "optimizer"
    ]  # sums in float32: 3 passes for each further part
    assert parts == pytest.approx(STEPS * (6 + 2 + 3 * 3) * 4 * TRAINED / 1e6)


def test_few_rows_wait_for_the_weights():
    few = of(rollout_batch_size=2, num_minibatches=1, accumulation_steps=1)
    weights = next(span for span in few.spans if "weights" in span.name)
    assert weights.limit == "bandwidth"
    assert weights.seconds == pytest.approx(4 * (4 * (384 + 1200)) / 1e6 / 0.25)


def test_a_ring_sends_every_part_twice_but_its_own():
    assert all_reduce_seconds(80e9, 8, interconnect_gb_s=10) == pytest.approx(2 * 7 / 8 * 80 / 10)
    assert all_reduce_seconds(80e9, 1, interconnect_gb_s=10) == 0


def test_whether_the_all_reduce_could_hide():
    # The backward pass of the last of 2 micro-batches of each of the 6 steps, against 6 sums of the gradients.
    backward = 2 / 3 * (3 * 3 * FORWARD / 1e6 / 0.5) / 2
    just_enough = STEPS * 4 * TRAINED / backward / 1e9
    assert of(device=dataclasses.replace(DEVICE, interconnect_gb_s=just_enough * 1.001)).all_reduce_could_hide
    assert not of(device=dataclasses.replace(DEVICE, interconnect_gb_s=just_enough * 0.999)).all_reduce_could_hide


def test_what_is_slow_or_small_is_the_limit():
    for name, limit in zip(SPEEDS, ("compute", "bandwidth", "memory", "interconnect"), strict=True):
        assert of(device=dataclasses.replace(DEVICE, **{name: 1e-9})).limit == limit


# What must hold whatever the numbers.


def test_more_devices_take_less_time_and_memory():
    results = [of(rollout_batch_size=64, num_replicas=count) for count in (1, 2, 4, 8)]
    for fewer, more in zip(results, results[1:], strict=False):
        mine, theirs = seconds_of(more), seconds_of(fewer)
        for name in ("prompts", "decoding, KV cache", "forward", "forward and backward"):
            assert mine[name] == pytest.approx(theirs[name] / 2)
        assert mine["decoding, weights"] <= theirs["decoding, weights"]
        assert more.seconds < fewer.seconds
        assert more.memory.total < fewer.memory.total
        assert more.memory.held == fewer.memory.held  # mirrored: no device holds less


@pytest.mark.parametrize("field", ["rollout_batch_size", "prompt_length", "response_length", "ppo_epochs"])
def test_more_work_takes_more_time(field):
    more = of(**{field: 2 * getattr(WORKLOAD, field)})
    assert more.seconds > of().seconds
    assert more.memory.total > of().memory.total or field == "ppo_epochs"


def test_smaller_parts_need_less_memory():
    parts = [of(rollout_batch_size=64, accumulation_steps=count).memory.phases["gradients"] for count in (2, 4, 8)]
    for larger, smaller in zip(parts, parts[1:], strict=False):
        assert smaller["activations"] == larger["activations"] / 2
        assert smaller["logits or scores"] == larger["logits or scores"] / 2


def test_bfloat16_moves_fewer_bytes():
    slow = dataclasses.replace(DEVICE, bandwidth_gb_s=1e-6)
    full, half = seconds_of(of(device=slow)), seconds_of(of(device=slow, dtype="mixed_bfloat16"))
    for name in ("decoding, weights", "decoding, KV cache"):
        assert half[name] == pytest.approx(full[name] / 2)
    long = dict(prompt_length=100, response_length=100)
    assert of(**long, dtype="mixed_bfloat16").memory.total < of(**long).memory.total


@pytest.mark.parametrize(
    ("field", "value", "names"),
    [
        ("update_efficiency", 2 * 0.5, {"prompts", "forward", "forward and backward"}),
        ("decode_efficiency", 2 * 0.25, {"decoding, weights", "decoding, KV cache"}),
        ("update_peak_tflops", 2 * 1e-6, {"forward and backward"}),
    ],
)
def test_twice_the_speed_halves_the_time_of_its_spans(field, value, names):
    better = seconds_of(of(device=dataclasses.replace(DEVICE, **{field: value})))
    for name, seconds in seconds_of(of()).items():
        assert better[name] == pytest.approx(seconds / 2 if name in names else seconds)


# The user's mistakes.


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rollout_batch_size", 0, r"workload\.rollout_batch_size is 0; it must be above 0"),
        ("prompt_length", 0, r"workload\.prompt_length is 0; .*above 0"),
        ("response_length", -1, r"workload\.response_length is -1; .*above 0"),
        ("ppo_epochs", 0, r"workload\.ppo_epochs is 0; .*above 0"),
        ("num_minibatches", 3, r"workload\.num_minibatches is 3; it must divide rollout_batch_size, which is 8"),
        ("accumulation_steps", 3, r"\.accumulation_steps is 3; .*rollout_batch_size / num_minibatches, which is 4"),
        ("num_replicas", 4, r"\.num_replicas is 4; .* / num_minibatches / accumulation_steps, which is 2"),
        ("dtype", "float16", r"workload\.dtype is 'float16'; choose one of float32, mixed_bfloat16"),
        ("update_dtype", "auto", r"workload\.update_dtype is 'auto'; choose one of float32, mixed_bfloat16"),
        ("critic", "none", r"workload\.critic is 'none'; choose one of shared, separate"),
        ("native", True, r"workload\.native is True; it is for mixed_bfloat16 on one CPU; choose those, or False"),
        ("peak_tflops", 0, r"device\.peak_tflops is 0; .*above 0"),
        ("update_peak_tflops", 0, r"device\.update_peak_tflops is 0; .*above 0"),
        ("bandwidth_gb_s", math.inf, r"device\.bandwidth_gb_s is inf; .*finite"),
        ("memory_gb", -1, r"device\.memory_gb is -1; .*above 0"),
        ("interconnect_gb_s", math.nan, r"device\.interconnect_gb_s is nan; .*above 0"),
        ("update_efficiency", 0, r"device\.update_efficiency is 0; .*above 0 and at most 1"),
        ("decode_efficiency", 40, r"device\.decode_efficiency is 40; .*above 0 and at most 1"),
        ("base_memory_gb", -0.5, r"device\.base_memory_gb is -0\.5; .*not negative"),
        ("allocator", "arena", r"device\.allocator is 'arena'; choose one of pool, growing"),
    ],
)
def test_wrong_numbers(field, value, message):
    workload, device = (
        dataclasses.replace(part, **{field: value}) if hasattr(part, field) else part for part in (WORKLOAD, DEVICE)
    )
    with pytest.raises(UserError, match=message):
        of(workload, device)


# The binary.


def cells(out):
    """Name of a row -> its cells."""
    rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in out.splitlines()]
    return {row[0]: row[1:] for row in rows}


def test_the_binary_prints_a_table_without_tensorflow():
    flags = ["--model=tiny,gpt2", "--device=h100,a100", "--num_replicas=2"]
    done = succeed(run(command("estimate", *flags, python=["-X", "importtime"])))
    imported = set(re.findall(r"\|\s+(\w+)\s*$", done.raw, re.MULTILINE))
    assert "absl" in imported
    assert not imported & {"tensorflow", "keras", "numpy"}
    table = cells(done.out)
    assert table[""] == ["tiny, 2 h100", "tiny, 2 a100", "gpt2, 2 h100", "gpt2, 2 a100"]
    assert set(table["---"]) == {"---:"}
    # 4 * 12 * 256^2 + 4 * 13 * 256 + 2 * 256 + 256 * (8192 + 33) + 257, and the same with 12, 768 and 50257.
    assert table["trained parameters, millions"] == ["5.27", "5.27", "124", "124"]
    assert table["GB always: optimizer moments"] == ["0.0421", "0.0421", "0.989", "0.989"]
    assert table["GB always: process"] == ["1.00"] * 4
    assert table["largest phase"] == ["gradients", "gradients", "optimizer", "optimizer"]
    assert table["fits"] == ["yes"] * 4
    assert all(cell.endswith("(interconnect)") for cell in table["s in update: all-reduce"])


def test_every_flag_of_the_binary_changes_the_table():
    base = ["--num_replicas=2", "--accumulation_steps=2", "--rollout_batch_size=64"]
    others = shlex.split(
        "--model=tiny --num_layers=3 --hidden_dim=120 --num_heads=6 --vocabulary_size=500 --rollout_batch_size=128 "
        "--prompt_length=10 --response_length=11 --ppo_epochs=2 --num_minibatches=2 --accumulation_steps=1 "
        "--dtype=float32 --update_dtype=float32 --critic=separate --num_replicas=1 --device=a100 --peak_tflops=1 "
        "--update_peak_tflops=1 --bandwidth_gb_s=10 --memory_gb=2 --interconnect_gb_s=0.1 --update_efficiency=0.1 "
        "--decode_efficiency=0.1 --base_memory_gb=0.1 --allocator=growing"
    )
    done = run_all({flag: command("estimate", *base, flag) for flag in ("--model=gpt2", *others)})
    # The names of model and device stand above the table: what is below must differ too.
    tables = {flag: {**cells(succeed(result).out), "": None} for flag, result in done.items()}
    default = tables.pop("--model=gpt2")
    assert [flag for flag, table in tables.items() if table == default] == []
    one = command("estimate", "--num_replicas=1"), command("estimate", "--num_replicas=1", "--native")
    assert len({succeed(result).out for result in run_all(dict(enumerate(one))).values()}) == 2


MISTAKES = {
    "unknown model": (["--model=gpt5"], r"model is 'gpt5'; choose one of tiny, .*"),
    "no device": (["--device="], r"model, device is \(\['gpt2'\], \[\]\); name at least one of each"),
    "unknown device": (["--device=abacus"], r"device is 'abacus'; choose one of h100, .*"),
    "no number": (["--ppo_epochs=many"], r"flag --ppo_epochs=many: .*"),
    "unknown flag": (["--epochs=3"], r"Unknown command line flag 'epochs'.*"),
    "positional argument": (["gpt2"], r"argument is 'gpt2'; .*--name=value"),
    "bad value": (["--num_minibatches=7"], r"workload\.num_minibatches is 7; it must divide .*"),
    "bad size": (["--num_heads=7"], r"model\.num_heads is 7; it must divide model\.hidden_dim 768"),
}


def test_mistakes_are_told_in_one_line():
    done = run_all({name: command("estimate", *argv) for name, (argv, _) in MISTAKES.items()})
    for name, (_, message) in MISTAKES.items():
        assert done[name].code == 1, name
        assert len(done[name].err) == 1, done[name].raw
        assert re.fullmatch(f"error: {message}", done[name].err[0]), done[name].err[0]
        assert done[name].out == ""


def test_the_tables_of_the_documentation_are_those_of_its_commands():
    text = (ROOT / "docs" / "scaling.md").read_text()
    pairs = re.findall(r"^    python tools/estimate\.py (.*?)\n\n(\|  \|.*?\n)\n", text, re.MULTILINE | re.DOTALL)
    assert len(pairs) == text.count("    python tools/estimate.py")
    for flags, table in pairs:
        assert succeed(run(command("estimate", *shlex.split(flags.replace("\\\n", ""))))).out == table

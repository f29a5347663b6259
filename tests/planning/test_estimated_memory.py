"""The calculator's memory, against numbers worked out by hand."""

import dataclasses

import pytest
from estimate_cases import CPU, DEVICE, MATRICES, MIXED, MODEL, NATIVE, TRAINED, WEIGHTS, of

from tfppo.config import ModelConfig
from tfppo.planning.estimate import Memory

STACK = 4 * MATRICES / 2  # bytes of all blocks but the last, in float32
CACHE = 2 * 2 * (4 * 7 * 4) * 4  # bytes of keys and values of 4 episodes, in 2 layers


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
            "stacked blocks": STACK,
            "KV cache": CACHE,
            "logits or prompt pass": 4 * 4 * token_logits,  # logits, exponentials, the same in blocks, softmax
        },
        "reference": {"cast weights": 0, "stacked blocks": STACK, "logits or one layer": 2 * (4 * 5) * token_logits},
        "gradients": {
            "cast weights": 0,
            "gradients": 2 * 4 * TRAINED,  # the sum of the parts so far, and the next part's
            "stacked blocks": STACK,  # of weights alone on two replicas
            "activations": kept,
            "logits or scores": 3 * 5 * token_logits,  # logits, softmax, gradient
        },
        "optimizer": {"gradients": 4 * TRAINED, "scaled copies": 4 * TRAINED},  # of two replicas: before and after
    }


@pytest.mark.parametrize(
    ("changes", "stacks"),
    [
        ({}, (STACK, STACK, STACK)),
        ({"num_replicas": 1}, (STACK, STACK, 3 * STACK)),  # with two moments
        ({"num_replicas": 1, "critic": "separate"}, (STACK, STACK, 2 * 3 * STACK)),
        ({"critic": "separate"}, (STACK, STACK, 2 * STACK)),
        ({"dtype": "mixed_bfloat16"}, (0, 0, 0)),  # of cast weights, which are counted
        ({"dtype": "mixed_bfloat16", "num_replicas": 1}, (0, 0, 3 * STACK)),
        ({"device": CPU, "num_replicas": 1}, (0, 0, 0)),
    ],
)
def test_a_gpu_holds_all_blocks_but_the_last_in_stacks(changes, stacks):
    phases = of(**changes).memory.phases
    assert tuple(phases[name]["stacked blocks"] for name in ("sampling", "reference", "gradients")) == stacks


def test_the_layers_count_where_they_need_more_than_the_logits():
    long = ModelConfig(
        num_layers=2, hidden_dim=4, num_heads=2, intermediate_dim=16, vocabulary_size=258, max_sequence_length=2000
    )
    phases = of(model=long, prompt_length=900, response_length=1).memory.phases
    # Three tensors of the width, and the scores and the softmax of 2 heads over 900 positions.
    layer = 4 * 900 * (3 * 4 * 4 + 2 * 2 * 900 * 4)
    assert phases["sampling"]["KV cache"] == 2 * 2 * (4 * 900 * 4) * 4  # is there besides
    assert phases["sampling"]["logits or prompt pass"] == layer
    assert phases["reference"]["logits or one layer"] == layer
    assert phases["gradients"]["logits or scores"] == 2 * 900 * 900 * 4
    # With few positions, the MLP needs more than the attention: the width once, and 16 twice.
    wide = dataclasses.replace(MODEL, intermediate_dim=100_000)
    phases = of(model=wide).memory.phases
    assert phases["sampling"]["logits or prompt pass"] == 4 * 3 * 4 * (4 + 2 * 100_000)


def test_from_1000_positions_on_attention_goes_by_blocks_of_512():
    def phases_of(prompt_length, **changes):
        model = dataclasses.replace(MODEL, vocabulary_size=258, max_sequence_length=2000)
        return of(model=model, prompt_length=prompt_length, response_length=1, **changes).memory.phases

    phases = phases_of(1000)
    # Scores and softmax of a block of queries and one of keys, for 2 heads of 4 rows.
    layer = 4 * (1000 * (3 * 4 * 4) + 2 * 2 * 512 * 512 * 4)
    assert phases["sampling"]["logits or prompt pass"] == phases["reference"]["logits or one layer"] == layer
    # Of a row: kept, the log of each query's sum instead of its weights; in the backward pass scores, weights and both
    # their gradients, and those of queries, keys and values so far.
    assert phases["gradients"]["activations"] == 2 * 1000 * (4 * (8 * 4 + 3 * 16) + 2 * 4)
    assert phases["gradients"]["logits or scores"] == 4 * 2 * 512 * 512 * 4 + 3 * 1000 * 4 * 4
    assert phases_of(1000, update_dtype="mixed_bfloat16")["gradients"]["activations"] == 2 * 1000 * (2 * 80 + 2 * 4)
    assert phases_of(999)["gradients"]["activations"] == 2 * 999 * (4 * 80 + 2 * 999 * 4)


def test_logits_are_never_more_than_two_to_the_26th_at_a_time():
    phases = of(model=dataclasses.replace(MODEL, vocabulary_size=2**25)).memory.phases
    assert phases["reference"]["logits or one layer"] == 2**26 * (4 + 4)  # of 4 * 5 * 2^25
    assert phases["gradients"]["logits or scores"] == 2**26 * 12  # of 5 * 2^25
    assert phases["sampling"]["logits or prompt pass"] == 4 * 2**25 * 16  # of the 4 rows at one position


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
    cpu, gpu = of(device=CPU).memory.phases, of().memory.phases
    for phase in gpu:  # float32 is compiled there too, without stacks
        assert cpu[phase] == gpu[phase] | ({"stacked blocks": 0} if "stacked blocks" in gpu[phase] else {})


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
    assert memory.total == pytest.approx(held + STACK + 48_000)
    growing = of(device=CPU).memory
    sampling = CACHE + 19_200
    assert growing.total == pytest.approx(held + sampling + 48_000)  # the update fits in the reference's block


def test_it_fits_up_to_the_last_byte():
    size = of().memory.total / 1e9
    assert of(device=dataclasses.replace(DEVICE, memory_gb=size)).fits
    assert not of(device=dataclasses.replace(DEVICE, memory_gb=size * (1 - 1e-9))).fits

"""The calculator's time, against numbers worked out by hand."""

import dataclasses

import pytest
from estimate_cases import DEVICE, MIXED, NATIVE, SPEEDS, TRAINED, of, seconds_of

from tfppo.planning.estimate import all_reduce_seconds

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

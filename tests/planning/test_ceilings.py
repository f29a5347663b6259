"""What a machine reaches, and shares of that: by hand."""

import pytest
import tensorflow as tf

from tfppo.config import Config, ModelConfig, PpoConfig, SamplingConfig
from tfppo.planning.ceilings import Ceilings, Load, larger_of_neighbours, tensorfloat32
from tfppo.planning.costs import BENCHMARKED, MODEL_SIZES, model_of_sizes, num_parameters
from tfppo.planning.work import Work, flops_per_second

# 1 GFLOP/s is 1e9: these are 1 and 2 operations, and 1 byte, a second.
CEILINGS = {"float32_gflops": 1e-9, "bfloat16_gflops": 2e-9, "copy_gb_per_second": 1e-9}


def work(rollout_dtype, update_dtype):
    """One layer of width 2, MLP of 3, 5 tokens: 28 matrix entries, and 10 of the output layer."""
    model = ModelConfig(
        num_layers=1, num_heads=1, hidden_dim=2, intermediate_dim=3, vocabulary_size=5, max_sequence_length=8
    )
    ppo = PpoConfig(rollout_batch_size=2, num_minibatches=1, ppo_epochs=3, critic="shared")
    config = Config(model=model, sampling=SamplingConfig(response_length=2), ppo=ppo)
    return Work(config, 2, rollout_dtype, update_dtype)


# Reading 2 prompts of 2 tokens: queries, keys, values 2 * 2 * 12 a prompt; of its last position the rest, 2 * 16,
# 4 * 2 * 2 for scores and context; 20 for logits.
READING = 2 * (48 + 32 + 16 + 20)
# One step more, with 3 positions, for 2 rows.
STEP = 2 * (56 + 24 + 20)
# 2 rows of 3 positions, the rest of the block and logits at 2 of them.
SCORING = 2 * (3 * 24 + 2 * (32 + 4 * 2 * 3 + 20))


def test_seconds_that_phases_need_by_hand():
    needed = work("float32", "mixed_bfloat16").seconds_needed(CEILINGS)
    # 4 bytes of 28 + 10 weights and of 2 * 2 * 3 * 2 cached numbers are 248; the step's products need less.
    assert needed["sampling"] == pytest.approx(READING + 248)
    assert needed["reference"] == pytest.approx(SCORING)
    assert needed["update"] == pytest.approx(3 * 3 * SCORING / 2)
    # In bfloat16, half the bytes are 124, and the products, at twice the rate, need 100.
    needed = work("mixed_bfloat16", "mixed_bfloat16").seconds_needed(CEILINGS)
    assert needed["sampling"] == pytest.approx(READING / 2 + 124)
    assert needed["reference"] == pytest.approx(SCORING / 2)


def test_shares_of_single_rates_by_hand():
    seconds = {"sampling": 1000.0, "reward": 1.0, "update": 9000.0, "iteration": 20_000.0}
    shares = work("mixed_bfloat16", "mixed_bfloat16").shares(seconds, CEILINGS, peak_tflops=4e-12)
    assert shares["share_of_memory_roofline"] == {"sampling": pytest.approx(124 / 1000)}
    update, all_products = 9 * SCORING, READING + STEP + SCORING + 9 * SCORING
    assert shares["share_of_bfloat16_products"] == {
        "sampling": pytest.approx((READING + STEP) / 1000 / 2),
        "update": pytest.approx(update / 9000 / 2),
        "iteration": pytest.approx(all_products / 20_000 / 2),
    }
    assert shares["share_of_stated_peak"]["update"] == pytest.approx(update / 9000 / 4)
    without = work("float32", "float32").shares({"reward": 1.0}, CEILINGS)
    assert without == {"share_of_memory_roofline": {}, "share_of_bfloat16_products": {}}


def test_float32_is_bounded_by_tf32_where_that_is_in_use():
    assert flops_per_second(CEILINGS, "float32") == pytest.approx(1)
    both = CEILINGS | {"tensorfloat32_gflops": 7e-9}
    assert flops_per_second(both, "float32") == pytest.approx(7)
    assert flops_per_second(both, "mixed_bfloat16") == pytest.approx(2)


def test_each_run_stands_between_two_measurements_whose_larger_rates_count():
    rates = [{"a": 1.0, "b": 9.0}, {"a": 3.0, "b": 8.0}, {"a": 2.0, "b": 10.0}]
    assert larger_of_neighbours(rates) == [{"a": 3.0, "b": 9.0}, {"a": 3.0, "b": 10.0}]


def test_rates_count_every_call_that_is_timed_together(monkeypatch):
    """Two products of 8 x 8 and two copies of 1 MiB in what the clock takes for 2 s."""
    monkeypatch.setattr("tfppo.planning.ceilings.seconds_of", lambda run: run() or 2.0)
    rates = Ceilings(Load(8, 1, repeats=2)).measure(runs=1)
    assert rates == {
        "float32_gflops": pytest.approx(2 * 2 * 8**3 / 2 / 1e9),
        "bfloat16_gflops": pytest.approx(2 * 2 * 8**3 / 2 / 1e9),
        "copy_gb_per_second": pytest.approx(2 * 2 * 2**20 / 2 / 1e9),
    }


def test_where_tf32_is_in_use_its_rate_is_taken_besides(monkeypatch):
    """A card whose products take 1 s in TF32 and 2 s without."""
    enabled = tf.config.experimental.tensor_float_32_execution_enabled
    monkeypatch.setattr("tfppo.planning.ceilings.rounds_products", enabled)
    monkeypatch.setattr("tfppo.planning.ceilings.seconds_of", lambda run: run() or (1.0 if enabled() else 2.0))
    with tensorfloat32(True):
        rates = Ceilings(Load(8, 1)).measure(runs=1)
        assert enabled()
    assert rates["tensorfloat32_gflops"] == pytest.approx(2 * rates["float32_gflops"]) == 2 * 8**3 / 1e9
    with tensorfloat32(False):
        assert "tensorfloat32_gflops" not in Ceilings(Load(8, 1)).measure(runs=1)


def test_tf32_is_as_it_was_after_a_measurement():
    enabled = tf.config.experimental.tensor_float_32_execution_enabled
    before = enabled()
    with tensorfloat32(not before):
        assert enabled() is not before
    assert enabled() is before


def test_the_largest_preset_fits_a_card():
    """Policy, reference, gradients and two moments, 4 bytes each: 26 GB."""
    weights = [num_parameters(model_of_sizes(positions=1024, **MODEL_SIZES[name])) for name in BENCHMARKED]
    assert weights == sorted(weights) and weights[-1] * 5 * 4 == pytest.approx(26e9, rel=0.03)

"""The engine that is chosen, and why: one place for settings, devices and what engines compute."""

import pytest
import tensorflow as tf

from tfppo.cluster import Cluster
from tfppo.computation import choice, devices
from tfppo.computation.native import availability, building
from tfppo.computation.native.engine import NativeEngine
from tfppo.config import Config, PpoConfig, SamplingConfig
from tfppo.errors import UserError
from tfppo.stages.ppo import check_ppo


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A CPU that multiplies bfloat16 numbers, with operations that are not real."""

    class Operations:
        tfppo_pack = tfppo_trunk = None

    monkeypatch.setattr(building, "load", lambda: (Operations(), None))
    for module in (availability, choice, devices):
        monkeypatch.setattr(module, "has_fast_bfloat16", lambda: True)


def chosen(ppo=None, sampling=None, width=256, architecture="gpt2"):
    settings = PpoConfig(**ppo or {}), SamplingConfig(**sampling or {})
    return choice.choose_computation(*settings, width=width, architecture=architecture)


def names(computation):
    parts = (computation.sampling, computation.scoring, computation.update)
    return [[engine.name for engine in part.engines] for part in parts]


def test_cpp_computes_all_of_it_in_bfloat16_and_says_so():
    computation = chosen()
    assert names(computation) == [["C++"], ["C++"], ["C++"]]
    assert computation.describe().splitlines() == [
        "sampling responses: C++ in mixed_bfloat16 (built for this processor)",
        "log-probabilities of the reference: C++ in mixed_bfloat16 (as the update)",
        "update: C++ in mixed_bfloat16 (built for this processor; bfloat16 is fast here)",
    ]


def test_a_narrow_model_is_updated_in_float32_by_xla():
    computation = chosen(width=128)
    assert names(computation) == [["C++"], ["XLA"], ["XLA"]]
    assert "bfloat16 is chosen from width 256 on, and this model has 128" in computation.update.reason


def test_several_workers_measure_nothing_and_say_what_samples(monkeypatch):
    """Their clocks would not agree on an engine."""
    settings = dict(sampling={"native": False}, ppo={"native": False})
    assert names(chosen(**settings))[0] == ["XLA", "graph"]
    monkeypatch.setattr(choice, "this_cluster", lambda: Cluster(("a:1", "b:1")))
    computation = chosen(**settings)
    assert names(computation)[0] == ["XLA"]
    assert "the first batch" not in computation.describe()


def test_another_architecture_goes_without_cpp_and_insisting_is_refused():
    computation = chosen(architecture="llama")
    assert names(computation) == [["XLA", "graph"], ["XLA"], ["graph"]]  # rollouts in float32, the update in bfloat16
    for part in (computation.sampling, computation.update):
        assert "C++ computes gpt2, and the model is llama" in part.reason
    with pytest.raises(UserError, match=r"sampling.native is True, but C\+\+ computes gpt2, and the model is llama"):
        chosen(sampling={"native": True}, architecture="llama")
    with pytest.raises(UserError, match=r"ppo.native is True, but C\+\+ computes gpt2"):
        chosen(ppo={"native": True, "update_dtype": "mixed_bfloat16"}, architecture="llama")


def test_cpp_refuses_to_compute_what_it_would_compute_in_another_dtype():
    engine = NativeEngine(building.load()[0], "float32")
    with pytest.raises(ValueError, match="in mixed_bfloat16, not in float32"):
        engine.response_states(None, None, None, None, None)


def test_a_rollout_that_cannot_be_had_is_refused_before_a_language_model_is_trained(monkeypatch, tmp_path):
    monkeypatch.setattr(building, "load", lambda: (object(), None))  # built for a processor without AVX512_BF16
    sampling, ppo = SamplingConfig(native=True), PpoConfig(rollout_dtype="mixed_bfloat16", update_dtype="float32")
    with pytest.raises(UserError, match="sampling.native is True in mixed_bfloat16, but this processor has no AVX512"):
        check_ppo(Config(sampling=sampling, ppo=ppo), tmp_path)


def test_on_a_gpu_xla_computes_and_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: ["GPU:0"])
    computation = chosen()
    assert names(computation) == [["XLA"], ["XLA"], ["XLA"]]
    parts = (computation.sampling, computation.scoring, computation.update)
    assert all(part.engine.fixed_shapes for part in parts)
    assert all("one program for all lengths, as on every GPU" in part.reason for part in parts)
    assert "there is a GPU" in computation.sampling.reason and "there is a GPU" in computation.update.reason


def test_on_a_gpu_a_plain_graph_can_be_had_and_cuts_its_batches(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: ["GPU:0"])
    computation = chosen({"jit_compile": False}, {"jit_compile": False})
    assert names(computation) == [["graph"], ["graph"], ["graph"]]
    assert not computation.sampling.engine.fixed_shapes and not computation.update.engine.fixed_shapes


def test_on_a_cpu_no_engine_has_fixed_shapes():
    for settings in ({}, {"native": False}, {"jit_compile": True}):
        computation = chosen(settings, settings)
        engines = [*computation.sampling.engines, computation.scoring.engine, computation.update.engine]
        assert not any(engine.fixed_shapes for engine in engines)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"trainable_blocks": 1}, "ppo.trainable_blocks wants some"),
        ({"gradient_checkpointing": True}, "as ppo.gradient_checkpointing asks"),
        ({"jit_compile": True}, "ppo.jit_compile asks for XLA"),
        ({"native": False}, "ppo.native is False"),
    ],
)
def test_a_setting_that_cpp_does_not_know_is_the_reason(changes, reason):
    update = chosen(ppo=changes).update
    assert update.engine.name != "C++" and reason in update.reason


@pytest.mark.parametrize(
    ("ppo", "tolerance"),
    [
        ({"update_dtype": "float32"}, 1e-3),
        ({"update_dtype": "float32", "rollout_dtype": "mixed_bfloat16"}, 0.284),
        ({"update_dtype": "mixed_bfloat16", "rollout_dtype": "float32"}, 0.284),
        ({}, 0.284),
    ],
)
def test_the_ratio_may_be_off_by_what_the_narrowest_dtype_rounds(ppo, tolerance):
    assert chosen(ppo).ratio_tolerance == pytest.approx(tolerance, rel=2e-3)


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU, as far as the choice can see."""
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: ["GPU:0"])
    allowed = tf.config.experimental.tensor_float_32_execution_enabled()
    yield
    devices.round_products(tensorfloat32=allowed)


@pytest.mark.parametrize(
    ("tensorfloat32", "ppo", "tolerance"),
    [
        (False, {"update_dtype": "float32"}, 1e-3),
        (True, {"update_dtype": "float32"}, 0.0645),  # exp(4 * 16 * 2^-10) - 1
        (True, {"update_dtype": "mixed_bfloat16"}, 0.284),  # exp(4 * 16 * 2^-8) - 1
    ],
)
def test_on_a_gpu_it_may_be_off_by_tensorfloat32_where_that_is_asked_for(gpu, tensorfloat32, ppo, tolerance):
    devices.round_products(tensorfloat32=tensorfloat32)
    assert chosen(ppo).ratio_tolerance == pytest.approx(tolerance, rel=2e-3)


def test_on_a_gpu_rollouts_reference_and_update_have_one_dtype(gpu):
    computation = chosen()
    parts = (computation.sampling, computation.scoring, computation.update)
    assert [part.engine.dtype for part in parts] == ["mixed_bfloat16"] * 3
    assert [part.engine.dtype for part in vars(chosen(width=128)).values()] == ["float32"] * 3
    assert chosen(ppo={"rollout_dtype": "float32"}).sampling.engine.dtype == "float32"

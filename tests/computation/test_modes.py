"""Whether XLA compiles sampling: chosen by the clock, kept for the machine, and the same in all of a run.

The times are made up by `seconds_of`, which the tests replace; the samplers that it calls are real.
"""

import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from computations import build_sampler

from tfppo.computation import modes
from tfppo.config import SamplingConfig
from tfppo.data.prompts import pad_left
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.ops.seeds import seed_for
from tfppo.training.replicas import make_strategy

XLA, PLAIN = True, False
FASTER_XLA, FASTER_PLAIN = {XLA: 1.0, PLAIN: 2.0}, {XLA: 2.0, PLAIN: 1.0}


@pytest.fixture(autouse=True)
def file(monkeypatch, tmp_path):
    """Where modes are kept: nothing is there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tfppo" / "modes.json"


@pytest.fixture
def clock(monkeypatch):
    """`seconds` of each mode, for a test to set, and `timed`, the modes of all timed calls."""
    clock = SimpleNamespace(seconds=FASTER_PLAIN, timed=[])

    def seconds_of(run, mode):
        run(mode)
        clock.timed.append(mode)
        return clock.seconds[mode]

    monkeypatch.setattr(modes, "seconds_of", seconds_of)
    return clock


@pytest.mark.parametrize("rule", [XLA, PLAIN])
@pytest.mark.parametrize(
    ("rules", "others", "other_wins"),
    [(1.0, 0.5, True), (1.0, 0.9, True), (1.0, 0.91, False), (1.0, 1.0, False), (1.0, 3.0, False), (0.02, 0.017, True)],
)
def test_the_other_mode_has_to_save_a_tenth(rule, rules, others, other_wins):
    assert modes.choose(rule, {rule: rules, not rule: others}) is (not rule if other_wins else rule)


class TestMeasure:
    def test_the_fastest_call_counts_and_the_first_does_not(self, monkeypatch):
        calls, seconds = [], iter([5.0, 0.3, 4.0, 0.2, 6.0, 0.9])
        monkeypatch.setattr(modes, "seconds_of", lambda run, mode: (run(mode), next(seconds))[1])
        assert modes.measure(XLA, calls.append) == {XLA: 4.0, PLAIN: 0.2}
        assert calls == [XLA, PLAIN] * 4

    def test_seconds_are_those_of_the_call(self, monkeypatch):
        now = iter([10.0, 12.5])
        monkeypatch.setattr(modes.time, "perf_counter", lambda: next(now))
        assert modes.seconds_of(lambda mode: None, XLA) == 2.5

    @pytest.mark.parametrize("fails_at", [1, 3])
    def test_a_mode_that_fails_is_not_taken_and_nothing_is_kept(self, file, fails_at):
        calls = []

        def run(mode):
            calls.append(mode)
            if calls.count(PLAIN) == fails_at:
                raise tf.errors.ResourceExhaustedError(None, None, "out of memory")

        assert modes.resolve_mode("a key", XLA, run) is XLA
        assert calls.count(PLAIN) == fails_at and not file.exists()

    def test_what_fails_by_the_rule_is_told(self):
        def run(mode):
            raise tf.errors.InvalidArgumentError(None, None, "no such position")

        with pytest.raises(tf.errors.InvalidArgumentError, match="no such position"):
            modes.measure(XLA, run)


class TestFile:
    def test_what_is_kept_is_found_by_its_key_alone(self, file):
        assert modes.kept_mode("a") is None
        modes.keep_mode("a", True)
        modes.keep_mode("b", False)
        assert (modes.kept_mode("a"), modes.kept_mode("b"), modes.kept_mode("c")) == (True, False, None)
        modes.keep_mode("a", False)
        assert json.loads(file.read_text()) == {"a": False, "b": False}
        assert [path.name for path in file.parent.iterdir()] == ["modes.json"]

    @pytest.mark.parametrize("content", [b"", b'{"a": tr', b"[true]", b'{"a": 1, "b": "true"}', b"\xff\xfe"])
    def test_what_cannot_be_read_counts_as_missing_and_is_replaced(self, file, content):
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
        assert modes.kept_mode("a") is None
        modes.keep_mode("a", True)
        assert modes.kept_mode("a") is True

    def test_a_folder_that_cannot_be_written_keeps_nothing(self, file, clock):
        file.parent.parent.write_text("a file where the folder would be")
        assert modes.resolve_mode("a", XLA, lambda mode: None) is PLAIN
        assert modes.kept_mode("a") is None

    def test_no_home_folder_keeps_nothing(self, monkeypatch, clock):
        def no_home():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(modes.Path, "home", no_home)
        assert modes.resolve_mode("a", XLA, lambda mode: None) is PLAIN

    def test_a_kept_mode_is_not_measured(self, clock):
        modes.keep_mode("a", XLA)
        assert modes.resolve_mode("a", PLAIN, clock.timed.append) is XLA and clock.timed == []
        assert modes.resolve_mode("b", PLAIN, lambda mode: None) is PLAIN and clock.timed != []


def test_a_key_names_devices_version_and_every_fact(monkeypatch):
    key = modes.mode_key(batch_size=8, dtype="float32")
    assert key == modes.mode_key(dtype="float32", batch_size=8) != modes.mode_key(dtype="float32", batch_size=16)
    assert f"devices={modes.describe_devices()}" in key and f"tensorflow={tf.__version__}" in key
    monkeypatch.setattr(modes, "processor", lambda: "another one")
    assert modes.mode_key(batch_size=8, dtype="float32") != key
    details = {"one": {"device_name": "A100"}, "two": {}}
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: list(details))
    monkeypatch.setattr(tf.config.experimental, "get_device_details", details.get)
    assert modes.describe_devices() == "A100 + GPU"


BATCH, PROMPT, RESPONSE = 4, 5, 6


@pytest.fixture(scope="module")
def policy():
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    model = LanguageModel(40, 1, 2, 8, 16, 12)
    model.set_weights([w + rng.normal(0.0, 0.3, w.shape) for w in model.get_weights()])
    return Policy(model)


def make_sampler(policy, jit_compile=None, measures=True, **changes):
    sampling = SamplingConfig(response_length=RESPONSE, native=False, jit_compile=jit_compile, **changes)
    return build_sampler(policy, sampling, eos_id=1, pad_id=0, strategy=make_strategy(1), measures=measures)


def sample(sampler, batch=BATCH, number=0):
    prompts = pad_left([[1, 2 + row, 3 + row] for row in range(batch)], 0, PROMPT)
    return [np.asarray(part) for part in sampler(prompts, seed_for(0, "sample", number))]


def traces(sampler):
    """Traces of each mode, 0 for one that the sampler does not have."""
    counts = {name: function.experimental_get_tracing_count() for name, function in sampler.functions.items()}
    return {XLA: counts.get("XLA", 0), PLAIN: counts.get("graph", 0)}


def mode_of(sampler):
    """Whether XLA compiles the sampling; None before a first call that measures."""
    return None if sampler.engine is None else sampler.engine.compiled


def assert_same_samples(first, second):
    for part, expected in zip(first, second, strict=True):
        np.testing.assert_array_equal(part, expected)


def test_the_first_call_measures_and_later_ones_and_other_samplers_do_not(policy, clock, file):
    sampler, told = make_sampler(policy), make_sampler(policy, jit_compile=PLAIN)
    assert mode_of(sampler) is None and sampler.state == {"sampling_compiled": -1.0}
    samples = sample(sampler)
    assert mode_of(sampler) is PLAIN and sampler.engine.name == "graph" and sampler.state == {"sampling_compiled": 0.0}
    assert traces(sampler) == {XLA: 1, PLAIN: 1}
    assert clock.timed == [XLA, PLAIN] * 3
    assert_same_samples(samples, sample(told))
    assert_same_samples(sample(sampler, number=1), sample(told, number=1))
    assert len(json.loads(file.read_text())) == 1
    clock.seconds = FASTER_XLA
    other = make_sampler(policy)
    sample(other)
    assert mode_of(other) is PLAIN and traces(other) == {XLA: 0, PLAIN: 1}
    assert traces(sampler) == {XLA: 1, PLAIN: 1} and len(clock.timed) == 6
    wider = make_sampler(policy)  # of another batch nothing is known
    assert_same_samples(sample(wider, batch=BATCH + 1), sample(wider, batch=BATCH + 1))
    assert mode_of(wider) is XLA and len(clock.timed) == 12 and len(json.loads(file.read_text())) == 2


@pytest.mark.parametrize("settings", [{"jit_compile": True}, {"jit_compile": False}, {"measures": False}])
def test_who_says_what_to_do_or_calls_rarely_has_one_mode(policy, settings):
    sampler, expected = make_sampler(policy, **settings), settings.get("jit_compile", True)
    assert mode_of(sampler) is expected and sampler.engine.name == ("XLA" if expected else "graph")
    sampler.state = {"sampling_compiled": float(not expected)}  # of a run that measured
    assert mode_of(sampler) is expected and sampler.state == {"sampling_compiled": -1.0}


def test_who_calls_rarely_measures_nothing(policy, clock, file):
    sampler = make_sampler(policy, measures=False)
    sample(sampler)
    assert traces(sampler) == {XLA: 1, PLAIN: 0}
    assert clock.timed == [] and not file.exists()


def test_a_mode_that_comes_back_is_not_measured(policy, clock):
    sampler = make_sampler(policy)
    sampler.state = {"sampling_compiled": -1.0}
    assert mode_of(sampler) is None
    sampler.state = {"sampling_compiled": 0.0}  # not what the rule says
    sample(sampler)
    assert traces(sampler) == {XLA: 0, PLAIN: 1} and clock.timed == []
    assert sampler.state == {"sampling_compiled": 0.0}


def test_with_the_real_clock_the_file_has_what_the_sampler_took(policy, file):
    sampler = make_sampler(policy)
    sample(sampler)
    assert list(json.loads(file.read_text()).values()) == [mode_of(sampler)]

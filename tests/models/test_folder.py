"""Models on disk: what is saved comes back, and what is damaged is named."""

import json
import shutil
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError
from tfppo.models.folder import (
    copy_language_model,
    language_model_sizes,
    load_language_model,
    load_policy,
    read_about,
    save_model,
)
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.models.reward_model import RewardModel

IDS = np.array([[1, 70, 100, 230], [5, 4, 200, 9]], np.int32)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer([(b"t", b"h"), (b"th", b"e")])


def make_model(dtype="float32", seed=0, dropout=0.2):
    model = LanguageModel(260, 2, 2, 16, 24, 12, dropout=dropout, dtype=dtype)
    return scramble(model, seed)


def scramble(model, seed):
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(0, 0.3, weight.shape) for weight in model.weights])
    return model


def numbers(model):
    return [weight.numpy() for weight in model.weights]


def assert_same_weights(actual, expected):
    assert len(actual.weights) == len(expected)
    for a, b in zip(numbers(actual), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_that_are_not_finite_replace_nothing(tokenizer, tmp_path):
    model = make_model()
    good = numbers(model)
    save_model(model, tokenizer, tmp_path / "model")
    model.weights[3].assign(np.full(model.weights[3].shape, np.nan))
    with pytest.raises(UserError, match="the model '.*model' is not saved: its weights .* are not finite"):
        save_model(model, tokenizer, tmp_path / "model")
    assert_same_weights(load_language_model(tmp_path / "model")[0], good)


@pytest.mark.parametrize(
    ("saved_dtype", "dtype"),
    [("float32", "mixed_bfloat16"), ("mixed_bfloat16", "float32"), ("mixed_bfloat16", "mixed_bfloat16")],
)
def test_language_model_comes_back_in_the_dtype_asked_for(tokenizer, tmp_path, saved_dtype, dtype):
    model = make_model(saved_dtype)
    save_model(model, tokenizer, tmp_path / "model")
    loaded, loaded_tokenizer = load_language_model(tmp_path / "model", dtype)
    assert isinstance(loaded, LanguageModel)
    assert loaded.dtype_policy.name == loaded.trunk.blocks[1].mlp_in.dtype_policy.name == dtype
    assert {weight.dtype for weight in loaded.weights} == {"float32"}
    assert_same_weights(loaded, numbers(model))
    expected = model if dtype == saved_dtype else copy_language_model(model, dtype)
    np.testing.assert_array_equal(loaded(IDS), expected(IDS))
    assert loaded.trunk.dropout == 0.2
    assert loaded_tokenizer.decode([257 + 2, 1]) == "the"
    assert loaded_tokenizer.encode("the") == tokenizer.encode("the") == [259]


def test_the_dtype_is_float32_where_none_is_asked_for(tokenizer, tmp_path):
    save_model(make_model("mixed_bfloat16"), tokenizer, tmp_path / "model")
    assert load_language_model(tmp_path / "model")[0].compute_dtype == "float32"
    assert load_policy(str(tmp_path / "model"))[0].compute_dtype == "float32"


# Each two of the values are together once.
@pytest.mark.parametrize(
    ("separate_critic", "mlp_value_head", "dtype"),
    [
        (False, False, "float32"),
        (False, True, "mixed_bfloat16"),
        (True, False, "mixed_bfloat16"),
        (True, True, "float32"),
    ],
)
def test_policy_comes_back(tokenizer, tmp_path, separate_critic, mlp_value_head, dtype):
    policy = scramble(Policy(make_model(), separate_critic, mlp_value_head), seed=4)
    save_model(policy, tokenizer, tmp_path / "policy")
    loaded, _ = load_policy(tmp_path / "policy", dtype)
    assert isinstance(loaded, Policy) and loaded.separate_critic == separate_critic
    assert loaded.mlp_value_head == mlp_value_head
    assert {weight.dtype for weight in loaded.weights} == {"float32"}
    assert loaded.compute_dtype == loaded.language_model.compute_dtype == keras.DTypePolicy(dtype).compute_dtype
    assert_same_weights(loaded, numbers(policy))
    if dtype == "float32":
        for actual, expected in zip(loaded(IDS), policy(IDS), strict=True):
            np.testing.assert_array_equal(actual, expected)
        assert np.abs(loaded(IDS)[1]).max() > 0.1

    actor, _ = load_language_model(tmp_path / "policy")
    assert type(actor) is LanguageModel
    np.testing.assert_array_equal(actor(IDS), policy(IDS)[0])


def test_a_policy_from_before_there_were_mlp_heads_comes_back(tokenizer, tmp_path):
    policy, file = scramble(Policy(make_model()), seed=4), tmp_path / "policy" / "model.keras"
    save_model(policy, tokenizer, tmp_path / "policy")
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    del config["config"]["mlp_value_head"]
    parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    loaded, _ = load_policy(tmp_path / "policy")
    assert_same_weights(loaded, numbers(policy))
    np.testing.assert_array_equal(loaded(IDS)[1], policy(IDS)[1])


def test_a_language_model_becomes_a_policy_of_value_0(tokenizer, tmp_path):
    model = make_model()
    save_model(model, tokenizer, tmp_path / "model")
    logits, values = load_policy(tmp_path / "model")[0](IDS)
    np.testing.assert_array_equal(logits, model(IDS))
    np.testing.assert_array_equal(values, np.zeros([2, 4]))


def test_a_copy_shares_nothing():
    model = make_model()
    before, copy = numbers(model), copy_language_model(model, "float32")
    scramble(copy, seed=9)
    assert_same_weights(model, before)
    assert np.abs(copy(IDS) - model(IDS)).max() > 0.1


def test_what_is_said_of_a_model_is_replaced_with_it(tokenizer, tmp_path):
    model = LanguageModel(tokenizer.vocabulary_size, 1, 2, 8, 16, 8)
    assert read_about(tmp_path / "model") == {}
    for about in ({"iteration": 16, "score": 0.5}, {"iteration": 32}):
        save_model(model, tokenizer, tmp_path / "model", about)
        assert read_about(tmp_path / "model") == about
    save_model(model, tokenizer, tmp_path / "model")
    assert read_about(tmp_path / "model") == {}


def test_saving_replaces_the_folder_whole(tokenizer, tmp_path):
    folder = tmp_path / "deep" / "model"
    save_model(make_model(seed=1), tokenizer, folder)
    (folder / "left over").write_text("from the first")
    (tmp_path / "deep" / "model.saving").mkdir()
    (tmp_path / "deep" / "model.saving" / "half").write_text("of a run that was killed")
    second = make_model(seed=2)
    save_model(second, Tokenizer([(b"a", b"b"), (b"ab", b"c")]), folder)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model"]
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == ["model.keras", "tokenizer/merges.txt", "tokenizer/vocabulary.json"]
    loaded, loaded_tokenizer = load_language_model(folder)
    assert_same_weights(loaded, numbers(second))
    assert loaded_tokenizer.decode([259]) == "abc"


@pytest.fixture(scope="module")
def whole_folder(tokenizer, tmp_path_factory):
    """Of a saved model; tests damage copies of it."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    save_model(make_model(), tokenizer, folder)
    return folder


@pytest.mark.parametrize("load", [load_language_model, load_policy])
class TestDamage:
    @pytest.fixture
    def folder(self, whole_folder, tmp_path):
        return shutil.copytree(whole_folder, tmp_path / "model")

    def test_no_folder(self, load, tmp_path):
        with pytest.raises(UserError, match="there is no model in .*nowhere.*model.keras is missing"):
            load(tmp_path / "nowhere")

    def test_no_model_file(self, load, folder):
        (folder / "model.keras").unlink()
        with pytest.raises(UserError, match="model.keras is missing"):
            load(folder)

    @pytest.mark.parametrize("content", [b"", b"not a model"])
    def test_no_model(self, load, folder, content):
        (folder / "model.keras").write_bytes(content)
        with pytest.raises(UserError, match="model.keras.* cannot be read as a tfppo model"):
            load(folder)

    def test_cut_off(self, load, folder):
        content = (folder / "model.keras").read_bytes()
        (folder / "model.keras").write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError, match="cannot be read as a tfppo model"):
            load(folder)

    @pytest.mark.parametrize("at", [0.3, 0.6])
    def test_overwritten_in_the_middle(self, load, folder, at):
        content = bytearray((folder / "model.keras").read_bytes())
        start = int(at * len(content))
        content[start : start + 2000] = bytes(2000)
        (folder / "model.keras").write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as a tfppo model"):
            load(folder)

    @pytest.mark.parametrize("damage", ["json", "sizes", "field"])
    def test_config(self, load, folder, damage):
        with zipfile.ZipFile(folder / "model.keras") as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        config = json.loads(parts["config.json"])
        if damage == "sizes":
            config["config"]["hidden_dim"] = 32
        if damage == "field":
            config["config"]["no_such_field"] = 1
        parts["config.json"] = b"{" if damage == "json" else json.dumps(config).encode()
        with zipfile.ZipFile(folder / "model.keras", "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, content)
        with pytest.raises(UserError, match="cannot be read as a tfppo model"):
            load(folder)

    def test_a_model_of_another_kind(self, load, folder):
        other = keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])
        other.save(folder / "model.keras")
        with pytest.raises(UserError, match="model.keras.* cannot be read as a tfppo model"):
            load(folder)

    def test_the_tokenizer_of_another_model(self, load, folder):
        Tokenizer([(b"a", b"b")]).save(folder / "tokenizer")
        with pytest.raises(UserError, match="holds a model of 260 tokens and a tokenizer of 259"):
            load(folder)

    def test_no_tokenizer(self, load, folder):
        (folder / "tokenizer" / "merges.txt").unlink()
        with pytest.raises(UserError, match="merges.txt"):
            load(folder)

    def test_damaged_tokenizer(self, load, folder):
        (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\nt\n")
        with pytest.raises(UserError, match="merges.txt is damaged"):
            load(folder)


def test_a_loaded_model_runs_in_a_graph(tokenizer, tmp_path):
    save_model(make_model(), tokenizer, tmp_path / "model")
    loaded, _ = load_language_model(tmp_path / "model")
    graph = tf.function(lambda ids: loaded(ids), input_signature=[tf.TensorSpec([None, None], tf.int32)])
    np.testing.assert_allclose(graph(IDS), loaded(IDS), rtol=1e-5, atol=1e-5)


def test_sizes_are_known_without_loading(tokenizer, tmp_path):
    model = make_model()
    for name, saved in (("lm", model), ("policy", Policy(model, separate_critic=True))):
        save_model(saved, tokenizer, tmp_path / name)
        sizes = language_model_sizes(tmp_path / name)
        assert {size: sizes[size] for size in model.trunk.sizes} == model.trunk.sizes
    save_model(RewardModel.from_language_model(model), tokenizer, tmp_path / "reward")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "model.keras").write_text("no archive")
    assert [language_model_sizes(tmp_path / name) for name in ("reward", "damaged", "nothing")] == [None] * 3

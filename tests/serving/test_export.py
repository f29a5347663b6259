"""The SavedModel: loaded by a process that knows TensorFlow alone, and compared with the policy in Python."""

import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tfppo.computation.graph import GraphEngine
from tfppo.config import SamplingConfig
from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.ppo.drawing import draw_uniforms
from tfppo.ppo.sampling import sample
from tfppo.serving import export
from tfppo.serving.export import export_policy

POSITIONS, RESPONSE, TEMPERATURE = 24, 8, 0.8
TEXTS = ["the film was good and the book was better", "a bad film is a bad evening, and a long one"] * 3
LONG = "".join(f"the film number {number} was good " for number in range(400))[:10_000]
OTHERS = ("9", "7", "not a version", "saving-3")
PROMPTS = ["the film", "", LONG, "a<|endoftext|>b<|pad|>", "née 🙂", "the film"]
SEEDS = [3, 4, 5, -6, 2**40, 3]
SCORED = [("the film", " was good"), ("", "a"), (LONG, "bad"), ("the", ""), ("x<|pad|>", "<|endoftext|>")]

# What the other process does: it imports nothing but TensorFlow, and answers with a pickle.
CLIENT = """
import pickle, sys
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
calls = pickle.load(open(sys.argv[2], "rb"))
answers = []
for name, arguments in calls:
    arguments = {key: tf.constant(value, dtype, shape=[len(value)]) for key, (value, dtype) in arguments.items()}
    try:
        outputs = model.signatures[name](**arguments)
        answers.append({key: value.numpy() for key, value in outputs.items()})
    except tf.errors.OpError as error:
        answers.append((type(error).__name__, str(error)))
strangers = [name for name in ("tfppo", "keras_hub", "tensorflow_text", "tokenizers") if name in sys.modules]
pickle.dump((sorted(model.signatures), strangers, answers), open(sys.argv[3], "wb"))
"""


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 300)


@pytest.fixture(scope="module")
def policy(tokenizer):
    policy = Policy(
        LanguageModel(tokenizer.vocabulary_size, 2, 2, 16, 32, POSITIONS), separate_critic=True, mlp_value_head=True
    )
    rng = np.random.default_rng(0)
    policy.set_weights([rng.normal(0, 0.4, weight.shape) for weight in policy.weights])
    embedding = policy.language_model.trunk.token_embedding
    embedding[1].assign(embedding[1] + 0.5 * policy.language_model.trunk.final_norm.beta)  # so that some texts end
    return policy


@pytest.fixture(scope="module")
def base(policy, tokenizer, tmp_path_factory):
    """A folder with earlier versions and other things, and the policy as its version 10."""
    base = tmp_path_factory.mktemp("export")
    for name in OTHERS:
        (base / name).mkdir()
    sampling = SamplingConfig(response_length=RESPONSE, temperature=TEMPERATURE, stop_at_eos=True)
    assert export_policy(policy, tokenizer, sampling, str(base)) == base / "10"
    return base


def strings(*values):
    return [value if isinstance(value, bytes) else value.encode() for value in values], "string"


CALLS = {
    "default": ("serving_default", {"prompt": strings("the", "a")}),
    "none": ("generate", {"prompt": strings()}),
    "one": ("generate", {"prompt": strings("the film")}),
    "three": ("generate", {"prompt": strings("the film", "", "a bad")}),
    "odd": ("generate", {"prompt": strings(LONG, "a<|endoftext|>b", b"\xff\xfe caf\xe9 \x00", "")}),
    "many": ("generate", {"prompt": strings(*["the"] * 20)}),
    "many again": ("generate", {"prompt": strings(*["the"] * 20)}),
    "seeded": ("generate_seeded", {"prompt": strings(*PROMPTS), "seed": (SEEDS, "int64")}),
    "seeded again": ("generate_seeded", {"prompt": strings(*PROMPTS[::-1]), "seed": (SEEDS[::-1], "int64")}),
    "seeded none": ("generate_seeded", {"prompt": strings(), "seed": ([], "int64")}),
    "other seeds": ("generate_seeded", {"prompt": strings(*["the"] * 20), "seed": (list(range(20)), "int64")}),
    "score": ("score", {"prompt": strings(*(p for p, _ in SCORED)), "response": strings(*(r for _, r in SCORED))}),
    "score one empty": ("score", {"prompt": strings("the"), "response": strings("")}),
    "score none": ("score", {"prompt": strings(), "response": strings()}),
    "longest": ("score", {"prompt": strings("the"), "response": strings("\x01" * (POSITIONS - 1))}),
    "too long": ("score", {"prompt": strings("the"), "response": strings("\x01" * POSITIONS)}),
}


@pytest.fixture(scope="module")
def served(base, tmp_path_factory):
    """The answers of the process that serves, by the name of the call."""
    folder = tmp_path_factory.mktemp("served")
    calls, answers = folder / "calls", folder / "answers"
    calls.write_bytes(pickle.dumps(list(CALLS.values())))
    command = [sys.executable, "-I", "-c", CLIENT, base / "10", calls, answers]
    process = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-3000:]
    names, strangers, results = pickle.loads(answers.read_bytes())
    return dict(zip(CALLS, results, strict=True)) | {"signatures": names, "strangers": strangers}


def saved_graphs(folder):
    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    (meta_graph,) = saved.meta_graphs
    return meta_graph


def xla_traces(meta_graph):
    """Every op that only XLA has, and every function or node that must be compiled."""
    library = meta_graph.graph_def.library.function
    nodes = [*meta_graph.graph_def.node, *(node for function in library for node in function.node_def)]
    assert len(nodes) > 0
    compiled = [
        part for part in (*nodes, *library) if "_XlaMustCompile" in part.attr and part.attr["_XlaMustCompile"].b
    ]
    return [node.op for node in nodes if node.op.startswith("Xla")] + [str(part)[:80] for part in compiled]


def test_nothing_needs_xla(base):
    meta_graph = saved_graphs(base / "10")
    assert xla_traces(meta_graph) == []
    ops = {node.op for function in meta_graph.graph_def.library.function for node in function.node_def}
    assert {"MatMul", "While", "TensorScatterUpdate"} & ops  # the search looked where the ops are


def test_the_search_for_xla_finds_it(tmp_path):
    module = tf.Module()
    module.call = tf.function(lambda x: x + 1, jit_compile=True, input_signature=[tf.TensorSpec([None])])
    tf.saved_model.save(module, str(tmp_path / "jit"))
    assert xla_traces(saved_graphs(tmp_path / "jit"))


def test_signatures(base):
    def described(tensors):
        return {
            name: (tf.as_dtype(info.dtype).name, [dim.size for dim in info.tensor_shape.dim])
            for name, info in tensors.items()
        }

    signatures = {
        name: (described(signature.inputs), described(signature.outputs))
        for name, signature in saved_graphs(base / "10").signature_def.items()
        if not name.startswith("__saved_model")
    }
    text, completion = ("string", [-1]), {"completion": ("string", [-1]), "num_tokens": ("int32", [-1])}
    rows = ("float32", [-1, -1])
    assert signatures == {
        "serving_default": ({"prompt": text}, completion),
        "generate": ({"prompt": text}, completion),
        "generate_seeded": ({"prompt": text, "seed": ("int64", [-1])}, completion),
        "score": (
            {"prompt": text, "response": text},
            {"token_ids": ("int32", [-1, -1]), "mask": rows, "logprobs": rows, "values": rows},
        ),
    }


def test_a_process_without_this_package_can_serve_it(served):
    assert served["strangers"] == []
    assert served["signatures"] == ["generate", "generate_seeded", "score", "serving_default"]


@pytest.mark.parametrize("call, size", [("default", 2), ("none", 0), ("one", 1), ("three", 3), ("odd", 4)])
def test_generate(served, call, size):
    answer = served[call]
    assert answer["completion"].shape == answer["num_tokens"].shape == (size,)
    assert all(1 <= count <= RESPONSE for count in answer["num_tokens"])
    for text in answer["completion"]:
        text.decode("utf-8")  # raises for what is not UTF-8


def test_generate_is_random(served):
    first, second = (served[call]["completion"].tolist() for call in ("many", "many again"))
    assert len(set(first)) > 10 and first != second


def python_side(policy, tokenizer, prompt, seed):
    """Completion and number of tokens of one prompt, through the tokenizer's Python side."""
    ids = [tokenizer.eos_id, *tokenizer.encode(prompt)[-(POSITIONS - RESPONSE - 1) :]]
    uniforms = draw_uniforms(tf.constant([seed, 0], tf.int64), 1, RESPONSE)
    samples = sample(
        policy,
        tf.constant([ids]),
        tf.ones([1, len(ids)], tf.int32),
        uniforms,
        engine=GraphEngine("float32", compiled=False),
        stop_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        temperature=TEMPERATURE,
    )
    count = int(samples.response_mask.numpy().sum())
    return tokenizer.decode(samples.response_ids[0, :count]), count


def test_generate_seeded_equals_the_sampler(served, policy, tokenizer):
    answer = served["seeded"]
    expected = [python_side(policy, tokenizer, *pair) for pair in zip(PROMPTS, SEEDS, strict=True)]
    texts = [text.decode("utf-8") for text in answer["completion"]]
    assert list(zip(texts, answer["num_tokens"].tolist(), strict=True)) == expected


def test_generate_seeded_depends_on_prompt_and_seed_alone(served):
    texts = served["seeded"]["completion"].tolist()
    assert texts[0] == texts[-1]
    assert served["seeded again"]["completion"].tolist() == texts[::-1]
    assert len(set(served["other seeds"]["completion"].tolist())) > 10
    assert served["seeded none"]["completion"].shape == (0,)


def test_score_equals_the_full_forward(served, policy, tokenizer):
    answer = served["score"]
    longest = max(len(tokenizer.encode(response)) for _, response in SCORED)
    assert all(part.shape == (len(SCORED), longest) for part in answer.values())
    for row, (prompt, response) in enumerate(SCORED):
        ids = tokenizer.encode(response)
        count = len(ids)
        text = [tokenizer.eos_id, *tokenizer.encode(prompt)[-(POSITIONS - longest - 1) :], *ids]
        logits, values = policy(np.array([text]))
        states = slice(len(text) - count - 1, len(text) - 1)
        logits = np.asarray(logits[0, states], np.float64) / TEMPERATURE
        logprobs = logits[np.arange(count), ids] - np.log(np.exp(logits).sum(-1))
        assert answer["token_ids"][row].tolist() == [*ids, *[tokenizer.pad_id] * (longest - count)]
        assert answer["mask"][row].tolist() == [1.0] * count + [0.0] * (longest - count)
        np.testing.assert_allclose(answer["logprobs"][row, :count], logprobs, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(answer["values"][row, :count], values[0, states], rtol=1e-5, atol=1e-5)
        assert not answer["logprobs"][row, count:].any() and not answer["values"][row, count:].any()


def test_score_of_nothing(served):
    for name, size in (("score one empty", 1), ("score none", 0)):
        answer = served[name]
        assert answer["mask"].shape == answer["logprobs"].shape == (size, 1)
        assert not answer["mask"].any() and not answer["logprobs"].any() and not answer["values"].any()


def test_a_response_may_fill_all_but_one_position_and_no_more(served):
    assert served["longest"]["mask"].tolist() == [[1.0] * (POSITIONS - 1)]
    kind, message = served["too long"]
    assert kind == "InvalidArgumentError"
    assert f"share {POSITIONS} positions" in message


def test_versions_count_on_from_the_highest(base):
    assert (base / "10" / "saved_model.pb").is_file()
    assert sorted(path.name for path in base.iterdir()) == sorted({"10", *OTHERS} - {"saving-3"})  # of a killed export


def test_exports_at_the_same_time_get_versions_of_their_own(tmp_path):
    """The moment in which a folder gets its number, as 8 processes have it: none replaces another."""

    def take(number):
        fresh = tmp_path / f"saving-{number}" / "model"
        fresh.mkdir(parents=True)
        (fresh / "saved_model.pb").write_text(str(number))
        together.wait()
        return export._take_next_version(fresh, tmp_path)

    together = threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(take, range(64)))
    assert sorted(int(version.name) for version in versions) == list(range(1, 65))
    assert [(version / "saved_model.pb").read_text() for version in versions] == [str(number) for number in range(64)]


@pytest.mark.parametrize("name", ["2", "3"])
def test_the_number_of_another_process_is_passed_over(tmp_path, monkeypatch, name):
    """Another one takes the number between the look and the rename: the rename does not replace it."""
    fresh = tmp_path / "saving-1" / "model"
    fresh.mkdir(parents=True)
    (tmp_path / "1").mkdir()
    rename, taken = os.rename, []

    def overtaken(source, target):
        if not taken:
            taken.append(target)
            (tmp_path / name).mkdir()
            (tmp_path / name / "saved_model.pb").write_text("another's")
        rename(source, target)

    monkeypatch.setattr(os, "rename", overtaken)
    assert export._take_next_version(fresh, tmp_path).name == {"2": "3", "3": "2"}[name]
    assert (tmp_path / name / "saved_model.pb").read_text() == "another's"


def test_a_full_disk_is_one_line_and_no_version(policy, tokenizer, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise tf.errors.ResourceExhaustedError(None, None, "saving/variables; No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", full)
    with pytest.raises(UserError, match="the SavedModel in .* cannot be written: No space left on device; free some"):
        export_policy(policy, tokenizer, SamplingConfig(response_length=2), tmp_path / "deep" / "export")
    assert list((tmp_path / "deep" / "export").iterdir()) == []


@pytest.mark.parametrize("length", [POSITIONS, POSITIONS + 1])
def test_a_response_length_without_room_for_a_prompt_is_named(policy, tokenizer, tmp_path, length):
    with pytest.raises(UserError, match=f"sampling.response_length is {length}; .* at most {POSITIONS - 1}"):
        export_policy(policy, tokenizer, SamplingConfig(response_length=length), tmp_path / "policy")
    assert not (tmp_path / "policy" / "1").exists()

"""Sources of examples: text files, JSON lines, and any prepared TFDS dataset."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tfppo.data import report
from tfppo.data.shapes import Example
from tfppo.data.sources import load_examples
from tfppo.data.splits import SPLITS, cut_splits, split_of
from tfppo.errors import UserError


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def write_jsonl(path, records):
    return write(path, "\n".join(json.dumps(record) for record in records))


def load_all(source, **options):
    return {split: load_examples(source, split, **options) for split in SPLITS}


class Questions(tfds.core.GeneratorBasedBuilder):
    """Has train and test, no validation; strings, a label and a list."""

    VERSION = tfds.core.Version("1.0.0")
    SIZES = {"train": 200, "test": 7}

    def _info(self):
        features = {
            "question": tfds.features.Text(),
            "answer": tfds.features.Tensor(shape=(), dtype=tf.string),
            "label": tfds.features.ClassLabel(num_classes=2),
            "words": tfds.features.Sequence(tfds.features.Text()),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.SIZES}

    def _generate_examples(self, split):
        for n in range(self.SIZES[split]):
            answer = b"\xff" if (split, n) == ("test", 3) else f"{split} answer {n}"
            question = f"{split} question {n}"
            yield n, {"question": question, "answer": answer, "label": n % 2, "words": ["a"]}


@pytest.fixture(scope="module")
def questions_dir(tmp_path_factory):
    data_dir = str(tmp_path_factory.mktemp("tfds"))
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    Questions(data_dir=data_dir).download_and_prepare(download_config=config)
    return data_dir


@pytest.fixture
def load_questions(questions_dir):
    def load(split, **options):
        names = {"text_feature": "question", **options}
        return load_examples("tfds:questions", split, data_dir=questions_dir, **names)

    return load


def test_txt_has_a_text_a_line(tmp_path):
    content = b"\xef\xbb\xbffirst line\r\n\r\n  second clich\xc3\xa9 \n   \nthird"
    splits = load_all(write(tmp_path / "a.txt", content))
    assert {example for examples in splits.values() for example in examples} == {
        Example(text="first line"),
        Example(text="second cliché"),
        Example(text="third"),
    }
    assert [len(splits[split]) for split in SPLITS] == [1, 1, 1]


def test_splits_are_disjoint_and_about_90_5_5(tmp_path):
    lines = [f"text {n % 4000}" for n in range(5000)]
    splits = load_all(write(tmp_path / "a.txt", "\n".join(lines)))
    texts = {split: {example.text for example in splits[split]} for split in SPLITS}
    assert sum(map(len, splits.values())) == 5000
    assert sum(map(len, texts.values())) == 4000
    assert set.union(*texts.values()) == set(lines)
    # Four standard deviations of a binomial count around 3600, 200 and 200.
    assert abs(len(texts["train"]) - 3600) < 76
    assert abs(len(texts["validation"]) - 200) < 56 and abs(len(texts["test"]) - 200) < 56
    assert all(split_of(text) == split for split in SPLITS for text in texts[split])
    assert [example.text for example in splits["test"]] == [line for line in lines if split_of(line) == "test"]


@pytest.mark.parametrize("count", [3, 4, 10])
def test_small_sets_fill_every_split_in_any_order(count):
    for first in range(0, 400, 7):
        keys = [f"text {n}" for n in range(first, first + count)]
        cut = cut_splits(keys)
        assert set(cut) == set(keys) and set(cut.values()) == set(SPLITS)
        assert cut == cut_splits(keys[::-1] + keys)


def test_one_or_two_texts_go_to_train_first(tmp_path):
    for n in range(100):  # among so many there are texts of each split by hash
        assert cut_splits([f"text {n}"]) == {f"text {n}": "train"}
        assert "train" in cut_splits([f"text {n}", "other"]).values()
    source = write(tmp_path / "a.txt", "only one\nonly one")
    assert load_examples(source, "train") == [Example(text="only one")] * 2
    with pytest.raises(UserError, match="no examples for split 'test': .*3 different texts"):
        load_examples(source, "test")


def test_cut_keeps_in_train_what_is_not_held_out():
    keys = [f"text {n}" for n in range(300)]
    assert {split_of(key) for key in keys} == set(SPLITS)
    cut = cut_splits(keys, held_out=("test",))
    assert all((split == "test") == (split_of(key) == "test") and split != "validation" for key, split in cut.items())


def test_jsonl_texts_prompts_and_responses(tmp_path):
    records = [
        {"text": "a text", "other": 1},
        {"prompt": "p", "response": "r"},
        {"prompt": "q", "text": "t"},
        {"prompt": "both", "text": "ignored", "response": "r"},
        {"text": "  "},
        {"prompt": "", "response": "from nothing"},
    ]
    splits = load_all(write_jsonl(tmp_path / "a.jsonl", records))
    assert {example for examples in splits.values() for example in examples} == {
        Example(text="a text"),
        Example(prompt="p", text="r"),
        Example(prompt="q", text="t"),
        Example(prompt="both", text="r"),
        Example(prompt="", text="from nothing"),
    }


def test_jsonl_with_other_field_names(tmp_path):
    records = [{"q": f"question {n}", "a": "yes", "response": "no"} for n in range(3)]
    source = write_jsonl(tmp_path / "a.jsonl", records)
    (example,) = load_examples(source, "test", text_feature="a", prompt_feature="q")
    assert example.text == "yes" and example.prompt.startswith("question")


def test_responses_to_one_prompt_stay_in_one_split(tmp_path):
    records = [{"prompt": f"p{n % 60}", "response": f"r{n}"} for n in range(600)]
    splits = load_all(write_jsonl(tmp_path / "a.jsonl", records))
    prompts = [{example.prompt for example in splits[split]} for split in SPLITS]
    assert sum(map(len, prompts)) == 60 == len(set.union(*prompts))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\nclich\xe9\n", r"a\.txt, line 2: not UTF-8"),
        ("a.txt", b"\n \r\n", "has no examples for split 'train'"),
        ("a.jsonl", b"", "has no examples for split 'train'"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": ', r"a\.jsonl, line 3: not JSON \(Expecting value"),
        ("a.jsonl", b"[" * 100_000, r"line 1: not JSON"),
        ("a.jsonl", b'"a"', r"line 1: got .* not a JSON object"),
        ("a.jsonl", b'{"txt": "a", "id": 1}', r"line 1: neither 'text' nor 'prompt'.*'id', 'txt'"),
        ("a.jsonl", b'{"text": 3}', r"line 1: field 'text' is 3: it must be a string"),
        ("a.jsonl", b'{"prompt": "a", "response": [3]}', r"field 'response' is \[3\]"),
        ("a.jsonl", b'{"text": "\\ud800"}', "field 'text' has half of a surrogate pair"),
        ("a.doc", b"a,b", "is of no known kind: use 'tfds:NAME"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message) as error:
        load_examples(write(tmp_path / name, content), "train")
    assert "\n" not in str(error.value)


def test_a_configured_field_that_is_not_there_is_an_error(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "question": "b"}])
    with pytest.raises(UserError) as error:
        load_examples(source, "train", prompt_feature="quesiton")
    error.match(r"line 1: no field 'quesiton', which --config\.data\.prompt_feature names; ")
    error.match(r"; the fields are \['question', 'text'\]; did you mean 'question'\?$")
    with pytest.raises(UserError, match=r"no field 'zz', which .*\.text_feature names; .* 'text'\]$"):
        load_examples(source, "train", text_feature="zz")


def test_unreadable_file_and_unknown_split(tmp_path):
    with pytest.raises(UserError, match=r"gone\.txt' cannot be read \(No such file"):
        load_examples(str(tmp_path / "gone.txt"), "train")
    (tmp_path / "kinds.csv").touch()
    (tmp_path / "kinds.doc").touch()
    with pytest.raises(UserError, match="cannot be read .*: check the path; did you mean 'kinds.csv'[?]$"):
        load_examples(str(tmp_path / "kind.csv"), "train")
    with pytest.raises(UserError, match="cannot be read .*: check the path$"):
        load_examples(str(tmp_path / "nowhere" / "kind.csv"), "train")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(UserError, match=r"folder\.jsonl' has no file that ends in \.jsonl, \.json"):
        load_examples(str(tmp_path / "folder.jsonl"), "train")
    with pytest.raises(UserError, match="split 'dev' is unknown: use one of train, validation"):
        load_examples("a.txt", "dev")


def test_tfds_cuts_only_the_split_that_is_missing(load_questions):
    texts = {split: [e.text for e in load_questions(split)] for split in SPLITS}
    train = [f"train question {n}" for n in range(200)]
    assert sorted(texts["train"] + texts["validation"]) == sorted(train)
    assert set(texts["validation"]) == {t for t in train if split_of(t) == "validation"} != set()
    assert sorted(texts["test"]) == [f"test question {n}" for n in range(7)]
    assert texts["train"] == [example.text for example in load_questions("train")]


def test_tfds_prompts_and_responses(load_questions):
    examples = load_questions("train", text_feature="answer", prompt_feature="question")
    assert len(examples) > 100
    for example in examples:
        assert example.text == example.prompt.replace("question", "answer")


def test_tfds_examples_carry_their_single_features_and_are_announced_once(load_questions, monkeypatch, capsys):
    monkeypatch.setattr(report, "_told", set())
    columns = {example.text: example.columns for split in SPLITS for example in load_questions(split)}
    assert columns["test question 5"] == {
        "question": "test question 5",
        "answer": "test answer 5",
        "label": 1,
        "words": None,
    }
    assert columns["test question 3"]["answer"] == b"\xff"  # nobody asked for it
    assert capsys.readouterr().out == (
        "data: tfds:questions, split train: 200 records; text from 'question'; unused fields: 'answer', 'label', "
        "'words'\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_feature": "label"}, "feature 'label' is ClassLabel.*must be a string"),
        ({"text_feature": "words"}, "feature 'words' is Sequence.*must be a string"),
        ({"text_feature": "qestion"}, "no field 'qestion', which .*text_feature names; .*'question'"),
        ({"text_feature": "text"}, "neither 'text' nor 'prompt' is there"),
        ({"text_feature": "answer", "split": "test"}, r"test example \d: field 'answer' is not UTF-8"),
    ],
)
def test_tfds_features_are_checked(load_questions, options, message):
    with pytest.raises(UserError, match=message):
        load_questions(**{"split": "train", **options})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tfds:imdb_reviews", r"is not prepared in .*run once, in Python: .*download_and_prepare"),
        ("tfds:imdb_reviews/bogus", "cannot be opened: .*BuilderConfig bogus not found"),
        ("tfds:no_such_set", "cannot be opened: Dataset no_such_set not found"),
        ("tfds:huggingface:imdb", r"not of the form 'tfds:NAME\[/CONFIG\]"),
        ("tfds:", "not of the form"),
        ("tfds:movie_snippets/books", "config 'books' is unknown"),
    ],
)
def test_tfds_sets_that_cannot_be_opened(tmp_path, source, message):
    with pytest.raises(UserError, match=message) as error:
        load_examples(source, "train", data_dir=str(tmp_path))
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_importing_the_module_does_not_import_tensorflow_datasets():
    program = "import sys, tfppo.data.sources; print('tensorflow_datasets' in sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.strip() == "False"

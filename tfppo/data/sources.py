"""Loads examples from a source: a TFDS dataset, a .txt file or a .jsonl file."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tfppo.data.splits import SPLITS, cut_splits
from tfppo.errors import UserError

RESPONSE_FEATURE = "response"

_TFDS_NAME = re.compile(r"\w+(/[\w.+-]+)?(:[\d.]+)?")
_DEFAULT_FEATURES = ("text", "prompt")


@dataclass(frozen=True, slots=True)
class Example:
    """One text. With a prompt, `text` is the response to it, empty when there are prompts only."""

    text: str = ""
    prompt: str | None = None
    # Every field of its record, for reward functions; texts are equal whatever theirs are.
    columns: Mapping[str, object] = field(default_factory=dict, compare=False)


def load_examples(
    source: str,
    split: str,
    *,
    text_feature: str = "text",
    prompt_feature: str = "prompt",
    data_dir: str | None = None,
) -> list[Example]:
    """Loads the examples of one split, always in the same order.

    source: `tfds:NAME[/CONFIG]` (already prepared, but for `tfds:movie_snippets`, which prepares
        itself on first use), a `.txt` file (a text a line) or a `.jsonl` file (an object a line).
    split: train, validation or test; one that the source lacks is cut from its texts, 5 % each.
    text_feature, prompt_feature: names of the fields; a `.txt` file has none. Where there is a
        prompt, the response may be named `response` too, or be missing.
    data_dir: the TFDS folder; None is the TFDS default.

    Blank texts without a prompt are dropped. Raises UserError for an unknown source or split, for
    unreadable or malformed data, and for a split without examples.
    """
    if split not in SPLITS:
        raise UserError(f"split {split!r} is unknown: use one of {', '.join(SPLITS)}.")
    names = (text_feature, prompt_feature)
    if source.startswith("tfds:"):
        examples = _load_tfds(source, split, names, data_dir)
    elif source.endswith(".txt"):
        examples = _cut(_read_txt(source), split, SPLITS[1:])
    elif source.endswith(".jsonl"):
        examples = _cut(_keep_texts(_read_jsonl(source, names)), split, SPLITS[1:])
    else:
        raise UserError(
            f"source {source!r} is of no known kind: use 'tfds:NAME[/CONFIG]', or the path of a "
            "file that ends in .txt or .jsonl."
        )
    if not examples:
        raise UserError(f"source {source!r} has no examples for split {split!r}: give it at least 3 different texts.")
    return examples


def _cut(examples, split, held_out):
    # By prompt where there is one: two responses to one prompt must not be in two splits.
    keys = [example.text if example.prompt is None else example.prompt for example in examples]
    split_by_key = cut_splits(keys, held_out)
    return [example for example, key in zip(examples, keys, strict=True) if split_by_key[key] == split]


def _keep_texts(examples):
    return [example for example in examples if (example.text + (example.prompt or "")).strip()]


def _choose_fields(present, names, where):
    """Returns the names of the text field and of the prompt field, None where there is none."""
    for name, default in zip(names, _DEFAULT_FEATURES, strict=True):
        if name not in present and name != default:
            raise UserError(f"{where}: no field {name!r}; the fields are {sorted(present)}.")
    text_name, prompt_name = (name if name in present else None for name in names)
    if prompt_name and names[0] == _DEFAULT_FEATURES[0] and RESPONSE_FEATURE in present:
        text_name = RESPONSE_FEATURE
    if not (text_name or prompt_name):
        raise UserError(
            f"{where}: neither {names[0]!r} nor {names[1]!r} is there; the fields are "
            f"{sorted(present)}: rename one, or set text_feature or prompt_feature."
        )
    return text_name, prompt_name


def _read_lines(path) -> Iterator[tuple[str, str]]:
    """Yields (place, line) for each line of a UTF-8 file that is not blank."""
    try:
        with open(os.path.expanduser(path), "rb") as file:
            lines = file.read().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise UserError(f"source {path!r} cannot be read ({error.strerror}): check the path.") from error
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            text = line.decode().strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: not UTF-8 ({error.reason}): save it as UTF-8.") from error
        if text:
            yield where, text


def _read_txt(path):
    return [Example(text=line) for _, line in _read_lines(path)]


def read_objects(path: str) -> Iterator[tuple[str, dict]]:
    """Yields (place, object) for each line of a .jsonl file that is not blank. Raises: UserError."""
    for where, line in _read_lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", error)  # without JSON's own count of lines
            raise UserError(f"{where}: not JSON ({reason}): write one object a line.") from error
        if not isinstance(record, dict):
            raise UserError(f"{where}: got {line[:40]!r}, not a JSON object: write {{...}}.")
        yield where, record


def _read_jsonl(path, names):
    examples = []
    for where, record in read_objects(path):
        text_name, prompt_name = _choose_fields(record, names, where)
        examples.append(
            Example(
                text=checked_text(record[text_name], text_name, where) if text_name else "",
                prompt=checked_text(record[prompt_name], prompt_name, where) if prompt_name else None,
                columns=record,
            )
        )
    return examples


def checked_text(value: object, name: str, where: str) -> str:
    """The value of a field, which must be a string that has a UTF-8 form. Raises: UserError."""
    if not isinstance(value, str):
        raise UserError(f"{where}: field {name!r} is {value!r}: it must be a string.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f"{where}: field {name!r} has half of a surrogate pair: write whole pairs.")
    return value


def _load_tfds(source, split, names, data_dir):
    builder = _open_builder(source, data_dir)
    present = set(builder.info.splits)
    if split != "train" and split in present:
        return _read_tfds(builder, split, names, source)
    if "train" not in present:
        raise UserError(f"source {source!r} has no split 'train', only {sorted(present)}: use another dataset.")
    missing = [name for name in SPLITS[1:] if name not in present]
    return _cut(_read_tfds(builder, "train", names, source), split, missing)


def _open_builder(source, data_dir):
    name = source.removeprefix("tfds:")
    if not _TFDS_NAME.fullmatch(name):  # a namespace, as in `huggingface:x`, would use the network
        raise UserError(f"source {source!r} is not of the form 'tfds:NAME[/CONFIG][:VERSION]'.")
    data_dir = data_dir and os.path.expanduser(data_dir)
    dataset, _, config = name.partition("/")
    if dataset == "movie_snippets":
        from tfppo.data.movie_snippets import prepare  # with TFDS, whose import takes seconds

        return prepare(data_dir, config or "movies")
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (ValueError, AssertionError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"source {source!r} cannot be opened: {reason} Check it and data_dir={data_dir!r}.") from error
    if not builder.is_prepared():
        raise UserError(
            f"source {source!r} is not prepared in {str(builder.data_dir_root)!r}: name another "
            f"data_dir, or run once, in Python: tensorflow_datasets.builder({name!r}, "
            f"data_dir={data_dir!r}).download_and_prepare()."
        )
    return builder


def _read_tfds(builder, split, names, source):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    features = builder.info.features
    text_name, prompt_name = _choose_fields(set(features), names, f"source {source!r}")
    used = [name for name in (text_name, prompt_name) if name]
    for name in used:
        if features[name].get_tensor_spec() != tf.TensorSpec((), tf.string):
            raise UserError(
                f"source {source!r}: feature {name!r} is {type(features[name]).__name__}: it must be a string; "
                "set text_feature or prompt_feature to one that is."
            )
    dataset = builder.as_dataset(
        split=split,
        shuffle_files=False,
        read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
    )
    examples = []
    for number, record in enumerate(tfds.as_numpy(dataset)):
        try:
            decoded = {name: record[name].decode() for name in used}
        except UnicodeDecodeError as error:
            raise UserError(f"source {source!r}, {split} example {number}: not UTF-8.") from error
        examples.append(Example(decoded.get(text_name, ""), decoded.get(prompt_name)))
    return _keep_texts(examples)

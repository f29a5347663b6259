"""Loads examples from a source: files of records, or a TFDS dataset."""

from collections.abc import Callable, Iterable, Mapping

from tfppo.data.chat import CHATML, ChatTemplate
from tfppo.data.records import find_files, read_records
from tfppo.data.report import LoadReport, no_field, tell
from tfppo.data.shapes import Example, recognise
from tfppo.data.splits import SPLITS, cut_splits
from tfppo.errors import UserError

TFDS = "tfds:"


def load_examples(
    source: str,
    split: str,
    *,
    text_feature: str = "text",
    prompt_feature: str = "prompt",
    data_dir: str | None = None,
    template: ChatTemplate = CHATML,
    rewarded: Callable[[str], bool] = no_field,
) -> list[Example]:
    """Loads the examples of one split, always in the same order, and prints what it took, once a source.

    source: `tfds:NAME[/CONFIG]` (already prepared, but for `tfds:movie_snippets`, which prepares
        itself on first use), or a file, a folder or a pattern of files (`tfppo/data/records.py`).
    split: train, validation or test; one that the source lacks is cut from its texts, 5 % each.
    text_feature, prompt_feature: names of fields, which are taken alone where they are no defaults.
        Otherwise `tfppo/data/shapes.py` says what a record is taken for.
    data_dir: the TFDS folder; None is the TFDS default.
    template: writes chats as text.
    rewarded: whether a reward function takes a field, for what is printed.

    Blank texts without a prompt are left out. Raises UserError for an unknown source or split, for
    unreadable or malformed data, for a prompt without a response where others have one, and for a
    split without examples.
    """
    if split not in SPLITS:
        raise UserError(f"split {split!r} is unknown: use one of {', '.join(SPLITS)}.")
    names = (text_feature, prompt_feature)
    if source.startswith(TFDS):
        examples = _load_tfds(source, split, names, data_dir, template, rewarded)
    else:
        examples = _cut(_load_files(source, names, template, rewarded), split, SPLITS[1:])
    if not examples:
        raise UserError(f"source {source!r} has no examples for split {split!r}: give it at least 3 different texts.")
    return examples


def _load_files(source, names, template, rewarded):
    files = find_files(source)
    report = LoadReport(source, rewarded)
    records = (record for path in files.known for record in read_records(path))
    examples = take(records, report, names, template)
    if len(files.known) > 1:
        report.end_with(f"{len(files.known)} files")
    if files.ignored:
        report.end_with(f"files of no known format: {', '.join(files.ignored)}")
    tell(report.line())
    return examples


def take(
    records: Iterable[tuple[str, Mapping[str, object]]],
    report: LoadReport,
    names: tuple[str, str],
    template: ChatTemplate,
) -> list[Example]:
    """What (place, record) pairs hold, without blank ones; the report counts them.

    Raises: UserError where a prompt has no response and another has one.
    """
    examples: list[Example] = []
    first: dict[bool, Example] = {}  # by whether it has a response
    for where, record in records:
        example, taken, has_response = recognise(record, where, names, template)
        report.add(record, taken)
        if not (example.text + (example.prompt or "")).strip():
            report.leave_out(where, "blank")
            continue
        if has_response is not None:
            first.setdefault(has_response, example)
        if has_response and not example.text.strip():
            report.note(where, "with an empty response")
        examples.append(example)
    if len(first) == 2:
        raise UserError(
            f"{first[False].place}: a prompt without a response, and that of {first[True].place} has one; the fields "
            f"are {sorted(first[False].columns)}: give each prompt its response, or none."
        )
    if first.keys() == {False}:
        report.end_with("no responses")
    if any(example.is_chat for example in examples):
        report.end_with(f"chat template {template.name}")
    return examples


def _cut(examples, split, held_out):
    # By prompt where there is one: two responses to one prompt must not be in two splits.
    keys = [example.text if example.prompt is None else example.prompt for example in examples]
    split_by_key = cut_splits(keys, held_out)
    return [example for example, key in zip(examples, keys, strict=True) if split_by_key[key] == split]


def _load_tfds(source, split, names, data_dir, template, rewarded):
    from tfppo.data.prepared import open_builder, read_split

    builder = open_builder(source, data_dir)
    present = set(builder.info.splits)

    def read(name):
        report = LoadReport(f"{source}, split {name}", rewarded)
        examples = take(read_split(builder, name, names, source), report, names, template)
        # What holds for one split holds for the others, but for what is left out.
        tell(report.line(), once_for=None if report.has_left_out() else source)
        return examples

    if split != "train" and split in present:
        return read(split)
    if "train" not in present:
        raise UserError(f"source {source!r} has no split 'train', only {sorted(present)}: use another dataset.")
    missing = [name for name in SPLITS[1:] if name not in present]
    return _cut(read("train"), split, missing)

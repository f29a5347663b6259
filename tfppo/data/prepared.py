"""Prepared TFDS datasets as records."""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from tfppo.errors import UserError

_TFDS_NAME = re.compile(r"\w+(/[\w.+-]+)?(:[\d.]+)?")


def open_builder(source: str, data_dir: str | None) -> Any:
    """The builder of a source `tfds:NAME`, prepared. Raises: UserError where there is none."""
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


def read_split(builder: Any, split: str, names: Sequence[str], source: str) -> Iterator[tuple[str, dict[str, object]]]:
    """Yields (place, record) for each example of a split, always in the same order.

    A record has the features that are single strings, numbers or truth values; a string that is not UTF-8 stays bytes.
    The other features are in it as None, so that they are counted. Raises: UserError where one of `names` is no string.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    features = builder.info.features
    for name in set(names) & set(features):
        if features[name].get_tensor_spec() != tf.TensorSpec((), tf.string):
            raise UserError(
                f"source {source!r}: feature {name!r} is {type(features[name]).__name__}: it must be a string; "
                "set text_feature or prompt_feature to one that is."
            )
    specs = {name: feature.get_tensor_spec() for name, feature in features.items()}
    scalars = {name for name, spec in specs.items() if isinstance(spec, tf.TensorSpec) and spec.shape.rank == 0}
    dataset = builder.as_dataset(
        split=split,
        shuffle_files=False,
        read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
    )
    for number, record in enumerate(tfds.as_numpy(dataset)):
        where = f"source {source!r}, {split} example {number}"
        yield where, {name: _plain(record[name]) if name in scalars else None for name in features}


def _plain(value):
    if not isinstance(value, bytes):
        return value.item()
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value

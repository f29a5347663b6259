"""Reads records, objects with named fields, from files of any known format, each with its place."""

import csv
import glob
import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tfppo.errors import UserError, did_you_mean

_Records = Iterator[tuple[str, dict]]


class Files(NamedTuple):
    """The files of a source, and those of its folder that are of no known format."""

    known: list[str]
    ignored: list[str]


def find_files(source: str) -> Files:
    """The files that a source names: a file, all files below a folder, or those that a pattern matches; in order.

    Raises: UserError where there is none, or a named file is of no known format.
    """
    path = os.path.expanduser(source)
    if os.path.isdir(path):
        found = sorted(str(file) for file in Path(path).rglob("*") if file.is_file())
        hidden = [any(part.startswith(".") for part in Path(file).relative_to(path).parts) for file in found]
        found = [file for file, is_hidden in zip(found, hidden, strict=True) if not is_hidden]
    elif glob.has_magic(path) and not os.path.exists(path):
        found = sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))
        if not found:
            raise UserError(f"source {source!r} matches no file: check the pattern.")
    elif format_of(path) is None:
        raise UserError(
            f"source {source!r} is of no known kind: use 'tfds:NAME[/CONFIG]', or the path of a file, a folder or a "
            f"pattern of files that end in {', '.join(READERS)}, each also with .gz."
        )
    else:
        return Files([path], [])
    known = [file for file in found if format_of(file)]
    if not known:
        raise UserError(f"source {source!r} has no file that ends in {', '.join(READERS)}, also with .gz: check it.")
    return Files(known, [file for file in found if not format_of(file)])


def format_of(path: str) -> str | None:
    """The format of a file by the end of its name, in any case and with or without .gz; None where it is unknown."""
    suffix = os.path.splitext(path.lower().removesuffix(".gz"))[1]
    return suffix if suffix in READERS else None


def read_records(path: str) -> _Records:
    """Yields (place, record) for each record of a file. Raises: UserError, with the place, for what is malformed."""
    return READERS[format_of(path) or ""](path)


def checked_text(value: object, name: str, where: str) -> str:
    """The value of a field, which must be a string that has a UTF-8 form. Raises: UserError."""
    if isinstance(value, bytes):
        raise UserError(f"{where}: field {name!r} is not UTF-8: write text.")
    if not isinstance(value, str):
        raise UserError(f"{where}: field {name!r} is {value!r:.60}: it must be a string.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f"{where}: field {name!r} has half of a surrogate pair: write whole pairs.")
    return value


def _content(path):
    try:
        with gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb") as file:
            return file.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"source {path!r} is no whole gzip file ({error}): copy it again.") from error
    except FileNotFoundError as error:
        beside = [other.name for other in Path(path).parent.glob("*") if format_of(other.name)]
        hint = did_you_mean(Path(path).name, beside)
        raise UserError(f"source {path!r} cannot be read ({error.strerror}): check the path{hint}") from error
    except OSError as error:
        raise UserError(f"source {path!r} cannot be read ({error.strerror}): check the path.") from error


def _text(path):
    content = _content(path).removeprefix(b"\xef\xbb\xbf")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 ({error.reason}): save it as UTF-8.") from error


def _lines(path):
    """Yields (place, line) for each line that is not blank."""
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", line.strip()


def _read_txt(path):
    for where, line in _lines(path):
        yield where, {"text": line}


def _parsed(text, where, remedy):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", error)  # without JSON's own count of lines
        raise UserError(f"{where}: not JSON ({reason}): {remedy}.") from error


def _object(value, where):
    if not isinstance(value, dict):
        raise UserError(f"{where}: got {json.dumps(value)[:40]!r}, not a JSON object: write {{...}}.")
    return value


def _read_jsonl(path):
    for where, line in _lines(path):
        yield where, _object(_parsed(line, where, "write one object a line"), where)


def _read_json(path):
    """An array of objects; or an object a line, as some name those files so too."""
    text = _text(path)
    if not text.lstrip().startswith("["):
        yield from _read_jsonl(path)
        return
    for number, value in enumerate(_parsed(text, path, "write one array of objects"), start=1):
        where = f"{path}, record {number}"
        yield where, _object(value, where)


def _read_table(text, path, separator):
    """Rows below a header. An empty cell is a field that is not there: the format cannot tell it from an empty text."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a text may be longer than the module's default allows
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: list[str] | None = None
    first = 1  # a quoted cell may have several lines: the number of the record's first one
    try:
        for cells in reader:
            where, first = f"{path}, line {first}", reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = _header(cells, where)
            elif len(cells) != len(header):
                raise UserError(
                    f"{where}: {len(cells)} cells, and the header has {len(header)}: quote cells that hold "
                    "separators or line breaks."
                )
            else:
                yield where, {name: cell or None for name, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        raise UserError(f"{path}, line {first}: not CSV ({error}): mend the quotes.") from error


def _header(cells, where):
    names = [cell.strip() for cell in cells]
    if len(set(names)) < len(names):
        raise UserError(f"{where}: the header {names} names a field twice: rename one.")
    return names


def _read_csv(path):
    """Commas separate cells; semicolons do where they alone divide the header, as spreadsheets write in Europe."""
    text = _text(path)
    return _read_table(text, path, ";" if _width(text, ";") > 1 >= _width(text, ",") else ",")


def _width(text, separator):
    """The number of cells of the header; 0 where there is none, or its quotes do not fit this separator."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        return len(next(filter(None, rows), []))
    except csv.Error:
        return 0


def _read_tsv(path):
    return _read_table(_text(path), path, "\t")


def _read_parquet(path):
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"source {path!r}: Parquet needs pyarrow: pip install 'tfppo[parquet]'.") from error
    try:
        batches = list(pyarrow.parquet.ParquetFile(pyarrow.BufferReader(_content(path))).iter_batches())
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"source {path!r} is no whole Parquet file ({reason}): copy it again.") from error
    rows = (row for batch in batches for row in _parquet_rows(path, batch))
    for number, record in enumerate(rows, start=1):
        yield f"{path}, row {number}", record


def _parquet_rows(path, batch):
    """The rows of a batch as objects. Raises: UserError for a column whose values have no form in Python."""
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            columns.append(column.to_pylist())
        except (ValueError, OverflowError, LookupError) as error:  # times out of reach, unknown time zones
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"source {path!r}: column {name!r} of type {column.type} cannot be read ({reason}): write it as text, "
                "or leave it out."
            ) from error
    return [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


READERS = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".txt": _read_txt,
}

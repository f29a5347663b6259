"""Records from files of every format, with the place of each; the same ones, whatever the format."""

import gzip
import json
import sys

import pyarrow
import pyarrow.parquet
import pytest

from tfppo.data.records import find_files, read_records
from tfppo.data.sources import load_examples
from tfppo.errors import UserError

RECORDS = [
    {"prompt": "one, two", "response": 'she said "three"', "n": "1"},
    {"prompt": "two\nlines", "response": "a\ttab and a cliché", "n": "2"},
    {"prompt": "end", "response": "of file", "n": "3"},
]
CONTENTS = {
    ".jsonl": "\n".join(json.dumps(record) for record in RECORDS),
    ".json": json.dumps(RECORDS, indent=2),
    ".csv": 'prompt,response,n\r\n"one, two","she said ""three""",1\r\n"two\nlines",a\ttab and a cliché,2\r\n\r\n'
    "end,of file,3\r\n",
    ".tsv": 'prompt\tresponse\tn\none, two\t"she said ""three"""\t1\n"two\nlines"\t"a\ttab and a cliché"\t2\n\n'
    "end\tof file\t3\n",
}
# Where the second and the third record stand in each of them.
PLACES = {
    ".jsonl": ("line 2", "line 3"),
    ".json": ("record 2", "record 3"),
    ".csv": ("line 3", "line 6"),
    ".tsv": ("line 3", "line 6"),
    ".parquet": ("row 2", "row 3"),
}


def write(path, content):
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if path.name.lower().endswith(".gz") else content)
    return str(path)


def parquet_bytes(records):
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("name", ["a{}", "a{}.gz", "A.B{}", "UPPER{}", "UPPER{}.GZ"])
@pytest.mark.parametrize("suffix", PLACES)
def test_every_format_holds_the_same_records(tmp_path, suffix, name):
    content = CONTENTS.get(suffix) or parquet_bytes(RECORDS)
    name = name.format(suffix)
    path = write(tmp_path / (name.upper() if name.startswith("UPPER") else name), content)
    found = list(read_records(path))
    assert [record for _, record in found] == RECORDS
    assert [place for place, _ in found[1:]] == [f"{path}, {place}" for place in PLACES[suffix]]


def test_objects_a_line_in_a_file_named_json(tmp_path):
    path = write(tmp_path / "a.json", "\ufeff" + CONTENTS[".jsonl"])
    assert [record for _, record in read_records(path)] == RECORDS


def test_an_empty_cell_is_a_field_that_is_not_there(tmp_path):
    path = write(tmp_path / "a.csv", "\ufeffprompt, response\na,\n,b\n")
    records = [record for _, record in read_records(path)]
    assert records == [{"prompt": "a", "response": None}, {"prompt": None, "response": "b"}]


@pytest.mark.parametrize(
    ("text", "records"),
    [
        ('prompt;response\n"a; b";c, d\n', [{"prompt": "a; b", "response": "c, d"}]),
        ('"text";n\r\n"say ""no"";";1\r\n', [{"text": 'say "no";', "n": "1"}]),
        ("a;b,c\nd;e,f\n", [{"a;b": "d;e", "c": "f"}]),
        ("text\na; b\n", [{"text": "a; b"}]),
        ("text\ra; b\r", [{"text": "a; b"}]),
        ('"a; b"\nc\n', [{"a; b": "c"}]),
        ('\n"a, b";"c"\n"1,5";2\n', [{"a, b": "1,5", "c": "2"}]),
        ('"a;b\nc",d\n1,2\n', [{"a;b\nc": "1", "d": "2"}]),
    ],
)
def test_semicolons_separate_cells_where_the_header_has_them_and_no_comma(tmp_path, text, records):
    assert [record for _, record in read_records(write(tmp_path / "a.csv", text))] == records


def test_a_cell_may_be_long(tmp_path):
    path = write(tmp_path / "a.csv", f"text\n{'word ' * 100_000}\n")
    ((_, record),) = read_records(path)
    assert len(record["text"]) == 500_000


def test_parquet_keeps_numbers_and_lists_of_messages(tmp_path):
    records = [{"messages": [{"role": "user", "content": "hi"}], "score": 0.5}, {"messages": None, "score": 1.0}]
    assert [r for _, r in read_records(write(tmp_path / "a.parquet", parquet_bytes(records)))] == records


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "prompt,response\na,b\nc,d,e\n", "line 3: 3 cells, and the header has 2: quote cells"),
        ("a.csv", 'text\nfine\n"open\nand on\n', "line 3: not CSV"),
        ("a.csv", 'text\n"a"b\n', "line 2: not CSV"),
        ("a.csv", "a,b,a\n1,2,3\n", r"line 1: the header \['a', 'b', 'a'\] names a field twice"),
        ("a.csv", b"text\nclich\xe9\n", "line 2: not UTF-8"),
        ("a.json", '[{"text": "a"}, 3]', "record 2: got '3', not a JSON object"),
        ("a.json", '[{"text": "a"}', "a.json: not JSON .*write one array of objects"),
        ("a.parquet", b"PAR1 and no more", "is no whole Parquet file"),
    ],
)
def test_malformed_files(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message) as error:
        list(read_records(write(tmp_path / name, content)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array([1, 2], pyarrow.timestamp("ns")),  # Python's times have microseconds
        pyarrow.array([2**60, 0], pyarrow.timestamp("us")),
    ],
)
def test_a_parquet_column_that_python_has_no_value_for_is_named(tmp_path, column):
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "when": column}), sink)
    with pytest.raises(UserError, match=r"a.parquet': column 'when' of type timestamp\S* cannot be read") as error:
        list(read_records(write(tmp_path / "a.parquet", sink.getvalue().to_pybytes())))
    assert "\n" not in str(error.value)


def test_a_damaged_gzip_file(tmp_path):
    whole = gzip.compress(b"some text\n" * 100)
    for content in (whole[:-10], b"no gzip at all"):
        (tmp_path / "a.txt.gz").write_bytes(content)
        with pytest.raises(UserError, match="no whole gzip file"):
            list(read_records(str(tmp_path / "a.txt.gz")))


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", parquet_bytes(RECORDS))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"Parquet needs pyarrow: pip install 'tfppo\[parquet\]'"):
        list(read_records(path))


class TestFiles:
    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "data" / "below").mkdir(parents=True)
        for name in ("b.jsonl", "a.CSV", "below/c.txt.gz", "README.md", ".hidden.txt"):
            write(tmp_path / "data" / name, "text\nx\n")
        return tmp_path / "data"

    def test_a_folder_has_all_files_below_it_in_order(self, folder):
        known, ignored = find_files(str(folder))
        assert known == [str(folder / name) for name in ("a.CSV", "b.jsonl", "below/c.txt.gz")]
        assert ignored == [str(folder / "README.md")]

    def test_a_pattern(self, folder):
        assert find_files(f"{folder}/*.jsonl").known == [str(folder / "b.jsonl")]
        assert find_files(f"{folder}/**/*.gz").known == [str(folder / "below" / "c.txt.gz")]
        with pytest.raises(UserError, match="matches no file"):
            find_files(f"{folder}/*.tsv")
        with pytest.raises(UserError, match="has no file that ends in .jsonl, .json, .csv"):
            find_files(f"{folder}/*.md")

    def test_a_name_that_looks_like_a_pattern(self, tmp_path):
        path = write(tmp_path / "a[1].txt", "text\n")
        assert find_files(path).known == [path]

    def test_all_files_of_a_folder_are_used_and_counted(self, folder, capsys):
        (folder / "b.jsonl").write_text('{"text": "from jsonl"}\n')
        assert {example.text for example in load_examples(str(folder), "train")} <= {"x", "from jsonl", "text"}
        line = capsys.readouterr().out
        assert f"data: {folder}: 4 records; text from 'text'; 3 files; files of no known format: " in line
        assert "README.md" in line and "hidden" not in line

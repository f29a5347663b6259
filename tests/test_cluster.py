"""What TF_CONFIG may say, what is told where it makes no sense, and that only the chief writes."""

import json

import pytest

from tfppo.cluster import Cluster, chief_writes, require_one_worker, this_cluster
from tfppo.errors import UserError
from tfppo.files import write_text

HOSTS = ["one:2222", "two:2222", "three:2222"]


def config(index=1, kind="worker", **cluster):
    return json.dumps({"cluster": cluster or {"worker": HOSTS}, "task": {"type": kind, "index": index}})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Cluster()),
        (config(1), Cluster(tuple(HOSTS), 1)),
        (config(0, worker=["one:2222"]), Cluster(("one:2222",), 0)),
        (config(0), Cluster(tuple(HOSTS), 0)),
        (config(2), Cluster(tuple(HOSTS), 2)),
        (config(0, worker=["[::1]:1", "one:65535"]), Cluster(("[::1]:1", "one:65535"), 0)),
    ],
)
def test_who_this_process_is(monkeypatch, text, expected):
    monkeypatch.setenv("TF_CONFIG", text)
    assert this_cluster() == expected
    assert this_cluster().is_chief == (expected.index == 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no JSON"),
        ("[]", "has no 'cluster'"),
        ("{}", "has no 'cluster'"),
        (json.dumps({"cluster": {"worker": HOSTS}}), "has no 'task'"),
        (config(worker=[]), "has no worker"),
        (config(worker="one:2222"), "no list of HOST:PORT for 'worker', but 'one:2222'"),
        (config(worker=["one"]), "no list of HOST:PORT for 'worker', but ['one']"),
        (config(worker=["one:"]), "no list of HOST:PORT for 'worker', but ['one:']"),
        (config(worker=[":2222"]), "no list of HOST:PORT for 'worker', but [':2222']"),
        (config(worker=["one:http"]), "no list of HOST:PORT for 'worker', but ['one:http']"),
        (config(worker=["one:65536"]), "no list of HOST:PORT for 'worker', but ['one:65536']"),
        (config(0, worker=["one:0"]), "no list of HOST:PORT for 'worker', but ['one:0']"),
        (config(worker=[*HOSTS, HOSTS[1]]), "has the address 'two:2222' for more than one worker"),
        (config(worker=HOSTS, ps=HOSTS), "has 'ps' in its cluster"),
        (config(0, "ps"), "task type 'ps'"),
        (config(0, "evaluator"), "task type 'evaluator'"),
        (config(3), "task index 3, but the workers are 0 to 2"),
        (config(-1), "task index -1"),
        (config("1"), "task index '1'"),
        (config(True), "task index True"),
        (config(0, worker=HOSTS[1:], chief=HOSTS[:1]), "has 'chief' in its cluster"),
        (config(0, "chief"), "task type 'chief'"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_line(monkeypatch, text, words):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError) as caught:
        this_cluster()
    assert words in str(caught.value) and "TF_CONFIG" in str(caught.value) and "unset it" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("index", "written"), [(0, True), (1, False)])
def test_the_chief_alone_writes(monkeypatch, tmp_path, index, written):
    monkeypatch.setenv("TF_CONFIG", config(index))
    calls = []
    chief_writes(calls.append)(1)
    write_text(tmp_path / "file", "text")
    assert (calls == [1]) == written == (tmp_path / "file").exists()


def test_work_for_one_process_is_refused(monkeypatch):
    require_one_worker("tfppo export")
    monkeypatch.setenv("TF_CONFIG", config())
    with pytest.raises(UserError, match="3 workers, but tfppo export is work for one process; unset TF_CONFIG"):
        require_one_worker("tfppo export")

"""Rewards at a URL, against a real server in a thread."""

import json
import re
import ssl
import subprocess
import textwrap
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import requests
from reward_cases import make_batch

from tfppo.config import RewardConfig
from tfppo.errors import UserError
from tfppo.rewards import calling
from tfppo.rewards.remote import RemoteReward, read_token
from tfppo.rewards.scoring import TextReward, total_scores


def scores_of(request):
    """The length of each response, and a thousand for each unit of the column `answer`, if it is there."""
    answers = request["columns"].get("answer", [0] * len(request["responses"]))
    return [len(r) + 1000 * a for r, a in zip(request["responses"], answers, strict=True)]


class Server:
    """A server whose replies are (status, body, headers), made by `reply(number of the request, request)`."""

    def __init__(self, reply, context=None):
        self.requests, self.headers, self.most_at_once = [], [], 0
        self._at_once, lock = Counter(), threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler):
                body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
                with lock:
                    self.requests.append(body)
                    self.headers.append(dict(handler.headers))
                    number = len(self.requests)
                    self._at_once["now"] += 1
                    self.most_at_once = max(self.most_at_once, self._at_once["now"])
                status, content, headers = (*reply(number, body), {})[:3]
                with lock:
                    self._at_once["now"] -= 1
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                handler.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    handler.send_header(name, value)
                handler.end_headers()
                handler.wfile.write(content)

            def log_message(handler, *arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if context:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        scheme = "https" if context else "http"
        self.url = f"{scheme}://localhost:{self._server.server_port}/v1/score"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(calling, "FIRST_WAIT", 0.01)
    servers = []

    def start(reply, context=None):
        servers.append(Server(reply, context))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def good(number, request):
    return 200, {"scores": scores_of(request)}


def remote(server, token=None, **settings):
    config = RewardConfig(functions=(server.url,), **settings)
    config.validate()
    return RemoteReward(server.url, config, token)


def long_batch(count=10):
    responses = tuple("x" * (number % 8) for number in range(count))
    columns = {"answer": list(range(count)), "array": [np.float32(number) for number in range(count)]}
    return make_batch(tuple(f"p{number}" for number in range(count)), responses, columns=columns)


def test_batches_of_rows_with_their_columns_are_posted_and_come_back_in_order(serve):
    server = serve(good)
    reward = remote(server, url_batch_size=4)
    assert reward.name == "score"
    scores = reward(long_batch())
    assert scores.dtype == np.float32 and scores.tolist() == [number % 8 + 1000 * number for number in range(10)]
    posted = sorted(server.requests, key=lambda request: int(request["prompts"][0][1:]))
    assert [request["prompts"] for request in posted] == [
        ["p0", "p1", "p2", "p3"],
        ["p4", "p5", "p6", "p7"],
        ["p8", "p9"],
    ]
    assert posted[1]["responses"] == ["xxxx", "xxxxx", "xxxxxx", "xxxxxxx"]
    assert posted[1]["columns"] == {"answer": [4, 5, 6, 7], "array": [4.0, 5.0, 6.0, 7.0]}
    assert all("Authorization" not in headers for headers in server.headers)


def test_the_server_of_the_document_is_one():
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
    source = textwrap.dedent(re.search(r"A server, for trials:\n\n((?:    .*\n|\n)+)", page)[1])
    *definitions, start = source.strip().splitlines()
    names = {}
    exec("\n".join(definitions), names)
    names["Score"].log_message = lambda *arguments: None
    server = eval(start.replace("8000", "0").removesuffix(".serve_forever()"), names)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://localhost:{server.server_port}/score"
    assert RemoteReward(url, RewardConfig())(make_batch()).tolist() == [np.float32(0.03), np.float32(0.09)]
    server.shutdown()
    server.server_close()


def test_a_bare_list_will_do(serve):
    assert remote(serve(lambda number, request: (200, scores_of(request))))(make_batch()).tolist() == [3.0, 9.0]


def test_several_posts_are_in_flight_but_no_more_than_allowed(serve):
    def slow(number, request):
        time.sleep(0.1)
        return good(number, request)

    server = serve(slow)
    remote(server, url_batch_size=1, url_concurrency=3)(long_batch(9))
    assert server.most_at_once == 3 and len(server.requests) == 9


@pytest.mark.parametrize("status", [500, 429, 503])
def test_what_may_pass_is_asked_again(serve, status, capfd):
    server = serve(lambda number, request: (status, "busy") if number <= 2 else good(number, request))
    assert remote(server)(make_batch()).tolist() == [3.0, 9.0]
    assert len(server.requests) == 3
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and f'answers {status} ("busy"); asking again in 0.01 s' in lines[0]


def test_the_server_says_how_long_to_wait(serve):
    server = serve(lambda number, request: (429, "", {"Retry-After": "1"}) if number == 1 else good(number, request))
    started = time.monotonic()
    remote(server)(make_batch())
    assert 1.0 <= time.monotonic() - started < 5.0


def test_a_server_that_stays_broken_is_told_in_one_line(serve):
    server = serve(lambda number, request: (500, {"detail": "out of\nmemory"}))
    with pytest.raises(UserError) as error:
        remote(server, retries=3)(make_batch())
    assert str(error.value) == (
        f'reward score: {server.url} answers 500 ({{"detail": "out of\\nmemory"}}) after 4 tries, for prompt \'first\' '
        "and response 'one'; look at the server's own log"
    )
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((200, b"<html>welcome</html>"), r"answers no scores \(<html>welcome</html>\).*must answer {\"scores\""),
        ((200, {"score": [1, 2]}), "answers no scores"),
        ((200, {"scores": 3}), "answers no scores"),
        ((200, {"scores": [1.0]}), "answers 1 scores for 2 responses"),
        ((200, {"scores": [1.0, "good"]}), "not a list|must return a list of numbers.*'good'"),
        ((200, {"scores": [1.0, None]}), "must return a list of numbers.*None"),
        ((200, b'{"scores": [1.0, 1e39]}'), r"is 1e\+39 for prompt 'second'.*largest number of float32"),
        ((200, b'{"scores": [NaN, 1]}'), "is nan for prompt 'first'"),
        ((401, "who are you"), "answers 401.*reward.url_token_variable"),
        ((404, b""), "answers 404, for prompt.*path of the URL"),
        ((302, "", {"Location": "http://elsewhere/"}), "leads elsewhere.*'http://elsewhere/'"),
    ],
)
def test_what_no_other_try_would_mend_is_told_at_once(serve, reply, message):
    server = serve(lambda number, request: reply)
    with pytest.raises(UserError, match=f"reward score.*({message})") as error:
        remote(server)(make_batch())
    assert len(server.requests) == 1 and "\n" not in str(error.value)


def test_a_server_that_is_silent_or_drips_is_left_behind(serve):
    release = threading.Event()
    server = serve(lambda number, request: (200, release.wait(20) or [0, 0]))
    started = time.monotonic()
    with pytest.raises(UserError, match="gave no answer within 0.1 s after 2 tries.*raise reward.timeout"):
        remote(server, timeout=0.1, retries=1)(make_batch())
    assert time.monotonic() - started < 5
    release.set()


def test_who_counts_the_seconds_of_a_silent_server_makes_no_difference(monkeypatch):
    def late(*arguments, **named):
        raise requests.exceptions.ReadTimeout("Read timed out. (read timeout=5)")

    monkeypatch.setattr(requests.Session, "post", late)
    reward = RemoteReward("http://localhost:1/score", RewardConfig(timeout=5, retries=1))
    with pytest.raises(UserError, match="gave no answer within 5 s after 2 tries.*raise reward.timeout"):
        reward(make_batch())


def test_where_nothing_listens(serve):
    server = serve(good)
    server.close()
    with pytest.raises(UserError, match="cannot be asked .*after 2 tries.*start the server"):
        remote(server, retries=1)(make_batch())


def test_a_key_in_the_query_of_a_url_is_sent_and_never_shown(serve, capfd):
    server = serve(good)
    server.url += "?key=sesame-17&more"
    assert remote(server)(make_batch()).tolist() == [3.0, 9.0]
    server.close()
    with pytest.raises(UserError, match="/v1/score cannot be asked") as error:
        remote(server, retries=1)(make_batch())
    assert "sesame" not in str(error.value) + capfd.readouterr().err


def of_its_own_authority(folder):
    """A server's context with a certificate that vouches for itself, and the file of that."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
        + ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)],
        capture_output=True,
    )
    if made.returncode:
        pytest.skip("openssl makes no certificate here")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate


def test_a_certificate_that_nobody_vouches_for_is_refused(serve, tmp_path):
    context, _ = of_its_own_authority(tmp_path)
    server = serve(good, context)
    with pytest.raises(UserError, match="is not who it says it is.*REQUESTS_CA_BUNDLE"):
        remote(server)(make_batch())
    assert server.requests == []


def test_a_certificate_of_a_named_authority_is_taken(serve, tmp_path, monkeypatch):
    context, certificate = of_its_own_authority(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    assert remote(serve(good, context))(make_batch()).tolist() == [3.0, 9.0]


def test_the_token_is_sent_and_never_shown(serve, tmp_path, monkeypatch, capfd):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine localhost login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))  # requests would send that instead
    monkeypatch.setenv("SCORE_TOKEN", "sesame-17")
    server = serve(lambda number, request: (503, {"you sent": "Bearer sesame-17"}))
    with pytest.raises(UserError) as error:
        remote(server, read_token("SCORE_TOKEN"), url_token_variable="SCORE_TOKEN", retries=1)(make_batch())
    assert [headers["Authorization"] for headers in server.headers] == ["Bearer sesame-17"] * 2
    assert "Bearer ***" in str(error.value) and "sesame" not in str(error.value) + capfd.readouterr().err


def test_a_token_that_is_not_there(monkeypatch):
    monkeypatch.delenv("SCORE_TOKEN", raising=False)
    assert read_token(None) is None
    with pytest.raises(UserError, match="reward.url_token_variable names an environment variable that is empty"):
        read_token("SCORE_TOKEN")


@pytest.mark.parametrize("token", ["sesame\n17", "\u201csesame-17\u201d", "sesame\t17"])
def test_a_token_that_no_header_can_hold_is_refused_and_not_shown(monkeypatch, token):
    monkeypatch.setenv("SCORE_TOKEN", token)
    with pytest.raises(UserError, match="url_token_variable names an environment variable with .*alone") as error:
        read_token("SCORE_TOKEN")
    assert "sesame" not in str(error.value)


def test_servers_are_waited_for_while_functions_compute(serve):
    """Both servers have the batch before the function begins, and it computes before they answer."""
    asked, computed = threading.Barrier(3, timeout=20), threading.Event()

    def waits(number, request):
        asked.wait()
        assert computed.wait(20)
        return good(number, request)

    def function(prompts, responses):
        asked.wait()
        computed.set()
        return [1.0] * len(responses)

    servers = serve(waits), serve(waits)
    rewards = [remote(servers[0]), TextReward("here", function), remote(servers[1])]
    scores, means = total_scores(rewards, (1.0, 100.0, 10.0), make_batch())
    assert scores.tolist() == [3 + 100 + 30, 9 + 100 + 90]
    assert means == {"reward/score": 6.0, "reward/here": 1.0}

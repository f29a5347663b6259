"""A reward at a URL: posts batches of prompts, responses and columns as JSON, several at a time.

Request:  {"prompts": [...], "responses": [...], "columns": {name: [...]}}
Reply:    {"scores": [...]} or the bare list, one score a response
"""

import http.cookiejar
import json
import os
import re
import sys
from collections.abc import Callable
from urllib.parse import urlsplit

import numpy as np
import requests
from tqdm import tqdm

from tfppo.config import RewardConfig
from tfppo.errors import UserError
from tfppo.rewards.batch import Batch
from tfppo.rewards.calling import Overdue, Patience, persist, start_all
from tfppo.rewards.checking import checked_scores

RETRIES, TIMEOUT = 6, 60.0  # where the settings say nothing: about a minute of waits, and a minute an answer
_LONGEST_ASKED = 600.0  # seconds of Retry-After that are waited for
_MAY_PASS = {408, 425, 429, *range(500, 600)}  # statuses
_REMEDIES = {
    401: "check the token in the environment variable that reward.url_token_variable names",
    403: "check the token in the environment variable that reward.url_token_variable names",
    404: "check the path of the URL",
    405: "the server must take POST there",
    413: "lower reward.url_batch_size",
}


class _Failure(Exception):
    """A POST without scores. `remedy`: what to do; `wait`: seconds until another try, None where it is of no use."""

    def __init__(self, reason, remedy, wait=None):
        super().__init__(reason)
        self.remedy, self.wait = remedy, wait


class _Bearer(requests.auth.AuthBase):
    """Sends the token, if there is one, and nothing that a .netrc file says."""

    def __init__(self, token):
        self._token = token

    def __call__(self, request):
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class RemoteReward:
    """Scores responses by a server.

    Args: token: sent as `Authorization: Bearer TOKEN`, and shown nowhere.
    """

    def __init__(self, url: str, config: RewardConfig, token: str | None = None):
        parts = urlsplit(url)
        self.name = os.path.basename(parts.path.rstrip("/")) or parts.hostname or "url"
        self._url, self._config, self._token = url, config, token
        self._shown = f"{parts.scheme}://{parts.netloc}{parts.path}"  # without a query, which may hold a key
        self._patience = Patience(
            RETRIES if config.retries is None else config.retries, TIMEOUT if config.timeout is None else config.timeout
        )
        self._session = requests.Session()
        # Threads share the session: its connections may be, cookies are not kept.
        self._session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        self._session.auth = _Bearer(token)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=config.url_concurrency))

    def __call__(self, batch: Batch) -> np.ndarray:
        """Scores [B]. Raises: UserError where the server gives none."""
        return self.start(batch)()

    def start(self, batch: Batch) -> Callable[[], np.ndarray]:
        """Begins to post a batch. Returns: a function that waits for the scores [B]."""
        size = self._config.url_batch_size
        starts = range(0, len(batch.responses), size)
        bodies = [self._body(batch, slice(start, start + size)) for start in starts]
        finish = start_all(self._post, zip(starts, bodies, strict=True), self._config.url_concurrency)

        def wait():
            try:
                scores = [score for part in finish(None) for score in part]
            except _Refused as refused:
                row, tries, cause = refused.args
                again = f" after {tries} tries" if tries > 1 else ""
                raise UserError(
                    self._without_token(
                        f"reward {self.name}: {self._shown} {cause}{again}, for {batch.quoted(row)}; {cause.remedy}"
                    )
                ) from cause
            return checked_scores(self.name, scores, batch)

        return wait

    def _body(self, batch, rows):
        """The JSON of some rows, and how many they are."""
        columns = {name: values[rows] for name, values in batch.columns.items()}
        content = {"prompts": batch.texts[rows], "responses": batch.responses[rows], "columns": columns}
        try:
            return json.dumps(content, default=_plain, allow_nan=False).encode(), len(content["responses"])
        except (TypeError, ValueError) as error:
            raise UserError(
                f"reward {self.name}: the columns of {batch.quoted(rows.start)} cannot be sent as JSON ({error}); "
                f"leave what is neither text nor number out of the data"
            ) from error

    def _post(self, item):
        start, (body, rows) = item
        tries = 0

        def attempt():
            nonlocal tries
            tries += 1
            return self._answer(body, rows)

        try:
            return persist(attempt, self._patience, wait_asked=_wait_asked, announce=self._announce)
        except Overdue as error:
            failure = _Failure(f"gave no answer within {self._patience.timeout:g} s", "raise reward.timeout")
            raise _Refused(start, tries, failure) from error
        except _Failure as failure:
            raise _Refused(start, tries, failure) from failure

    def _answer(self, body, rows):
        """The scores of one POST. Raises: _Failure; Overdue."""
        try:
            reply = self._session.post(
                self._url,
                data=body,
                headers={"Content-Type": "application/json", "Accept": "application/json"},
                timeout=self._patience.timeout,
                allow_redirects=False,  # a POST that is led elsewhere becomes a GET
            )
        except requests.exceptions.ReadTimeout as error:  # the same seconds, counted by the connection
            raise Overdue from error
        except requests.exceptions.RequestException as error:
            raise _connection_failure(error) from error
        if reply.is_redirect:
            raise _Failure(
                f"answers {reply.status_code} and leads elsewhere", f"name {reply.headers['location']!r:.200}"
            )
        if reply.status_code != 200:
            wait = _asked_by(reply) if reply.status_code in _MAY_PASS else None
            remedy = _REMEDIES.get(reply.status_code, "look at the server's own log")
            raise _Failure(f"answers {reply.status_code}{_excerpt(reply)}", remedy, wait)
        try:
            scores = reply.json()
            scores = scores["scores"] if isinstance(scores, dict) else scores
            if not isinstance(scores, list):
                raise TypeError
        except (ValueError, KeyError, TypeError) as error:
            raise _Failure(f"answers no scores{_excerpt(reply)}", 'it must answer {"scores": [...]} as JSON') from error
        if len(scores) != rows:
            raise _Failure(f"answers {len(scores)} scores for {rows} responses", "it must answer one a response")
        return scores

    def _announce(self, error, seconds):
        reason = error if isinstance(error, _Failure) else f"gave no answer within {self._patience.timeout:g} s"
        line = f"reward {self.name}: {self._shown} {reason}; asking again in {seconds:g} s"
        tqdm.write(self._without_token(line), file=sys.stderr)

    def _without_token(self, line):
        return line.replace(self._token, "***") if self._token else line


class _Refused(Exception):
    """What ended the POST of some rows. Args: its first row, how often it was tried, the last _Failure."""


def is_url(name: str) -> bool:
    """Whether the name of a reward function is a URL."""
    return name.startswith(("http://", "https://"))


def read_token(variable: str | None) -> str | None:
    """The token in an environment variable. Raises: UserError where there is none, or none that a header can hold."""
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise UserError(
            "reward.url_token_variable names an environment variable that is empty or not set; export it (the setting "
            "is the variable's name, not the token)"
        )
    if not (token.isascii() and token.isprintable()):
        raise UserError(
            "reward.url_token_variable names an environment variable with a character that no header can hold, such as "
            "a line break; export the token alone"
        )
    return token


def _wait_asked(error):
    return error.wait if isinstance(error, _Failure) else 0.0 if isinstance(error, Overdue) else None


def _asked_by(reply):
    """Seconds that a server asks for in Retry-After; a date, which is rare, counts as 0."""
    seconds = reply.headers.get("Retry-After", "")
    return min(float(seconds), _LONGEST_ASKED) if seconds.strip().isdecimal() else 0.0


def _connection_failure(error):
    reason = re.sub(r"\?\S+", "", " ".join(str(error).split()))[-300:]  # without the query of the URL
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        remedy = (
            "give it a certificate that is valid for its name; REQUESTS_CA_BUNDLE names a file of further authorities"
        )
        return _Failure(f"is not who it says it is ({reason})", remedy)
    passing = not isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema)
    return _Failure(f"cannot be asked ({type(error).__name__}: {reason})", "start the server", 0.0 if passing else None)


def _excerpt(reply):
    text = " ".join(reply.text.split())
    return f" ({text:.200})" if text else ""


def _plain(value):
    """What JSON does not know but datasets have."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is no JSON")

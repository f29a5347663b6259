"""Which of several workers this process is, as the variable TF_CONFIG says; only the first one, the chief, writes.

A worker is a process, as a rule one on each machine. It starts no TensorFlow, so that a mistake in TF_CONFIG is told at
once.
"""

import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec

from tfppo.errors import UserError

VARIABLE = "TF_CONFIG"
_EXAMPLE = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
_TASK = "worker"

Arguments = ParamSpec("Arguments")


@dataclass(frozen=True)
class Cluster:
    """The workers of a run, and which of them this process is. Worker 0 is the chief."""

    addresses: tuple[str, ...] = ("",)
    index: int = 0

    @property
    def count(self) -> int:
        """The number of workers."""
        return len(self.addresses)

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.index == 0


def this_cluster() -> Cluster:
    """The cluster that TF_CONFIG names; one worker where it is not set. Raises: UserError where it makes no sense."""
    return _read(os.environ.get(VARIABLE, ""))


@functools.lru_cache(maxsize=8)
def _read(text: str) -> Cluster:
    if not text.strip():
        return Cluster()
    try:
        config = json.loads(text)
    except ValueError as error:
        raise _mistake(f"is no JSON ({error})") from error
    tasks = _part(config, "cluster", "the addresses of all workers")
    others = sorted(tasks.keys() - {_TASK})
    if others:
        raise _mistake(f"has {others[0]!r} in its cluster; all take part in the same way here, as {_TASK!r}")
    addresses = tasks.get(_TASK, [])
    if not isinstance(addresses, list) or not all(_is_address(one) for one in addresses):
        raise _mistake(f"has no list of HOST:PORT for {_TASK!r}, but {addresses!r:.100}")
    twice = sorted({one for one in addresses if addresses.count(one) > 1})
    if twice:
        raise _mistake(f"has the address {twice[0]!r} for more than one worker")
    if not addresses:
        raise _mistake("has no worker in its cluster")
    task = _part(config, "task", "which worker this process is")
    kind, index = task.get("type"), task.get("index")
    if kind != _TASK:
        raise _mistake(f"has the task type {kind!r}; it must be {_TASK!r}")
    if type(index) is not int or not 0 <= index < len(addresses):
        raise _mistake(f"has the task index {index!r}, but the workers are 0 to {len(addresses) - 1}")
    return Cluster(tuple(addresses), index)


def _part(config: Any, name: str, meaning: str) -> dict:
    part = config.get(name) if isinstance(config, dict) else None
    if not isinstance(part, dict):
        raise _mistake(f"has no {name!r}, {meaning}")
    return part


def _is_address(text: Any) -> bool:
    host, _, port = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    return bool(host) and port.isdecimal() and 0 < int(port) < 2**16


def _mistake(what: str) -> UserError:
    return UserError(f"the variable {VARIABLE} {what}; write it like {_EXAMPLE}, or unset it for one machine")


def chief_writes(function: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """A function that writes for all workers: it does nothing in those that are not the chief."""

    @functools.wraps(function)
    def write(*arguments: Arguments.args, **named: Arguments.kwargs) -> None:
        if this_cluster().is_chief:
            function(*arguments, **named)

    return write


def require_one_worker(command: str) -> None:
    """Raises UserError where TF_CONFIG names several workers, for a command that one process runs."""
    count = this_cluster().count
    if count > 1:
        raise UserError(
            f"the variable {VARIABLE} names {count} workers, but {command} is work for one process; unset {VARIABLE} "
            f"for it"
        )

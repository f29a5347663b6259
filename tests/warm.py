"""Processes that have TensorFlow imported already: the binaries run in forks of one that did nothing else.

Importing TensorFlow takes five seconds of a core, and dozens of tests run a binary. A fork has its own arguments,
environment, streams and signals, and runs the same file as `python FILE` would.
"""

import functools
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import threading
from multiprocessing import connection
from pathlib import Path

# An exit code can be read once: starting a process reads those of all others that have ended, in whichever thread.
_LOCK = threading.Lock()
_PRELOADED = [
    "tensorflow",
    "keras",
    "tfppo.stages.language_model",
    "tfppo.stages.ppo",
    "tfppo.stages.reward_model",
    "tfppo.stages.evaluate",
    "tfppo.stages.generate",
    "tfppo.stages.export",
]


@functools.cache
def _context():
    # As tfppo.stages.start sets them before it imports TensorFlow.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _run_file(argv, environment, cwd, streams, as_traced):
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv, sys.path[0] = argv, os.path.dirname(argv[0])
    sys.modules["tensorflow"].config.optimizer.set_experimental_options({"disable_meta_optimizer": as_traced})
    runpy.run_path(argv[0], run_name="__main__")


class WarmProcess:
    """As much of `subprocess.Popen` as the tests use.

    Args: argv: a Python file and its arguments; as_traced: graphs run without TensorFlow's rewriting of them (Grappler)
        as in the tests' own process, not as a user's.
    """

    def __init__(self, argv, *, env, cwd, as_traced=False):
        self._folder = tempfile.TemporaryDirectory()
        self._streams = [Path(self._folder.name) / name for name in ("out", "err")]
        for stream in self._streams:
            stream.touch()
        arguments = (argv, env, str(cwd), list(map(str, self._streams)), as_traced)
        self._process = _context().Process(target=_run_file, args=arguments)
        with _LOCK:
            self._process.start()

    def poll(self):
        with _LOCK:
            return self._process.exitcode

    @property
    def returncode(self):
        return self.poll()

    def send_signal(self, number):
        os.kill(self._process.pid, number)

    def communicate(self, timeout):
        connection.wait([self._process.sentinel], timeout)
        assert self.poll() is not None, f"no end after {timeout} s"
        with self._folder:
            return tuple(stream.read_text() for stream in self._streams)

"""Commands of `batchray` in child processes that start at once: forked from a process that has imported it all.

Most of the CPU of a short command, and of a server's start, is its imports: over a second each time.  A child is a
process of its own in all other respects.  A process that uses Ray starts from nothing, by `subprocess`: Ray's threads
do not end well in a forked one.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import resource
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[1]
# The imports of a server and of a command with the local executor.
_MODULES = (
    "batchray.callbacks.transport",
    "batchray.cli.main",
    "batchray.jobs.start",
    "batchray.server.app",
    "batchray.views.progress_display",
)


class PreloadedProcess:
    """A child process, with the methods of `subprocess.Popen` that tests use."""

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        cwd: Path,
        streams: Sequence[int],
        limits: Mapping[int, int] | None = None,
    ) -> None:
        """Start `python -m batchray` with these arguments and standard streams.

        `limits` are those of its resources, by their numbers in `resource`.
        """
        ended, told = os.pipe()
        asked = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "cwd": str(cwd),
            "limits": list((limits or {}).items()),
        }
        self.returncode: int | None = None
        self._ended, self._lock = ended, threading.Lock()
        try:
            self.pid = _loader().start(asked, [*streams, told])
        finally:
            os.close(told)

    def poll(self) -> int | None:
        """Return its exit status; None while it runs."""
        return self._status(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends, and return its exit status."""
        if (status := self._status(timeout)) is None:
            raise subprocess.TimeoutExpired("batchray", timeout or 0.0)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def _status(self, timeout: float | None) -> int | None:
        waiting = select.poll()
        waiting.register(self._ended, select.POLLIN)
        if self.returncode is None and waiting.poll(None if timeout is None else timeout * 1000):
            with self._lock:  # several threads may wait for the end
                if self.returncode is None:
                    told = os.read(self._ended, 16)
                    assert told, "the process that forks is gone"
                    self.returncode = int(told)
        return self.returncode

    def __enter__(self) -> PreloadedProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.wait()
        os.close(self._ended)


class _Loader:
    """The process that has imported `batchray`, and forks.  It ends with this one."""

    def __init__(self) -> None:
        self._socket, given = socket.socketpair()
        command = [sys.executable, "-m", "tests.preloaded", str(given.fileno())]
        variables = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._lock = threading.Lock()
        self._process = subprocess.Popen(command, env=variables, pass_fds=[given.fileno()])
        given.close()
        atexit.register(self._close)

    def start(self, asked: Mapping[str, Any], descriptors: Sequence[int]) -> int:
        """Fork a child with these descriptors: its standard streams, and where its exit status goes."""
        message = json.dumps(asked).encode()
        with self._lock:
            socket.send_fds(self._socket, [len(message).to_bytes(8, "big")], descriptors)
            self._socket.sendall(message)
            return int.from_bytes(_read(self._socket, 8), "big")

    def _close(self) -> None:
        self._socket.close()
        self._process.wait()


@functools.cache
def _loader() -> _Loader:
    return _Loader()


def _read(connection: socket.socket, n_bytes: int) -> bytes:
    """Read that many bytes.  Raises EOFError if the other process is gone."""
    read = b""
    while len(read) < n_bytes:
        if not (more := connection.recv(n_bytes - len(read))):
            raise EOFError("the other process is gone")
        read += more
    return read


def _fork_until_closed(control: socket.socket) -> list[str] | None:
    """Fork a child for each start that is asked for; return its arguments in a child, and None when the asker ends."""
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not control:
                    _send_status(selector, key)
                    continue
                header, descriptors, _, _ = socket.recv_fds(control, 8, 4)
                if not header:
                    return None
                asked = json.loads(_read(control, int.from_bytes(header, "big")))
                pid = os.fork()
                if pid == 0:
                    others = [fd for each in selector.get_map().values() if each.data for fd in (each.fd, each.data[1])]
                    control.close()
                    _become(asked, descriptors, others)
                    return list(asked["arguments"])
                for each in descriptors[:3]:
                    os.close(each)
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, descriptors[3]))
                control.sendall(pid.to_bytes(8, "big"))


def _send_status(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    selector.unregister(key.fileobj)
    pid, told = key.data
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(key.fd)
    try:
        os.write(told, str(status).encode())
    except BrokenPipeError:  # a test that does not ask
        return
    finally:
        os.close(told)


def _become(asked: Mapping[str, Any], descriptors: Sequence[int], of_others: Sequence[int]) -> None:
    """Take the streams, the environment and the directory of a new process; close what belongs to other children."""
    for number, each in enumerate(descriptors[:3]):
        os.dup2(each, number)
    for each in (*descriptors, *of_others):
        os.close(each)
    for number, limit in asked["limits"]:
        resource.setrlimit(number, (limit, limit))
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["cwd"])
    added = asked["environment"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [asked["cwd"], *(each for each in added if each not in ("", *sys.path))]
    signal.signal(signal.SIGINT, signal.default_int_handler)


def main() -> None:
    """Import, and fork until the process that has started this one is gone."""
    control = socket.socket(fileno=int(sys.argv[1]))
    for module in _MODULES:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if (arguments := _fork_until_closed(control)) is not None:
        sys.argv[1:] = arguments
        runpy.run_module("batchray", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

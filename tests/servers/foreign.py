"""A model server that others wrote: a process group on a port of loopback, which a test kills and starts again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.polling import until

_START_S = 150
"""LiteLLM takes ten seconds of CPU for its imports."""


def program(name: str) -> str:
    """Return the path of a program in the environment that FOREIGN_SERVERS names; fails if it is not there."""
    directory = os.environ.get("FOREIGN_SERVERS", "")
    path = Path(directory).absolute() / "bin" / name
    if not directory or not path.is_file():
        pytest.fail(f"FOREIGN_SERVERS has to name an environment with {name}, as .ci/run makes it; it is {directory!r}")
    return str(path)


def free_port() -> int:
    """Return a port that nothing listens on now: these servers do not tell which one they took."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class ForeignServer:
    """A server that runs `command` with a port at its end; it is ready if the path `health` answers with status 200."""

    def __init__(self, command: Sequence[str], health: str, log: Path, environment: Mapping[str, str]) -> None:
        self._port = free_port()
        self._command = [*command, str(self._port)]
        self._health, self._log, self._environment = health, log, dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        until(self._is_ready, _START_S)

    def kill(self) -> None:
        """Kill it and its children, as a power cut would."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()[-4000:]
        try:
            with urllib.request.urlopen(f"{self.url}{self._health}", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextmanager
def foreign_server(
    command: Sequence[str], directory: Path, *, health: str, **environment: str
) -> Iterator[ForeignServer]:
    """Start a server with only these variables and the PATH, yield it when it is ready, and kill it at the end."""
    variables = {"PATH": os.environ["PATH"], "HOME": str(directory), **environment}
    server = ForeignServer(command, health, directory / "server.log", variables)
    try:
        server.start()
        yield server
    finally:
        server.kill()

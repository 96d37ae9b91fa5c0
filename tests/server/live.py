"""A live server: `batchray serve` in a subprocess, on a free port."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart" / "agents.yaml"


class ServerDiedError(AssertionError):
    """A server ended before it listened."""

    def __init__(self, status: int, log: str) -> None:
        super().__init__(status, log)
        self.status = status


class LiveServer:
    """A running server.  `log` is what it wrote to standard error so far."""

    def __init__(self, process: subprocess.Popen[str], url: str, data_dir: Path) -> None:
        self.process, self.url, self.data_dir = process, url, data_dir
        self._lines: list[str] = []
        assert process.stderr is not None
        self._reader = threading.Thread(target=self._lines.extend, args=(process.stderr,), daemon=True)
        self._reader.start()
        threading.Thread(target=_drain, args=(process.stdout,), daemon=True).start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return "".join(self._lines)

    def kill(self) -> None:
        """Kill it, as a power cut would."""
        self.process.kill()
        self.process.wait(30)

    def stop(self, timeout: float = 60) -> int:
        """Send SIGTERM, as a process manager does, and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout)
        self._reader.join(timeout)
        return status


def _drain(stream: IO[str]) -> None:
    """Read and discard a stream, so that its writer never blocks."""
    for _ in stream:
        pass


@contextmanager
def live_server(
    data_dir: Path,
    *options: str,
    agents: Path | None = QUICKSTART,
    executor: str = "local",
    max_files: str | None = None,
    **environment: str,
) -> Iterator[LiveServer]:
    """Start a server, yield it when it listens, and end it.

    `max_files` is its limit of open files.  `environment` is added to this process's own.
    """
    command = [sys.executable, "-m", "batchray", "serve", "--port", "0", "--data-dir", str(data_dir)]
    command += ["--executor", executor, *(("--agents", str(agents)) if agents else ()), *options]
    if max_files is not None:
        command = ["bash", "-c", f'ulimit -n {max_files} && exec "$0" "$@"', *command]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = next((line for line in process.stdout if " listens on " in line), "")  # Ray may print lines before it
        if not line:
            assert process.stderr is not None
            log = process.stderr.read()
            raise ServerDiedError(process.wait(), log)
        server = LiveServer(process, line.split()[3], data_dir)
        try:
            yield server
        finally:
            if process.poll() is None:
                process.kill()

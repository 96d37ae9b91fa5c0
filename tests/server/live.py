"""A live server: `batchray serve` in a subprocess, on a free port."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.preloaded import ROOT, PreloadedProcess

QUICKSTART = ROOT / "configs" / "quickstart" / "agents.yaml"


Process = PreloadedProcess | subprocess.Popen[bytes]


class ServerDiedError(AssertionError):
    """A server ended before it listened."""

    def __init__(self, status: int, log: str) -> None:
        super().__init__(status, log)
        self.status = status


class LiveServer:
    """A running server.  `log` is what it wrote to standard error so far."""

    def __init__(self, process: Process, out: IO[str], err: IO[str], url: str, data_dir: Path) -> None:
        self.process, self.url, self.data_dir = process, url, data_dir
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._lines.extend, args=(err,), daemon=True)
        self._reader.start()
        threading.Thread(target=_drain, args=(out,), daemon=True).start()

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
    arguments = ["serve", "--port", "0", "--data-dir", str(data_dir), "--executor", executor]
    arguments += [*(("--agents", str(agents)) if agents else ()), *options]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    with _piped(arguments, variables, max_files, is_forked=executor == "local") as (process, out, err):
        line = next((line for line in out if " listens on " in line), "")  # Ray may print lines before it
        if not line:
            log = err.read()
            raise ServerDiedError(process.wait(), log)
        server = LiveServer(process, out, err, line.split()[3], data_dir)
        try:
            yield server
        finally:
            if process.poll() is None:
                process.kill()


@contextmanager
def _piped(
    arguments: Sequence[str], environment: Mapping[str, str], max_files: str | None, *, is_forked: bool
) -> Iterator[tuple[Process, IO[str], IO[str]]]:
    """Start `batchray` and yield it with its output and its errors; wait for its end."""
    process: Process
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    with open(out) as out_file, open(err) as err_file:
        try:
            if is_forked:
                limits = {resource.RLIMIT_NOFILE: int(max_files)} if max_files is not None else {}
                process = PreloadedProcess(arguments, environment, Path.cwd(), (0, out_end, err_end), limits)
            else:  # Ray does not end well in a forked process
                command = [sys.executable, "-m", "batchray", *arguments]
                process = subprocess.Popen(command, env=environment, stdout=out_end, stderr=err_end)
        finally:
            os.close(out_end)
            os.close(err_end)
        with process:
            yield process, out_file, err_file

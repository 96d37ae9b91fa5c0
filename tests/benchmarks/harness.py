"""Shared by the benchmarks: a provider in a process of its own, and the CPU time and memory of process trees."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.processes import command_of, descendants, name_of, named


@contextlib.contextmanager
def provider(tokens: int = 50, latency_s: float = 0.0) -> Iterator[str]:
    """Run the loopback provider in a subprocess; yields its base URL."""
    command = [sys.executable, "-m", "tests.provider_server", "--port", "0", "--tokens", str(tokens)]
    with subprocess.Popen([*command, "--latency", str(latency_s)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.terminate()


@contextlib.contextmanager
def data_dir() -> Iterator[Path]:
    """Yield a data directory that is removed afterwards; Ray keeps its files there too."""
    with tempfile.TemporaryDirectory(prefix="br") as directory:
        os.environ["RAY_TMPDIR"] = directory
        try:
            yield Path(directory) / "data"
        finally:
            import batchray

            batchray.shutdown()
            del os.environ["RAY_TMPDIR"]


class TreeCpu:
    """CPU seconds of this process and all its descendants: driver, lanes, job actor, raylet, GCS."""

    def __init__(self, *, without: int | None = None) -> None:
        self._without = without
        self._start = self._read()

    def _read(self) -> dict[int, float]:
        processes = [psutil.Process(), *descendants()]
        seconds = {}
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.pid != self._without and "provider_server" not in " ".join(command_of(process)):
                    times = process.cpu_times()
                    seconds[process.pid] = times.user + times.system
        return seconds

    def spent(self) -> dict[str, float]:
        """Return CPU seconds since the start, by kind of process."""
        totals = {"driver": 0.0, "lanes": 0.0, "ray": 0.0}
        for pid, seconds in self._read().items():
            totals[_kind(pid)] += seconds - self._start.get(pid, 0.0)
        return totals


def _kind(pid: int) -> str:
    if pid == os.getpid():
        return "driver"
    with contextlib.suppress(psutil.NoSuchProcess):
        return "lanes" if name_of(psutil.Process(pid)).startswith("ray::Lane") else "ray"
    return "ray"


def requests(n: int, text: str = "Say something, please.") -> list[dict[str, Any]]:
    """Return n requests to the agent `a`."""
    return [{"agent_id": "a", "input": f"{index} {text}"} for index in range(n)]


def agents(base_url: str, **fields: Any) -> dict[str, Any]:
    """Return `agents=` and `providers=` for one agent `a` of the loopback provider."""
    local = {"protocol": "openai", "base_url": base_url}
    return {"agents": [{"id": "a", "model": "local/m", **fields}], "providers": {"local": local}}


def report(lines: list[str], *, is_held: bool) -> None:
    """Print a benchmark's lines; raises AssertionError if its limit is not held."""
    print("\n".join(lines), flush=True)
    assert is_held, lines[-1]


def anonymous_mb(pid: int) -> float:
    """Return the anonymous memory of a process and its children, in MB."""
    total_kb = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            with contextlib.suppress(OSError, IndexError):  # it has ended in between
                total_kb += int(Path(f"/proc/{process.pid}/status").read_text().partition("RssAnon:")[2].split()[0])
    return total_kb / 1024


def peak_kb(pid: int) -> int:
    """Return the most memory that a process has had, in kB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


class JobActorPeak(threading.Thread):
    """Watches the job actor, which ends with its job."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_kb, self._is_over = 0, threading.Event()

    def run(self) -> None:
        """Look at it five times a second."""
        while not self._is_over.wait(0.2):
            for process in named("ray::JobActor", descendants()):
                with contextlib.suppress(FileNotFoundError, IndexError):  # it has just ended
                    self.peak_kb = max(self.peak_kb, peak_kb(process.pid))

    def stop(self) -> int:
        """Return its peak in kB; 0 if there was none."""
        self._is_over.set()
        self.join()
        return self.peak_kb


def when_input_ends(call: Callable[[], None]) -> None:
    """Call when standard input ends."""
    sys.stdin.read()
    call()

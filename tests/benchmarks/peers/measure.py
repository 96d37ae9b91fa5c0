"""Measures the runs of one contender, in a process of its own, with the clock, its CPU time and the mock's ledger."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple, Self

import psutil

from tests.benchmarks.peers.environments import Peer
from tests.benchmarks.peers.works import Work
from tests.processes import command_of, descendants

_ROOT = Path(__file__).parents[3]
_WARM_UP = 64
"""Requests of a work, run before it and not measured: code is imported, a cluster and its workers are up."""


class Measured(NamedTuple):
    """One run of a work; times in seconds."""

    wall_s: float
    cpu_s: float
    """Of the contender's processes, without the mock."""
    mock_cpu_s: float
    n_right: int
    """Requests with the right answer."""
    n_calls: int
    """Model calls that the mock has seen."""
    before_s: float
    """From the start to the first model call."""
    after_s: float
    """From the last answer to the end."""
    between_s: float
    """From the first model call to the last answer."""
    p50_s: float | None
    """Of the requests that are not stragglers, as the contender itself measures them."""
    slowest_s: float | None
    """The longest of the stragglers, likewise."""


class Contender:
    """The process of a contender, in the environment of this interpreter."""

    def __init__(self, peer: Peer, python: str) -> None:
        command = [python, "-m", f"tests.benchmarks.peers.{peer.module}", *peer.arguments]
        environment = os.environ | {"PYTHONPATH": str(_ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close its standard input, which ends it."""
        self._process.communicate()

    def measure(self, work: Work) -> Measured:
        """Warm it up, and run a work."""
        self._run(work._replace(n=min(work.n, _WARM_UP), concurrency=_WARM_UP, slow_s=0.0))
        _ledger(work, "DELETE")
        cpu_s, mock_cpu_s = self._cpu_s(), _mock_cpu_s()
        done = self._run(work)
        cpu_s, mock_cpu_s = self._cpu_s() - cpu_s, _mock_cpu_s() - mock_cpu_s
        calls = [call for call in _ledger(work, "GET")["calls"] if call["text"]]  # Curator asks for limits without one
        _ledger(work, "DELETE")
        first, last = _span(work, calls)
        return Measured(
            done["ended"] - done["started"],
            cpu_s,
            mock_cpu_s,
            done["n_right"],
            len(calls),
            first - done["started"],
            done["ended"] - last,
            last - first,
            done["p50_s"],
            done["slowest_s"],
        )

    def _run(self, work: Work) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(work) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"{self._process.args!r} has ended with status {self._process.wait()}"
        result: dict[str, Any] = json.loads(line)
        return result

    def _cpu_s(self) -> float:
        return sum(map(_spent_s, (psutil.Process(self._process.pid), *descendants(self._process.pid))))


def _spent_s(process: psutil.Process) -> float:
    """CPU seconds of a process and of its children that have ended; zero if it has ended itself."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)


def _mock_cpu_s() -> float:
    return sum(_spent_s(each) for each in descendants() if "tests.provider_server" in command_of(each))


def _ledger(work: Work, method: str) -> dict[str, Any]:
    request = urllib.request.Request(f"{work.base_url.removesuffix('/v1')}/ledger", method=method)
    with urllib.request.urlopen(request) as response:
        ledger: dict[str, Any] = json.load(response)
    return ledger


def _span(work: Work, calls: list[dict[str, Any]]) -> tuple[float, float]:
    """When the first call came in and the last answer went out, on the clock that all processes of a machine share."""
    answered = (call["at"] + (work.slow_s if "[[latency" in call["text"] else work.latency_s) for call in calls)
    return calls[0]["at"], max(answered)

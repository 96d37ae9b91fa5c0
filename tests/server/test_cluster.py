"""A server whose cluster dies: it is not ready, starts another cluster, and its jobs continue."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.polling import until
from tests.processes import descendants, is_alive, name_of
from tests.server.http_client import BATCHES, ask, n_done, status_of
from tests.server.live import LiveServer, live_server

pytestmark = pytest.mark.cluster


@pytest.fixture
def waiting(tmp_path: Path) -> Path:
    """Return an agents file with an agent that waits briefly."""
    file = tmp_path / "agents.json"
    agent = {"id": "wait", "run": "tests.cluster.agents:wait"}
    file.write_text(json.dumps({"agents": [agent]}))
    return file


@pytest.fixture
def server(tmp_path: Path, waiting: Path) -> Iterator[LiveServer]:
    options = ("--lanes", "1", "--max-in-flight", "20")
    with (
        tempfile.TemporaryDirectory(prefix="br", ignore_cleanup_errors=True) as short,  # Ray puts sockets there
        live_server(tmp_path / "data", *options, agents=waiting, executor="ray", RAY_TMPDIR=short) as running,
    ):
        yield running


def process_of(server: LiveServer, name: str) -> psutil.Process:
    """Wait until the server has exactly one process of this name, and return it."""

    def found() -> psutil.Process | None:
        processes = [each for each in descendants(server.pid) if name_of(each) == name]
        return processes[0] if len(processes) == 1 else None

    return until(found, 60)


def batch(n: int, seconds: float) -> dict[str, Any]:
    return {"requests": [{"agent_id": "wait", "input": str(seconds)}] * n}


def test_a_server_restarts_its_cluster_and_its_jobs_continue(server: LiveServer) -> None:
    job = ask(server.url, BATCHES, batch(300, 0.2))
    for share, name in ((20, "gcs_server"), (120, "raylet")):
        until(lambda share=share: n_done(server, job["id"]) > share, 60)  # type: ignore[misc]
        process_of(server, name).kill()
        until(lambda: status_of(server.url, "/readyz") == 503, 20)
        until(lambda: status_of(server.url, "/readyz") == 200, 60)
    until(lambda: status(server, job["id"]) not in ("created", "running"), 100)

    counts = ask(server.url, f"{BATCHES}/{job['id']}")["metadata"]["request_counts"]
    assert (counts["succeeded"], counts["total"]) == (300, 300)
    family = descendants(server.pid)
    assert server.stop() == 0
    until(lambda: not any(map(is_alive, family)), 90)
    assert "Traceback" not in server.log


def status(server: LiveServer, job_id: str) -> str:
    return str(ask(server.url, f"{BATCHES}/{job_id}")["status"])

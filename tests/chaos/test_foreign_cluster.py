"""A server on an external cluster that ends and does not come back."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.polling import seconds_until, until
from tests.preloaded import ROOT
from tests.server.http_client import BATCHES, ask, status_of
from tests.server.live import live_server

pytestmark = [pytest.mark.cluster, pytest.mark.chaos]


def test_a_server_that_lost_its_cluster_ends_with_an_error_and_its_successor_continues_the_jobs(
    tmp_path: Path, report: Callable[..., None]
) -> None:
    requests = [{"agent_id": "calculator", "input": f"What is {n} + 1?"} for n in range(5)]
    with tempfile.TemporaryDirectory(prefix="br", ignore_cleanup_errors=True) as short:
        environment = {**os.environ, "RAY_TMPDIR": short, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.chaos.cluster_script"]
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as cluster:
            assert cluster.stdout is not None
            address = cluster.stdout.readline().strip()
            options = ("--ray-address", address, "--lanes", "1")
            with live_server(
                tmp_path / "data", *options, executor="ray", RAY_TMPDIR=short, RAY_AUTH_MODE="disabled"
            ) as server:
                assert status_of(server.url, "/readyz") == 200
                for process in [*psutil.Process(cluster.pid).children(recursive=True), psutil.Process(cluster.pid)]:
                    process.kill()
                killed = time.monotonic()
                noticed_s = seconds_until(lambda: status_of(server.url, "/readyz") == 503, 20)
                job = ask(server.url, BATCHES, {"requests": requests})
                status = server.process.wait(120)
                ended_s = time.monotonic() - killed
                server.stop()
    assert status == 1, server.log
    assert "Ray is lost and could not be restarted" in server.log
    assert "Traceback" not in server.log
    with live_server(tmp_path / "data") as server:
        until(lambda: ask(server.url, f"{BATCHES}/{job['id']}")["status"] == "completed", 60)
    report(noticed_s=round(noticed_s, 1), ended_s=round(ended_s, 1))

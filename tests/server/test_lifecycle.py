"""The start and the end of a server, and the state of its jobs afterwards."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import batchray
from tests.chaos.supervised import check_no_process_is_left
from tests.polling import until
from tests.preloaded import ROOT
from tests.processes import descendants, named
from tests.server.http_client import BATCHES, ask, cancel, if_available, job_of, n_done, status_of
from tests.server.live import LiveServer, ServerDiedError, live_server
from tests.sqlite_lock import locked
from tests.timing import timed

GRACE_S = 2


@pytest.fixture
def waiting(tmp_path: Path) -> Path:
    """Return an agents file with an agent that waits."""
    file = tmp_path / "agents.json"
    file.write_text(json.dumps({"agents": [{"id": "wait", "run": "tests.cluster.agents:wait"}]}))
    return file


def batch(n: int, seconds: float) -> dict[str, Any]:
    return {"requests": [{"agent_id": "wait", "input": str(seconds)}] * n}


def succeeded(server: LiveServer, job_id: str) -> int:
    until(lambda: job_of(server, job_id)["status"] not in ("created", "running"), 100)
    return int(job_of(server, job_id)["metadata"]["request_counts"]["succeeded"])


def terminate(server: LiveServer, *, times: int = 1) -> tuple[float, float, int]:
    """Send SIGTERM; returns after how many seconds it was not ready and had ended, and its exit status."""
    started = time.monotonic()
    for _ in range(times):
        server.process.send_signal(signal.SIGTERM)
    until(lambda: not is_ready(server), 30)
    unready_s = time.monotonic() - started
    status = server.process.wait(60)
    return unready_s, time.monotonic() - started, status


def is_ready(server: LiveServer) -> bool:
    try:
        return status_of(server.url, "/readyz") == 200
    except (urllib.error.URLError, OSError):
        return False


def test_a_server_prints_its_address_and_exits_with_status_0(tmp_path: Path) -> None:
    with live_server(tmp_path / "data") as server:
        assert status_of(server.url, "/readyz") == 200
        assert ask(server.url, "/v1/health/") == {"version": batchray.__version__, "status": "ok"}
        assert server.stop() == 0
    assert "Traceback" not in server.log


@timed
@pytest.mark.parametrize(
    "executor", [pytest.param("local", marks=pytest.mark.full), pytest.param("ray", marks=pytest.mark.cluster)]
)
def test_a_terminated_server_leaves_its_jobs_to_the_next_one(
    slack: float, executor: str, tmp_path: Path, waiting: Path
) -> None:
    rng = random.Random(3)
    options, environment = ("--max-in-flight", "8", "--lanes", "1"), {"BATCHRAY_SHUTDOWN_GRACE_S": str(GRACE_S)}
    job_ids: list[str] = []
    for _ in range(2 if executor == "local" else 1):
        with live_server(tmp_path / "data", *options, agents=waiting, executor=executor, **environment) as server:
            job_ids.append(ask(server.url, BATCHES, batch(40, 0.2))["id"])
            before = [n_done(server, job_id) for job_id in job_ids]
            time.sleep(rng.uniform(0, 0.5))  # at a random moment
            unready_s, ended_s, status = terminate(server)
        assert status == 0, server.log
        assert unready_s < 1 * slack
        assert ended_s < GRACE_S + 5 * slack
        assert "Traceback" not in server.log
    with live_server(tmp_path / "data", *options, agents=waiting, executor="local", **environment) as server:
        assert all(n_done(server, job_id) >= n for job_id, n in zip(job_ids, before, strict=True))
        assert [succeeded(server, job_id) for job_id in job_ids] == [40] * len(job_ids)


@timed
def test_items_that_exceed_the_grace_period_are_left_to_the_next_server(
    slack: float, tmp_path: Path, waiting: Path
) -> None:
    with live_server(tmp_path / "data", agents=waiting, BATCHRAY_SHUTDOWN_GRACE_S="1") as server:
        job_id = ask(server.url, BATCHES, batch(3, 60))["id"]
        until(lambda: in_flight(server) == 3)
        unready_s, ended_s, status = terminate(server, times=2)
    assert (status, unready_s < 1 * slack, 1 < ended_s < 1 + 5 * slack) == (0, True, True), server.log
    with live_server(tmp_path / "data", agents=waiting) as server:
        until(lambda: in_flight(server) == 3)
        assert n_done(server, job_id) == 0
        # A request takes its place in the window before its attempt is committed.
        until(lambda: [item["attempts"] for item in ask(server.url, f"{BATCHES}/{job_id}/items")] == [2, 2, 2])
        assert cancel(server, job_id).status == 200


@timed
@pytest.mark.cluster
def test_a_suspended_lane_does_not_delay_the_exit(slack: float, tmp_path: Path, waiting: Path) -> None:
    environment = {"BATCHRAY_SHUTDOWN_GRACE_S": "1"}
    with live_server(tmp_path / "data", "--lanes", "1", agents=waiting, executor="ray", **environment) as server:
        job_id = ask(server.url, BATCHES, batch(3, 60))["id"]
        family = set(descendants(server.pid))
        stopped = named(("ray::Lane", "ray::Job"), family)
        until(lambda: in_flight(server) == 3)
        for process in stopped:
            process.suspend()
        _, ended_s, status = terminate(server)
        assert stopped
    assert (status, ended_s < 1 + 5 * slack) == (0, True), (ended_s, server.log)
    check_no_process_is_left(family, 30, with_agents=False)
    with live_server(tmp_path / "data", agents=waiting) as server:
        until(lambda: in_flight(server) == 3)
        assert cancel(server, job_id).status == 200


@timed
def test_a_locked_store_does_not_delay_the_exit(slack: float, tmp_path: Path, waiting: Path) -> None:
    with live_server(tmp_path / "data", agents=waiting, BATCHRAY_SHUTDOWN_GRACE_S="1") as server:
        job_id = ask(server.url, BATCHES, batch(40, 0.2))["id"]
        until(lambda: n_done(server, job_id) > 4)
        with locked(tmp_path / "data"):
            _, ended_s, status = terminate(server)
    assert (status, ended_s < 1 + 5 * slack) == (0, True), (ended_s, server.log)
    assert "Traceback" not in server.log
    with live_server(tmp_path / "data", agents=waiting) as server:
        assert succeeded(server, job_id) == 40


def test_a_cancel_that_cannot_be_stored_stops_the_job_but_is_not_confirmed(tmp_path: Path, waiting: Path) -> None:
    with live_server(tmp_path / "data", agents=waiting) as server:
        job_id = ask(server.url, BATCHES, batch(3, 60))["id"]
        until(lambda: in_flight(server) == 3)
        with locked(tmp_path / "data"):
            status, _, answer = cancel(server, job_id)
            assert (status, "ask again" in answer["detail"]) == (503, True)
            assert in_flight(server) == 0
        assert cancel(server, job_id).status == 200
        until(lambda: job_of(server, job_id)["status"] == "cancelled")


def in_flight(server: LiveServer) -> int:
    import urllib.request

    with urllib.request.urlopen(server.url + "/metrics", timeout=30) as answer:
        [line] = [line for line in answer.read().decode().splitlines() if line.startswith("batchray_in_flight ")]
    return int(float(line.split()[1]))


@timed
def test_a_termination_during_an_upload_accepts_nothing_of_the_batch(
    slack: float, tmp_path: Path, waiting: Path
) -> None:
    with live_server(tmp_path / "data", agents=waiting, BATCHRAY_SHUTDOWN_GRACE_S=str(GRACE_S)) as server:
        address = urlsplit(server.url)
        body = json.dumps(batch(50_000, 0)).encode()
        fields = (f"Host: {address.netloc}", "Content-Type: application/json", f"Content-Length: {len(body)}")
        head = "\r\n".join([f"POST {BATCHES} HTTP/1.1", *fields, "", ""])
        with socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=30) as upload:
            upload.sendall(head.encode() + body[: len(body) // 2])
            unready_s, ended_s, status = terminate(server)
    assert (status, unready_s < 1 * slack, ended_s < GRACE_S + 5 * slack) == (0, True, True), server.log
    with live_server(tmp_path / "data", agents=waiting) as server:
        assert ask(server.url, BATCHES) == []


@timed
def test_a_watcher_of_a_batch_does_not_delay_the_exit(slack: float, tmp_path: Path, waiting: Path) -> None:
    with live_server(tmp_path / "data", agents=waiting, BATCHRAY_SHUTDOWN_GRACE_S="1") as server:
        job_id = ask(server.url, BATCHES, batch(1, 60))["id"]
        address = urlsplit(server.url)
        with socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=30) as watcher:
            watcher.sendall(f"GET {BATCHES}/{job_id}/events HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
            assert b"200" in watcher.recv(64)
            _, ended_s, status = terminate(server)
    assert (status, ended_s < 1 + 5 * slack) == (0, True), server.log


@pytest.mark.parametrize(
    ("executor", "n_moments"),
    [
        ("local", 2),
        pytest.param("ray", 1, marks=pytest.mark.cluster),
        pytest.param("local", 6, marks=pytest.mark.full),
        pytest.param("ray", 4, marks=[pytest.mark.cluster, pytest.mark.full]),
    ],
)
def test_a_server_that_is_terminated_while_it_starts_ends_with_status_0(
    executor: str, n_moments: int, tmp_path: Path, waiting: Path
) -> None:
    rng = random.Random(7)
    for moment in range(n_moments):
        data_dir = tmp_path / f"data{moment}"
        command = [sys.executable, "-m", "batchray", "serve", "--port", "0", "--data-dir", str(data_dir)]
        command += ["--executor", executor, "--agents", str(waiting), "--lanes", "1"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            until(lambda data_dir=data_dir: (data_dir / "batchray.db").exists(), 60)  # type: ignore[misc]
            time.sleep(rng.uniform(0, 3 if executor == "ray" else 0.2))  # at a random moment
            family = set(descendants(process.pid))
            process.terminate()
            _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert b"Traceback" not in err
        check_no_process_is_left(family, 30, with_agents=False)


@timed
def test_a_small_job_starts_while_a_large_one_runs(slack: float, tmp_path: Path, waiting: Path) -> None:
    with live_server(tmp_path / "data", "--max-in-flight", "64", agents=waiting) as server:
        large_id = ask(server.url, BATCHES, batch(100_000, 0.5))["id"]
        until(lambda: in_flight(server) == 64, 60)
        small_id = ask(server.url, BATCHES, batch(10, 0))["id"]
        accepted = time.monotonic()
        until(lambda: n_done(server, small_id) > 0)
        assert time.monotonic() - accepted < 1 * slack
        assert succeeded(server, small_id) == 10
        assert job_of(server, large_id)["status"] == "running"


def test_single_runs_take_no_slot_of_batches(tmp_path: Path, waiting: Path) -> None:
    with live_server(tmp_path / "data", agents=waiting, BATCHRAY_MAX_RUNNING_JOBS="1") as server:
        asked = partial(ask, server.url, "/v1/agents/wait/messages", {"input": "60"})
        asking = threading.Thread(target=if_available, args=(asked,))
        asking.start()
        until(lambda: in_flight(server) == 1)
        assert succeeded(server, ask(server.url, BATCHES, batch(3, 0))["id"]) == 3
        server.kill()
        asking.join()


def test_an_address_in_use_is_reported_before_ray_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        options = ("--port", str(port))
        ray_files = tmp_path / "ray"
        with (
            pytest.raises(ServerDiedError) as died,
            live_server(tmp_path / "data", *options, executor="ray", RAY_TMPDIR=str(ray_files)),
        ):
            pass
    assert died.value.status == 1
    [line] = died.value.args[1].splitlines()
    assert line.startswith(f"batchray: cannot listen on 127.0.0.1:{port}: ")
    assert not ray_files.exists()

"""A server whose disk fills up, and the deletion of old jobs."""

from __future__ import annotations

import json
import resource
import shutil
import sqlite3
import threading
import time
import urllib.error
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.chaos.client import AGENTS, Client
from tests.chaos.judge import check_echoes
from tests.polling import until
from tests.server.http_client import BATCHES, ask, if_available, status_of
from tests.server.live import LiveServer, live_server
from tests.sqlite_lock import locked


@contextmanager
def full_disk(server: LiveServer, n_bytes: int = 200_000) -> Iterator[None]:
    """Limit the size of the server's files: the kernel refuses larger writes as it would on a full disk."""
    before = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        if server.process.poll() is None:
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, before)


def batch(n: int, size: int) -> dict[str, object]:
    return {"requests": [{"agent_id": "echo", "input": "x" * size}] * n}


def test_a_full_disk_gives_507_and_not_ready_until_there_is_space_again(tmp_path: Path) -> None:
    client = Client()
    with live_server(tmp_path / "data", "--max-in-flight", "8", agents=AGENTS) as server:
        assert client.post(server.url, 1000)
        with full_disk(server):
            with pytest.raises(urllib.error.HTTPError) as refused:
                ask(server.url, BATCHES, batch(200, 20_000))  # spooled to disk
            with refused.value as answer:
                assert answer.code == 507
                assert "is full; make room there" in json.load(answer)["detail"]
            until(lambda: status_of(server.url, "/readyz") == 503)  # the job's outcomes do not fit either
            assert status_of(server.url, BATCHES, batch(1, 10)) == 507
            assert ask(server.url, BATCHES)[0]["completed_at"] is None  # reading still works
        until(lambda: status_of(server.url, "/readyz") == 200)
        assert client.post(server.url, 10)
        check_echoes(client, server.url)
        assert "nothing new is accepted" in server.log or "jobs wait until it has space" in server.log
        assert server.stop() == 0
        assert "Traceback" not in server.log


def test_an_accepted_batch_is_found_by_its_key_on_a_full_disk_too(tmp_path: Path) -> None:
    key = {"Idempotency-Key": "once"}
    with live_server(tmp_path / "data", agents=AGENTS) as server:
        job = ask(server.url, BATCHES, batch(1, 10), **key)
        with full_disk(server, 0):
            assert status_of(server.url, BATCHES, batch(1, 20)) == 507
            until(lambda: status_of(server.url, "/readyz") == 503)
            assert ask(server.url, BATCHES, batch(1, 10), **key)["id"] == job["id"]


@pytest.mark.cluster
def test_a_server_starts_although_an_abandoned_run_cannot_be_ended(tmp_path: Path) -> None:
    data_dir, agents = tmp_path / "data", tmp_path / "agents.json"
    agents.write_text(json.dumps({"agents": [{"id": "wait", "run": "tests.cluster.agents:wait"}]}))
    with live_server(data_dir, agents=agents) as server:
        asked = partial(ask, server.url, "/v1/agents/wait/messages", {"input": "60"})
        asking = threading.Thread(target=if_available, args=(asked,))
        asking.start()
        until(lambda: n_rows(data_dir, "attempts") == 1)
        server.kill()
        asking.join()
    shutil.rmtree(data_dir / "uploads")
    may_end = threading.Event()

    def lock() -> None:
        until((data_dir / "uploads").exists)  # its store is open, and Ray is still being started
        with locked(data_dir):
            assert may_end.wait(60)

    locking = threading.Thread(target=lock)
    locking.start()
    with live_server(data_dir, "--lanes", "1", agents=agents, executor="ray") as server:
        until(lambda: "cannot be ended at the moment" in server.log)
        assert ask(server.url, BATCHES) == []
        may_end.set()
        until(lambda: n_rows(data_dir, "outcomes") == 1)
    locking.join()


def test_a_server_with_a_full_disk_exits_cleanly_and_loses_nothing(tmp_path: Path) -> None:
    client = Client()
    grace = {"BATCHRAY_SHUTDOWN_GRACE_S": "1"}
    with live_server(tmp_path / "data", "--max-in-flight", "8", agents=AGENTS, **grace) as server:
        assert client.post(server.url, 1000)
        with full_disk(server):
            until(lambda: status_of(server.url, "/readyz") == 503)
            assert server.stop() == 0
        assert "Traceback" not in server.log
    with live_server(tmp_path / "data", agents=AGENTS) as server:
        check_echoes(client, server.url)


def test_a_deleted_batch_is_unknown(tmp_path: Path) -> None:
    client = Client()
    with live_server(tmp_path, agents=AGENTS) as server:
        assert client.post(server.url, 600)
        check_echoes(client, server.url)
        server.stop()
    [job_id] = client.job_ids
    with closing(sqlite3.connect(tmp_path / "batchray.db", isolation_level=None)) as database:
        long_ago = time.strftime("%Y-%m-%dT%H:%M:%S.000000+00:00", time.gmtime(time.time() - 30 * 86400))
        database.execute("UPDATE jobs SET completed_at = ?", (long_ago,))
    with live_server(tmp_path, agents=AGENTS) as server:
        until(lambda: status_of(server.url, f"{BATCHES}/{job_id}") == 404)
        assert ask(server.url, BATCHES) == []
        assert client.post(server.url, 5)
        until(lambda: n_rows(tmp_path, "items") == 5 and n_rows(tmp_path, "outcomes") <= 5)


def n_rows(data_dir: Path, table: str) -> int:
    with closing(sqlite3.connect(f"file:{data_dir / 'batchray.db'}?mode=ro", uri=True)) as database:
        [(n,)] = database.execute(f"SELECT count(*) FROM {table}")
        return int(n)

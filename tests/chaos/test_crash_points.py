"""A server is killed at each failpoint, where data could be lost; its successor is checked from outside."""

from __future__ import annotations

import functools
import signal
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import pytest

from batchray.store import Store
from batchray.support.failpoints import VARIABLE, FailpointName
from tests.chaos.client import AGENTS, Client
from tests.chaos.judge import called_back, check_echoes
from tests.polling import until
from tests.server.http_client import BATCHES, ask, if_available
from tests.server.live import ServerDiedError, live_server
from tests.server.receiver import receiver

# A failpoint to name:N, which kills the N-th time; N is above 1 if the first kill would leave nothing acknowledged.
CRASHES: dict[str, str] = {
    "before-spool": "before-spool:2",
    "after-spool": "after-spool:3",
    "piece-stored": "piece-stored:2",
    "before-commit": "before-commit:2",
    "after-commit": "after-commit:3",
    "counted-ahead": "counted-ahead:1",
    "outcome-arrived": "outcome-arrived:5",
    "step-committed": "step-committed:2",
    "outcome-committed": "outcome-committed:4",
    "job-ended": "job-ended:1",
    "callback-sent": "callback-sent:1",
}
OPTIONS = ("--max-in-flight", "8")
LOOPBACK = {"BATCHRAY_CALLBACK_NETWORKS": '["127.0.0.0/8"]'}


def test_every_failpoint_is_tried() -> None:
    in_a_retry = {"failures-cleared"}  # tests/integration/test_large_jobs.py
    assert set(CRASHES) | in_a_retry == set(get_args(FailpointName))


def test_a_crash_at_each_failpoint_loses_nothing_and_leaves_nothing_partial(tmp_path: Path) -> None:
    with receiver() as hook:
        client = Client(hook.url)
        for crash in CRASHES.values():
            try:
                with live_server(tmp_path, *OPTIONS, agents=AGENTS, **LOOPBACK, **{VARIABLE: crash}) as server:
                    for n, size in ((30, 10), (10, 200_000), (60, 10)):  # the second one is spooled to disk
                        if not client.post(server.url, n, size):
                            break
                    status = server.process.wait(60)
            except ServerDiedError as died:  # while it recovered, before it listened
                status = died.status
            assert status == -signal.SIGKILL, crash
        with live_server(tmp_path, *OPTIONS, agents=AGENTS, **LOOPBACK) as server:
            check_echoes(client, server.url, hook)
            assert server.stop() == 0
    assert len(client.job_ids) >= 7
    assert max(Counter(called_back(hook)).values()) > 1  # one callback was sent but not recorded, and sent again
    with Store.open_for_reading(tmp_path) as store:
        assert store.integrity.check().problems == []


@pytest.mark.parametrize("name", ["before-commit", "after-commit"])
def test_fifty_creates_with_one_idempotency_key_across_a_kill_make_one_job(name: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    body = {"requests": [{"agent_id": "echo", "input": "once"}]}
    send = functools.partial(ask, f"http://127.0.0.1:{port}", BATCHES, body, Idempotency_Key="one")

    def create(_: int) -> str:
        return str(until(lambda: if_available(send), 90)["id"])

    options = ("--port", str(port))
    with ThreadPoolExecutor(50) as pool:
        with live_server(tmp_path, *options, agents=AGENTS, **{VARIABLE: name}) as server:
            creating = pool.map(create, range(50))
            assert server.process.wait(60) == -signal.SIGKILL
        with live_server(tmp_path, *options, agents=AGENTS) as server:
            ids = set(creating)
            assert [job["id"] for job in ask(server.url, BATCHES)] == [*ids]

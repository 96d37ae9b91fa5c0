"""Jobs that end early: canceled by a client, or expired at their deadline; the callback says so in both cases."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.polling import until
from tests.provider_server import run_in_thread
from tests.server.http_client import BATCHES, ask, cancel, counts_of, job_of
from tests.server.live import live_server
from tests.server.receiver import Receiver, receiver
from tests.timing import timed


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as listening:
        yield listening


def callback_statuses(hook: Receiver) -> list[str]:
    """Return the status in each callback."""
    return [json.loads(received.body)["status"] for received in hook.received]


def start(directory: Path, base_url: str, **environment: str) -> Any:
    agents = {
        "providers": {"local": {"protocol": "openai", "base_url": base_url}},
        "agents": [{"id": "good", "model": "local/m"}, {"id": "block", "run": "tests.cluster.agents:block"}],
    }
    (directory / "agents.json").write_text(json.dumps(agents))
    networks = '["127.0.0.0/8"]'
    options = ("--max-in-flight", "20")
    file = directory / "agents.json"
    return live_server(directory / "data", *options, agents=file, BATCHRAY_CALLBACK_NETWORKS=networks, **environment)


@timed
def test_a_cancelled_batch_makes_no_more_model_calls_and_ends(slack: float, tmp_path: Path, hook: Receiver) -> None:
    requests = [{"agent_id": "good", "input": f"question {n}"} for n in range(3000)]
    blocked = [{"agent_id": "block", "input": "60"}] * 5
    with run_in_thread(latency_s=0.2) as provider, start(tmp_path, provider.base_url) as server:
        job_id = ask(server.url, BATCHES, {"requests": [*blocked, *requests], "callback_url": hook.url})["id"]
        until(lambda: counts_of(server, job_id)["succeeded"] > 20, 60)
        canceled = time.monotonic()
        assert cancel(server, job_id)[::2] == (200, None)
        until(lambda: job_of(server, job_id)["status"] == "cancelled")
        assert time.monotonic() - canceled < 10 * slack
        assert provider.calls[-1].at - canceled < 2 * slack
        until(lambda: bool(hook.received))

        ended = job_of(server, job_id)
        assert counts_of(server, job_id)["pending"] == 0
        assert counts_of(server, job_id)["canceled"] > 2000
        assert cancel(server, job_id)[::2] == (200, None)
        until(lambda: bool(job_of(server, job_id)["callback_sent_at"]))
        again = job_of(server, job_id)
        assert {**again, "callback_sent_at": None, "callback_status_code": None} == {
            **ended,
            "callback_sent_at": None,
            "callback_status_code": None,
        }
        assert server.stop() == 0
        assert provider.calls[-1].at - canceled < 2 * slack
    assert callback_statuses(hook) == ["cancelled"]


def test_a_confirmed_cancel_survives_a_crash(tmp_path: Path, hook: Receiver) -> None:
    requests = [{"agent_id": "good", "input": f"question {n}"} for n in range(3000)]
    with run_in_thread(latency_s=0.2) as provider:
        with start(tmp_path, provider.base_url) as server:
            job_id = ask(server.url, BATCHES, {"requests": requests, "callback_url": hook.url})["id"]
            until(lambda: counts_of(server, job_id)["succeeded"] > 20, 60)
            assert cancel(server, job_id)[::2] == (200, None)
            server.process.kill()
            server.process.wait()
        n_calls = provider.n_calls
        with start(tmp_path, provider.base_url) as server:
            until(lambda: job_of(server, job_id)["status"] == "cancelled")
            until(lambda: bool(hook.received))
            assert counts_of(server, job_id)["canceled"] > 2000
            assert server.stop() == 0
        assert provider.n_calls == n_calls
    assert callback_statuses(hook) == ["cancelled"]


def test_an_expired_batch_keeps_its_results_and_sends_its_callback(tmp_path: Path, hook: Receiver) -> None:
    requests = [{"agent_id": "good", "input": f"question {n}"} for n in range(8)]
    blocked = [{"agent_id": "block", "input": "60"}] * 5
    with run_in_thread() as provider, start(tmp_path, provider.base_url, BATCHRAY_JOB_DEADLINE_S="4") as server:
        job_id = ask(server.url, BATCHES, {"requests": [*blocked, *requests], "callback_url": hook.url})["id"]
        until(lambda: job_of(server, job_id)["status"] == "expired")
        until(lambda: bool(hook.received))
        assert (counts_of(server, job_id)["succeeded"], counts_of(server, job_id)["expired"]) == (8, 5)
        assert server.stop() == 0
    assert callback_statuses(hook) == ["expired"]

"""Jobs that end early: canceled by a client, or expired at their deadline; the callback says so in both cases."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.provider_server import run_in_thread
from tests.server.live import LiveServer, live_server
from tests.server.talk import get, patch, post
from tests.waiting import until

BATCHES = "/v1/messages/batches"


class Receiver:
    """Takes callbacks."""

    def __init__(self) -> None:
        self.bodies = bodies = list[dict[str, Any]]()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/done"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


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


def job_of(server: LiveServer, job_id: str) -> Any:
    return get(server, f"{BATCHES}/{job_id}")[1]


def counts(server: LiveServer, job_id: str) -> dict[str, int]:
    return dict(job_of(server, job_id)["metadata"]["request_counts"])


def test_a_canceled_batch_asks_nothing_more_and_is_over_within_10_s(tmp_path: Path, receiver: Receiver) -> None:
    requests = [{"agent_id": "good", "input": f"question {n}"} for n in range(3000)]
    blocked = [{"agent_id": "block", "input": "60"}] * 5
    with run_in_thread(latency_s=0.2) as provider, start(tmp_path, provider.base_url) as server:
        job_id = post(server, BATCHES, {"requests": [*blocked, *requests], "callback_url": receiver.url})["id"]
        until(lambda: counts(server, job_id)["succeeded"] > 20, 60)
        canceled = time.monotonic()
        assert patch(server, f"{BATCHES}/{job_id}/cancel") == (200, None)
        until(lambda: job_of(server, job_id)["status"] == "cancelled")
        assert time.monotonic() - canceled < 10
        assert provider.calls[-1].at - canceled < 2
        until(lambda: bool(receiver.bodies))

        ended = job_of(server, job_id)
        assert counts(server, job_id)["pending"] == 0
        assert counts(server, job_id)["canceled"] > 2000
        assert patch(server, f"{BATCHES}/{job_id}/cancel") == (200, None)
        until(lambda: bool(job_of(server, job_id)["callback_sent_at"]))
        again = job_of(server, job_id)
        assert {**again, "callback_sent_at": None, "callback_status_code": None} == {
            **ended,
            "callback_sent_at": None,
            "callback_status_code": None,
        }
        assert server.stop() == 0
        assert provider.calls[-1].at - canceled < 2
    assert [body["status"] for body in receiver.bodies] == ["cancelled"]


def test_an_expired_batch_keeps_what_is_done_and_sends_its_callback(tmp_path: Path, receiver: Receiver) -> None:
    requests = [{"agent_id": "good", "input": f"question {n}"} for n in range(8)]
    blocked = [{"agent_id": "block", "input": "60"}] * 5
    with run_in_thread() as provider, start(tmp_path, provider.base_url, BATCHRAY_JOB_DEADLINE_S="4") as server:
        job_id = post(server, BATCHES, {"requests": [*blocked, *requests], "callback_url": receiver.url})["id"]
        until(lambda: job_of(server, job_id)["status"] == "expired")
        until(lambda: bool(receiver.bodies))
        assert (counts(server, job_id)["succeeded"], counts(server, job_id)["expired"]) == (8, 5)
        assert server.stop() == 0
    assert [body["status"] for body in receiver.bodies] == ["expired"]

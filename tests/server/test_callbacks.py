"""Callbacks of a live server to receivers that are down, slow, gone or hostile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from tests.polling import until
from tests.server.http_client import call, create, ended, job_when
from tests.server.live import LiveServer, live_server
from tests.server.receiver import receiver

SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
LOOPBACK = '["127.0.0.0/8"]'
REQUESTS = [{"agent_id": "calculator", "input": "What is 6 * 7?"}]


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Return a server that may send callbacks to this machine, and retries at once."""
    with live_server(
        tmp_path_factory.mktemp("caller") / "data",
        BATCHRAY_CALLBACK_NETWORKS=LOOPBACK,
        BATCHRAY_CALLBACK_DELAYS_S="[0, 0, 0]",
        BATCHRAY_CALLBACK_SECRET=SECRET,
    ) as server:
        yield server


def test_a_callback_says_how_the_job_ended_and_is_signed(caller: LiveServer) -> None:
    with receiver() as hook:
        job_id = create(caller, REQUESTS, callback_url=hook.url)["id"]
        job = job_when(caller, job_id, lambda job: job["callback_sent_at"] is not None)
    [received] = hook.received
    payload = Webhook(SECRET).verify(received.body, {name.lower(): value for name, value in received.headers.items()})
    assert payload == {
        "job_id": job_id,
        "status": "completed",
        "completed_at": job["completed_at"],
        "metadata": job["metadata"],
    }
    assert (job["callback_status_code"], job["callback_error"]) == (200, None)


def test_the_callback_of_a_run_in_the_background_names_the_run(caller: LiveServer) -> None:
    with receiver() as hook:
        request = {"input": "What is 6 * 7?", "callback_url": hook.url}
        run_id = call(caller, "POST", "/v1/agents/calculator/messages/async", request).body["id"]
        until(lambda: call(caller, "GET", f"/v1/runs/{run_id}").body["callback_sent_at"])
    payload, run = json.loads(hook.received[0].body), call(caller, "GET", f"/v1/runs/{run_id}").body
    assert (payload["run_id"], payload["job_id"]) == (run_id, run["metadata"]["job_id"])
    assert (payload["status"], payload["completed_at"][:19]) == ("completed", run["completed_at"][:19])
    assert (run["callback_url"], run["callback_status_code"]) == (hook.url, 200)


def test_a_canceled_job_sends_its_callback(caller: LiveServer) -> None:
    with receiver() as hook:
        job_id = create(caller, [{"agent_id": "slow", "input": "x"}] * 50, callback_url=hook.url)["id"]
        assert call(caller, "PATCH", f"/v1/messages/batches/{job_id}/cancel").body is None
        job_when(caller, job_id, lambda job: job["callback_sent_at"] is not None)
    assert json.loads(hook.received[0].body)["status"] == "cancelled"


def test_a_job_that_is_retried_during_its_callback_sends_another_one(caller: LiveServer) -> None:
    with receiver(delay_s=2.0) as hook:
        job_id = create(caller, [{"agent_id": "slow", "input": "x"}] * 5, callback_url=hook.url)["id"]
        call(caller, "PATCH", f"/v1/messages/batches/{job_id}/cancel")
        until(lambda: len(hook.received) == 1)
        assert call(caller, "POST", f"/v1/messages/batches/{job_id}/retry").status == 200
        call(caller, "PATCH", f"/v1/messages/batches/{job_id}/cancel")
        until(lambda: len(hook.received) == 2)
        job_when(caller, job_id, lambda job: job["callback_sent_at"] is not None)
    assert len({received.headers["webhook-id"] for received in hook.received}) == 2
    assert len({json.loads(received.body)["completed_at"] for received in hook.received}) == 2


@pytest.mark.parametrize("statuses", [(500, 200), (0, 503, 204), (302, 200)], ids=str)
def test_a_callback_is_retried_until_its_receiver_succeeds(caller: LiveServer, statuses: tuple[int, ...]) -> None:
    with receiver(statuses, location="http://169.254.169.254/latest/meta-data") as hook:
        job_id = create(caller, REQUESTS, callback_url=hook.url)["id"]
        job = job_when(caller, job_id, lambda job: job["callback_status_code"] == statuses[-1])
    assert job["status"] == "completed"
    assert job["callback_error"] is None
    assert len(hook.received) == len(statuses)
    assert len({received.headers["webhook-id"] for received in hook.received}) == 1


def test_a_receiver_that_responds_410_gets_no_retry(caller: LiveServer) -> None:
    with receiver((410, 200)) as hook:
        job_id = create(caller, REQUESTS, callback_url=hook.url)["id"]
        job = job_when(caller, job_id, lambda job: job["callback_sent_at"] is not None)
        assert "batchray_callbacks_waiting 0.0" in call(caller, "GET", "/metrics").body
    assert job["callback_status_code"] == 410
    assert job["callback_error"]
    assert len(hook.received) == 1


def test_a_receiver_that_always_fails_does_not_change_the_job(caller: LiveServer) -> None:
    with receiver((500,)) as hook:
        job_id = create(caller, REQUESTS, callback_url=hook.url)["id"]
        job = job_when(caller, job_id, lambda job: "given up" in (job["callback_error"] or ""))
    assert (job["status"], job["stop_reason"], job["callback_status_code"]) == ("completed", "end_turn", 500)
    assert len(hook.received) == 4


def test_by_default_no_callback_goes_to_this_machine(tmp_path: Path) -> None:
    with live_server(tmp_path / "data") as server, receiver() as hook:
        for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"):
            url = hook.url.replace("127.0.0.1", host)
            job_id = create(server, REQUESTS, callback_url=url)["id"]
            job = job_when(server, job_id, lambda job: job["callback_error"] is not None)
            assert (job["status"], job["callback_status_code"]) == ("completed", None)
    assert hook.received == []


def test_a_callback_that_was_due_when_the_server_died_is_sent_after_the_next_start(tmp_path: Path) -> None:
    with receiver() as hook:
        with live_server(tmp_path / "data", BATCHRAY_CALLBACK_DELAYS_S="[5, 0]") as first:  # may not call loopback
            job_id = create(first, REQUESTS, callback_url=hook.url)["id"]
            ended(first, job_id)
            first.kill()
        assert hook.received == []
        with live_server(
            tmp_path / "data", BATCHRAY_CALLBACK_NETWORKS=LOOPBACK, BATCHRAY_CALLBACK_DELAYS_S="[5, 0]"
        ) as second:
            job = job_when(second, job_id, lambda job: job["callback_status_code"] == 200)
    assert job["status"] == "completed"

"""Additions to Letta's API: items, results, events, retries, metrics, and idempotency keys."""

from __future__ import annotations

import json
import sqlite3
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from batchray import __version__
from tests.server.http_client import BATCHES, Response, call, create, ended, job_when
from tests.server.live import LiveServer, live_server

SUM = {"agent_id": "calculator", "input": "What is 2 + 3?"}
N_ITEMS = 12


def says(text: str, delay_s: float = 0.0) -> dict[str, str]:
    """Return a request whose response is a text, after a delay."""
    return {"agent_id": "planner", "input": json.dumps({"script": [{"text": text, "delay_s": delay_s}]})}


JSON = {"Content-Type": "application/json"}
NEVER = says("too late", 300)


@pytest.fixture(scope="module")
def mixed(server: LiveServer) -> dict[str, Any]:
    """Return an ended job of twelve items: every third fails, in one of two ways."""
    kinds = ("calculator", "clerk", "refused", "calculator", "clerk", "garbled")
    requests = [{"agent_id": kinds[i % 6], "input": f"What is {i} + 1?", "custom_id": f"c{i}"} for i in range(N_ITEMS)]
    return ended(server, create(server, requests)["id"])


@contextmanager
def stream(server: LiveServer, path: str, headers: Mapping[str, str] | None = None) -> Iterator[HTTPResponse]:
    """Open a response to read it while it arrives."""
    request = urllib.request.Request(server.url + path, headers=dict(headers or {}))
    with urllib.request.urlopen(request, timeout=60) as response:
        yield response


# -- items


def test_items_show_the_outcome_of_each_request(server: LiveServer, mixed: dict[str, Any]) -> None:
    items = call(server, "GET", f"{BATCHES}/{mixed['id']}/items").body
    assert [item["index"] for item in items] == list(range(N_ITEMS))
    assert [item["custom_id"] for item in items] == [f"c{i}" for i in range(N_ITEMS)]
    first, failed = items[0], items[2]
    assert first.keys() == {
        *("id", "index", "custom_id", "agent_id", "run_id", "status", "stop_reason", "error", "usage", "attempts"),
        "timing",
    }
    assert (first["status"], first["stop_reason"], first["error"], first["attempts"]) == (
        "succeeded",
        "end_turn",
        None,
        1,
    )
    assert first["usage"]["step_count"] == 2
    assert 0 < first["timing"]["ttft_ns"] <= first["timing"]["duration_ns"]
    assert (failed["status"], failed["stop_reason"]) == ("errored", "llm_api_error")
    assert failed["error"] == {"type": "api_error", "message": "the provider refused this call", "traceback": None}
    messages = call(server, "GET", f"{BATCHES}/{mixed['id']}/messages").body["messages"]
    assert {(message["batch_item_id"], message["run_id"]) for message in messages} == {
        (item["id"], item["run_id"]) for item in items
    }


@pytest.mark.parametrize(
    ("query", "indices"),
    [
        ("status=errored", [2, 5, 8, 11]),
        ("status=succeeded&agent_id=clerk", [1, 4, 7, 10]),
        ("status=pending", []),
        ("stop_reason=invalid_tool_call", [5, 11]),
        ("custom_id=c7", [7]),
        ("custom_id=c7&agent_id=calculator", []),
        ("agent_id=unknown", []),
        ("order=desc&limit=3", [11, 10, 9]),
        ("order=desc&limit=2&status=errored", [11, 8]),
    ],
)
def test_items_are_filtered(server: LiveServer, mixed: dict[str, Any], query: str, indices: list[int]) -> None:
    assert [item["index"] for item in call(server, "GET", f"{BATCHES}/{mixed['id']}/items?{query}").body] == indices


@pytest.mark.parametrize("query", ["status=lost", "stop_reason=tired", "limit=0", "order=up"])
def test_an_invalid_filter_is_422(server: LiveServer, mixed: dict[str, Any], query: str) -> None:
    assert call(server, "GET", f"{BATCHES}/{mixed['id']}/items?{query}").status == 422


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("filtered", ["", "&status=succeeded"])
def test_items_are_paged_forwards_and_backwards(
    server: LiveServer, mixed: dict[str, Any], order: str, filtered: str
) -> None:
    def page(cursor: str) -> list[str]:
        path = f"{BATCHES}/{mixed['id']}/items?limit=5&order={order}{filtered}{cursor}"
        return [item["id"] for item in call(server, "GET", path).body]

    there: list[str] = []
    while found := page(f"&after={there[-1]}" if there else ""):
        there += found
    back: list[str] = []
    while found := page(f"&before={back[0] if back else there[-1]}"):
        back = found + back
    assert len(there) == (8 if filtered else N_ITEMS)
    assert back == there[:-1]


# -- results


@pytest.mark.parametrize("order", ["index", "finish"])
def test_results_are_json_lines_of_every_outcome(server: LiveServer, mixed: dict[str, Any], order: str) -> None:
    answer = call(server, "GET", f"{BATCHES}/{mixed['id']}/results?order={order}")
    assert answer.headers["Content-Type"] == "application/jsonl"
    results = [json.loads(line) for line in answer.body.splitlines()]
    indices = [result["index"] for result in results]
    assert indices == list(range(N_ITEMS)) if order == "index" else sorted(indices) == list(range(N_ITEMS))
    [first] = [result for result in results if result["index"] == 0]
    assert first["messages"][-1]["content"] == "0 + 1 = 1"
    assert (first["custom_id"], first["status"], first["usage"]["step_count"]) == ("c0", "succeeded", 2)


@pytest.mark.parametrize("order", ["index", "finish"])
def test_results_continue_after_a_given_item(server: LiveServer, mixed: dict[str, Any], order: str) -> None:
    path = f"{BATCHES}/{mixed['id']}/results?order={order}"
    lines = call(server, "GET", path).body.splitlines()
    for n in (1, 5, N_ITEMS):
        last = json.loads(lines[n - 1])["batch_item_id"]
        for follow in ("", "&follow=true"):
            assert call(server, "GET", f"{path}&after={last}{follow}").body.splitlines() == lines[n:]
    unknown = json.loads(lines[0])["batch_item_id"][:-12] + f"{N_ITEMS:07x}00000"
    for wrong in (unknown, "batch_item-1", mixed["id"]):
        assert call(server, "GET", f"{path}&after={wrong}").status == 400


def test_results_can_be_limited_to_failed_items(server: LiveServer, mixed: dict[str, Any]) -> None:
    answer = call(server, "GET", f"{BATCHES}/{mixed['id']}/results?failed=true")
    assert [json.loads(line)["index"] for line in answer.body.splitlines()] == [2, 5, 8, 11]


def test_results_have_the_metadata_the_model_and_on_demand_the_input(server: LiveServer) -> None:
    job_id = create(server, [{**SUM, "metadata": {"row": 3}}])["id"]
    ended(server, job_id)
    without, included = (
        json.loads(call(server, "GET", f"{BATCHES}/{job_id}/results{query}").body)
        for query in ("", "?include_input=true")
    )
    assert (without["input"], included["input"]) == (None, SUM["input"])
    assert included["metadata"] == {"row": 3}
    assert included["model"].startswith("offline/")


@pytest.mark.parametrize("order", ["index", "finish"])
def test_results_can_be_followed_while_the_job_runs(server: LiveServer, order: str) -> None:
    job_id = create(server, [says("first"), NEVER, says("third")])["id"]
    job_when(server, job_id, lambda job: job["metadata"]["request_counts"]["succeeded"] == 2)
    with stream(server, f"{BATCHES}/{job_id}/results?follow=true&order={order}") as response:
        early = [json.loads(response.readline()) for _ in range(2 if order == "finish" else 1)]
        assert call(server, "GET", f"{BATCHES}/{job_id}").body["completed_at"] is None
        call(server, "PATCH", f"{BATCHES}/{job_id}/cancel")
        late = [json.loads(line) for line in response]
    assert sorted(result["index"] for result in early) == ([0, 2] if order == "finish" else [0])
    statuses = {result["index"]: result["status"] for result in early + late}
    assert statuses == {0: "succeeded", 1: "canceled", 2: "succeeded"}
    assert len(early + late) == 3


def test_results_of_a_running_job_are_those_so_far(server: LiveServer) -> None:
    job_id = create(server, [says("first"), NEVER])["id"]
    job_when(server, job_id, lambda job: job["metadata"]["request_counts"]["succeeded"] == 1)
    answer = call(server, "GET", f"{BATCHES}/{job_id}/results")
    assert [json.loads(line)["index"] for line in answer.body.splitlines()] == [0]
    [left] = call(server, "GET", f"{BATCHES}/{job_id}/items?status=pending").body
    assert (left["index"], left["attempts"], left["timing"], left["stop_reason"]) == (1, 1, None, None)
    call(server, "PATCH", f"{BATCHES}/{job_id}/cancel")


# -- events


class Event(NamedTuple):
    name: str
    id: str
    data: Any


def events_of(response: HTTPResponse) -> Iterator[Event]:
    """Read server-sent events, comments left out."""
    fields: dict[str, str] = {}
    for raw in response:
        line = raw.decode().rstrip("\n")
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield Event(fields.get("event", ""), fields.get("id", ""), json.loads(fields["data"]))
            fields = {}


def test_events_report_progress_outcomes_and_the_end_while_the_job_runs(server: LiveServer) -> None:
    job_id = create(server, [says("first"), NEVER])["id"]
    with stream(server, f"{BATCHES}/{job_id}/events") as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        events, seen = events_of(response), list[Event]()
        while not any(
            event.name == "progress" and event.data["metadata"]["request_counts"]["succeeded"] for event in seen
        ):
            seen.append(next(events))
        call(server, "PATCH", f"{BATCHES}/{job_id}/cancel")
        seen += events
    outcomes = [event for event in seen if event.name == "outcome"]
    assert [(event.id, event.data["index"], event.data["status"]) for event in outcomes] == [
        ("1", 0, "succeeded"),
        ("2", 1, "canceled"),
    ]
    assert "messages" not in outcomes[0].data
    assert [event.name for event in seen if event.name == "end"] == ["end"]
    assert seen[-1].name == "end"
    assert seen[-1].data == call(server, "GET", f"{BATCHES}/{job_id}").body


def test_a_client_that_reconnects_gets_each_outcome_once(server: LiveServer, mixed: dict[str, Any]) -> None:
    path = f"{BATCHES}/{mixed['id']}/events"
    with stream(server, path) as response:
        everything = list(events_of(response))
    ids = [event.id for event in everything if event.name == "outcome"]
    assert ids == [str(seq) for seq in range(1, N_ITEMS + 1)]
    with stream(server, path, {"Last-Event-ID": "7"}) as response:
        rest = list(events_of(response))
    assert rest == [event for event in everything if event.name == "end" or int(event.id) > 7]


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "9" * 30])
def test_an_invalid_last_event_id_is_400(server: LiveServer, mixed: dict[str, Any], last: str) -> None:
    answer = call(server, "GET", f"{BATCHES}/{mixed['id']}/events", headers={"Last-Event-ID": last})
    assert (answer.status, answer.headers["x-should-retry"]) == (400, "false")


# -- steps


def test_the_output_of_an_agent_is_streamed_step_by_step(server: LiveServer) -> None:
    look_up = {"tool_calls": [{"name": "look_up", "arguments": {"key": "apples"}}]}
    script = [{**look_up, "reasoning": "hm"}, look_up, {"text": "too late", "delay_s": 300}]
    body = json.dumps({"input": json.dumps({"script": script})}).encode()
    request = urllib.request.Request(f"{server.url}/v1/agents/planner/messages/stream", body, headers=JSON)
    kinds: list[str] = []
    with urllib.request.urlopen(request, timeout=60) as response:
        for event in events_of(response):
            kinds.append(event.data["message_type"])
            if kinds.count("tool_call_message") == 2:
                break
    assert kinds == ["reasoning_message", "tool_call_message", "tool_return_message", "tool_call_message"]


# -- retry


def test_failed_items_run_again_as_a_new_attempt_and_the_others_stay(server: LiveServer) -> None:
    job_id = ended(server, create(server, [SUM, {"agent_id": "refused", "input": "x"}])["id"])["id"]
    before = call(server, "GET", f"{BATCHES}/{job_id}/items").body
    reopened = call(server, "POST", f"{BATCHES}/{job_id}/retry")
    assert (reopened.status, reopened.body["id"]) == (200, job_id)
    assert ended(server, job_id)["status"] == "completed"
    after = call(server, "GET", f"{BATCHES}/{job_id}/items").body
    assert after[0] == before[0]
    assert (after[1]["status"], after[1]["attempts"]) == ("errored", 2)


def test_a_job_without_failures_has_nothing_to_retry(server: LiveServer) -> None:
    job = ended(server, create(server, [SUM])["id"])
    assert call(server, "POST", f"{BATCHES}/{job['id']}/retry").body == job


def test_a_running_job_is_not_retried(server: LiveServer) -> None:
    job_id = create(server, [NEVER])["id"]
    answer = call(server, "POST", f"{BATCHES}/{job_id}/retry")
    assert (answer.status, answer.headers["x-should-retry"]) == (409, "false")
    call(server, "PATCH", f"{BATCHES}/{job_id}/cancel")
    assert ended(server, job_id)["status"] == "cancelled"


def test_canceled_items_are_retried_and_the_job_can_be_canceled_again(server: LiveServer) -> None:
    job_id = create(server, [NEVER, NEVER])["id"]
    for _ in range(3):  # immediately, also while it is starting
        call(server, "PATCH", f"{BATCHES}/{job_id}/cancel")
        job = ended(server, job_id)
        assert (job["status"], job["metadata"]["request_counts"]["canceled"]) == ("cancelled", 2)
        assert call(server, "POST", f"{BATCHES}/{job_id}/retry").status == 200
    call(server, "PATCH", f"{BATCHES}/{job_id}/cancel")
    ended(server, job_id)


def test_one_of_many_concurrent_retries_succeeds(server: LiveServer) -> None:
    job_id = ended(server, create(server, [SUM, *[{"agent_id": "refused", "input": "x"}] * 3])["id"])["id"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: call(server, "POST", f"{BATCHES}/{job_id}/retry"), range(8)))
    assert {answer.status for answer in answers} <= {200, 409}
    job = ended(server, job_id)
    assert (job["status"], job["metadata"]["request_counts"]["errored"]) == ("completed", 3)


# -- requests that are repeated


def post(server: LiveServer, body: object, key: str) -> Response:
    return call(server, "POST", BATCHES, body, headers={"Idempotency-Key": key})


def test_a_repeated_batch_with_its_key_returns_the_same_job(server: LiveServer) -> None:
    first, second = (post(server, {"requests": [SUM]}, "again") for _ in range(2))
    assert first.status == second.status == 200
    assert first.body["id"] == second.body["id"]
    job = ended(server, first.body["id"])
    assert post(server, {"requests": [SUM]}, "again").body == job
    assert post(server, {"requests": [SUM]}, "another").body["id"] != job["id"]


def test_a_key_that_is_reused_with_another_body_is_422(server: LiveServer) -> None:
    assert post(server, {"requests": [SUM]}, "other body").status == 200
    answer = post(server, {"requests": [SUM, SUM]}, "other body")
    assert (answer.status, answer.headers["x-should-retry"]) == (422, "false")


def test_the_key_of_a_refused_batch_can_be_used_again(server: LiveServer) -> None:
    assert post(server, {"requests": []}, "refused").status == 400
    assert post(server, {"requests": [SUM]}, "refused").status == 200


def test_a_key_in_use_is_409_and_may_be_retried(server: LiveServer) -> None:
    with ThreadPoolExecutor(2) as pool, closing(sqlite3.connect(_database(server), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # accepting the batch has to wait for this transaction
        try:
            posts = {pool.submit(post, server, {"requests": [SUM]}, "in progress") for _ in range(2)}
            refused, accepted = wait(posts, timeout=60, return_when=FIRST_COMPLETED)
        finally:
            other.execute("ROLLBACK")
        [late], [first] = [each.result() for each in refused], [each.result() for each in accepted]
    assert (late.status, late.headers["Retry-After"]) == (409, "1")
    assert "x-should-retry" not in late.headers
    assert first.status == 200
    assert post(server, {"requests": [SUM]}, "in progress").body["id"] == first.body["id"]


def _database(server: LiveServer) -> str:
    [file] = server.data_dir.glob("*.db")
    return str(file)


def test_fifty_concurrent_requests_with_one_key_create_one_job(server: LiveServer) -> None:
    start = threading.Barrier(50)

    def create_once(_: int) -> str:
        start.wait(60)
        while (answer := post(server, {"requests": [SUM]}, "fifty")).status == 409:
            pass
        assert answer.status == 200, answer
        return str(answer.body["id"])

    newest = call(server, "GET", f"{BATCHES}?limit=1").body[0]["id"]
    with ThreadPoolExecutor(50) as pool:
        ids = set(pool.map(create_once, range(50)))
    assert [job["id"] for job in call(server, "GET", f"{BATCHES}?order=asc&after={newest}").body] == [*ids]


# -- jobs that wait


def test_at_most_max_running_jobs_run_at_once_also_after_a_restart(tmp_path: Path) -> None:
    def statuses() -> list[str]:
        return [job["status"] for job in call(running, "GET", f"{BATCHES}?order=asc").body]

    with live_server(tmp_path / "data", BATCHRAY_MAX_RUNNING_JOBS="1") as running:
        ids = [create(running, [NEVER])["id"] for _ in range(4)]
        running.kill()
    with live_server(tmp_path / "data", BATCHRAY_MAX_RUNNING_JOBS="1") as running:
        job_when(running, ids[0], lambda job: job["status"] == "running")
        call(running, "PATCH", f"{BATCHES}/{ids[1]}/cancel")
        assert statuses() == ["running", "cancelled", "created", "created"]
        call(running, "PATCH", f"{BATCHES}/{ids[0]}/cancel")
        job_when(running, ids[2], lambda job: job["status"] == "running")
        assert statuses() == ["cancelled", "cancelled", "running", "created"]


# -- the server's own state


def test_all_health_checks_succeed(server: LiveServer) -> None:
    for path in ("/livez", "/readyz", "/v1/health/"):
        assert call(server, "GET", path).body == {"version": __version__, "status": "ok"}


def metrics_of(server: LiveServer) -> dict[tuple[str, ...], float]:
    """Return the samples by name and label values; every one has a family with a type and a help."""
    answer = call(server, "GET", "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    families = list(text_string_to_metric_families(answer.body))
    assert all(family.documentation and family.type != "unknown" for family in families)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_count_jobs_items_and_requests(server: LiveServer) -> None:
    before = metrics_of(server)
    ended(server, create(server, [SUM, SUM, {"agent_id": "refused", "input": "x"}])["id"])
    call(server, "GET", "/made/up/by/a/client")
    after = metrics_of(server)

    def added(*sample: str) -> float:
        return after[sample] - before.get(sample, 0)

    # At least, because jobs of other tests may end meanwhile.
    assert added("batchray_jobs", "completed") >= 1
    assert added("batchray_items", "succeeded") >= 2
    assert added("batchray_items", "errored") >= 1
    assert after["batchray_uploads",] == 0
    assert {("batchray_in_flight",), ("batchray_callbacks_waiting",)} <= after.keys()
    assert added("batchray_http_requests_total", "POST", BATCHES, "200") == 1
    assert added("batchray_http_requests_total", "other", "unknown", "404") == 1
    assert added("batchray_http_request_seconds_count", BATCHES) == 1
    assert not any("made" in label for sample in after for label in sample)

"""The statuses and bodies of Letta's API, compared exactly."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.server.http_client import BATCHES, call, cancel, create, ended
from tests.server.live import LiveServer

UNKNOWN_JOB = "job-1b4e28ba-2fa1-4d3b-a3f5-ef19c0ffee00"
SUM = {"agent_id": "calculator", "input": "What is 2 + 3?"}
USER = {"role": "user", "content": "x"}


def asking(**fields: Any) -> dict[str, Any]:
    """Return a batch of one good request and one of these fields."""
    return {"requests": [SUM, {"agent_id": "calculator", **fields}]}


# Section 1.1 of the contract, as decided in its section 10: the documented behaviour if the real server is broken.
ACCEPTED: dict[str, Any] = {
    "one request": {"requests": [SUM]},
    "messages": asking(messages=[{"role": "user", "content": "What is 2 + 3?"}]),
    "no message at all": asking(messages=[]),
    "an agent twice": {"requests": [SUM, SUM]},
    "agents of different models": {"requests": [SUM, {"agent_id": "planner", "input": "x"}]},
    "an approval": asking(messages=[{"type": "approval", "approvals": [{"approve": True, "tool_call_id": "call_1"}]}]),
    "an approval of the old form": asking(messages=[{"approve": True, "approval_request_id": "message-1"}]),
    "enable_thinking as a boolean": asking(input="x", enable_thinking=True),
    "a content part without its type": asking(messages=[{"role": "user", "content": [{"text": "x"}]}]),
    "an image that cannot be had": asking(
        input=[{"type": "image", "source": {"type": "url", "url": "http://127.0.0.1:9/none.png"}}]
    ),
    "max_steps of 0": asking(input="x", max_steps=0),
    "all types to be returned": asking(input="x", include_return_message_types=["assistant_message", "user_message"]),
    "fields that have no effect": asking(input="x", include_compaction_messages=True),
    "fields that ask for nothing": asking(input="x", override_model=None, return_logprobs=False, client_skills=[]),
    "metadata": asking(input="x", metadata={"row": 3, "tags": ["a"]}),
    "nulls for what is left out": {"requests": [{**SUM, "messages": None, "max_steps": None}], "callback_url": None},
    "roles of all kinds": asking(messages=[{"role": role, "content": "x"} for role in ("system", "user", "assistant")]),
}

REFUSED: dict[str, tuple[Any, int, str]] = {
    "no requests": ({}, 422, "requests"),
    "requests that are not a list": ({"requests": {}}, 422, "requests"),
    "an empty list": ({"requests": []}, 400, "Empty list of batch_requests passed in!"),
    "no object": ([SUM], 422, ""),
    "a request that is not an object": ({"requests": [SUM, 7]}, 422, "requests[1]"),
    "no agent": ({"requests": [SUM, {"input": "x"}]}, 422, "requests[1]"),
    "an empty agent id": ({"requests": [SUM, {"agent_id": "", "input": "x"}]}, 422, "requests[1]"),
    "an agent id without end": ({"requests": [SUM, {"agent_id": "a" * 257, "input": "x"}]}, 422, "requests[1]"),
    "an unknown agent": (
        {"requests": [SUM, SUM, {"agent_id": "agent-1b4e28ba-2fa1-4d3b-a3f5-ef19c0ffee00", "input": "x"}]},
        404,
        "requests[2]",
    ),
    "neither input nor messages": (asking(), 422, "requests[1]: Must specify either 'input' or 'messages'."),
    "both": (
        asking(input="x", messages=[USER]),
        422,
        "requests[1]: Cannot specify both 'input' and 'messages'. Use one or the other.",
    ),
    "a callback without a scheme": ({"requests": [SUM], "callback_url": "example.org"}, 422, "callback_url"),
    "a callback of another scheme": ({"requests": [SUM], "callback_url": "ftp://h/x"}, 422, "callback_url"),
    "a callback too long": ({"requests": [SUM], "callback_url": f"http://h/{'x' * 2100}"}, 422, "callback_url"),
    "an unknown message type": (asking(input="x", include_return_message_types=["shout"]), 422, "requests[1]"),
    "an unknown role": (asking(messages=[{"role": "robot", "content": "x"}]), 422, "requests[1]"),
    "an unknown content part": (asking(input=[{"type": "smell", "text": "x"}]), 422, "requests[1]"),
    "text for max_steps": (asking(input="x", max_steps="many"), 422, "requests[1]"),
    "an unknown field of a request": (asking(input="x", colour="red"), 422, "requests[1].colour: unknown key"),
    "a misspelt field": (asking(imput="x"), 422, "requests[1].imput: unknown key; did you mean 'input'?"),
    "an unknown field of the body": ({"requests": [SUM], "priority": 7}, 422, "unknown key 'priority' in the body"),
    "no JSON": (b'{"requests": [', 422, ""),
    "nothing": (b"", 422, ""),
    "no UTF-8": (b'{"requests": [{"agent_id": "calculator", "input": "\xff"}]}', 422, ""),
}


@pytest.fixture(scope="module")
def job_ids(server: LiveServer) -> list[str]:
    """Return the ids of three jobs that have ended, in the order of their creation."""
    ids = [create(server, [SUM])["id"] for _ in range(3)]
    for job_id in ids:
        ended(server, job_id)
    return ids


def is_error(body: Any) -> bool:
    """Return whether a body has the shape of an error."""
    return body.keys() == {"detail", "trace_id"} and all(isinstance(part, str) and part for part in body.values())


@pytest.mark.parametrize("body", ACCEPTED.values(), ids=ACCEPTED)
def test_a_batch_is_accepted_and_ends(server: LiveServer, body: dict[str, Any]) -> None:
    answer = call(server, "POST", BATCHES, body)
    assert answer.status == 200, answer
    assert answer.headers["Content-Type"].startswith("application/json")
    job = ended(server, answer.body["id"])
    assert job["metadata"]["request_counts"]["total"] == len(body["requests"])
    assert job["metadata"]["request_counts"]["pending"] == 0
    assert job["status"] == "completed"


@pytest.mark.parametrize(("body", "status", "detail"), REFUSED.values(), ids=REFUSED)
def test_an_invalid_batch_is_refused_with_the_location_of_the_error_and_not_stored(
    server: LiveServer, body: object, status: int, detail: str
) -> None:
    def newest() -> list[str]:
        return [job["id"] for job in call(server, "GET", f"{BATCHES}?limit=1").body]

    before = newest()
    answer = call(server, "POST", BATCHES, body)
    assert answer.status == status, answer
    assert is_error(answer.body)
    assert detail in answer.body["detail"]
    assert newest() == before


@pytest.mark.parametrize("padding", [0, 1_100_000], ids=["small", "large"])
def test_fields_without_effect_are_named_in_a_warning_and_in_the_metadata(server: LiveServer, padding: int) -> None:
    message = {"role": "user", "content": "x" * padding, "batch_item_id": "batch_item-1"}
    unused: dict[str, Any] = {"include_compaction_messages": True, "top_logprobs": None, "client_skills": []}
    answer = call(server, "POST", BATCHES, {"requests": [SUM, {**SUM, **unused}, talk([message])]})
    assert answer.status == 200, answer
    names = ["include_compaction_messages", "messages.batch_item_id"]
    assert answer.headers["Warning"] == f'299 batchray "no effect here: {", ".join(names)}"'
    assert answer.body["metadata"]["unused_fields"] == names
    assert ended(server, answer.body["id"])["metadata"]["unused_fields"] == names
    plain = call(server, "POST", BATCHES, {"requests": [SUM]})
    assert "Warning" not in plain.headers
    assert "unused_fields" not in plain.body["metadata"]


@pytest.mark.parametrize("streaming", [False, True])
def test_fields_without_effect_are_named_in_the_response_of_an_agent(server: LiveServer, streaming: bool) -> None:
    body = {"input": "What is 2 + 3?", "background": True, "include_compaction_messages": True, "streaming": streaming}
    answer = call(server, "POST", "/v1/agents/calculator/messages", body)
    warning = '299 batchray "no effect here: background, include_compaction_messages"'
    assert (answer.status, answer.headers["Warning"]) == (200, warning)


UNSUPPORTED_FIELDS = {
    "client_skills": [{"name": "x", "description": "y", "location": "z"}],
    "override_model": "offline/rules",
    "return_logprobs": True,
    "top_logprobs": 3,
    "return_token_ids": True,
}


@pytest.mark.parametrize("name", UNSUPPORTED_FIELDS)
@pytest.mark.parametrize("path", [BATCHES, "/v1/agents/calculator/messages", "/v1/agents/calculator/messages/stream"])
def test_an_unsupported_field_is_refused_by_name(server: LiveServer, path: str, name: str) -> None:
    body = {"input": "x", name: UNSUPPORTED_FIELDS[name]}
    answer = call(server, "POST", path, {"requests": [SUM, {**SUM, **body}]} if path == BATCHES else body)
    where = f"requests[1].{name}: " if path == BATCHES else f"{name}: "
    assert (answer.status, answer.body["detail"].startswith(where)) == (422, True), answer


def talk(messages: list[dict[str, Any]]) -> dict[str, Any]:
    return {"agent_id": "calculator", "messages": messages}


def test_a_callback_url_is_normalised(server: LiveServer) -> None:
    job = create(server, [SUM], callback_url="http://203.0.113.7:9")
    assert job["callback_url"] == "http://203.0.113.7:9/"
    assert create(server, [SUM])["callback_url"] is None


def test_every_time_of_a_job_is_marked_as_utc(server: LiveServer) -> None:
    started = datetime.now(UTC)
    job = ended(server, create(server, [SUM])["id"])
    for name in ("created_at", "updated_at", "completed_at"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", job[name])
        assert started <= datetime.fromisoformat(job[name]) <= datetime.now(UTC)
    [message, *_] = call(server, "GET", f"{BATCHES}/{job['id']}/messages").body["messages"]
    assert message["created_at"].endswith("Z")


def test_a_job_has_every_key_of_letta_nulls_included(server: LiveServer) -> None:
    job = create(server, [SUM])
    assert job.keys() == {
        *("id", "status", "job_type", "created_at", "updated_at", "created_by_id", "last_updated_by_id"),
        *("completed_at", "stop_reason", "metadata", "background", "agent_id", "callback_url", "callback_sent_at"),
        *("callback_status_code", "callback_error", "ttft_ns", "total_duration_ns"),
    }
    assert call(server, "GET", BATCHES).body[0].keys() == job.keys()


JOB_ROUTES = [
    ("GET", ""),
    ("PATCH", "/cancel"),
    ("GET", "/messages"),
    ("GET", "/items"),
    ("GET", "/results"),
    ("GET", "/events"),
    ("POST", "/retry"),
]


@pytest.mark.parametrize(("method", "rest"), JOB_ROUTES)
@pytest.mark.parametrize(
    "job_id", ["batch-1", "job-1", UNKNOWN_JOB.upper(), "job-123e4567-e89b-12d3-a456-426614174000"]
)
def test_a_malformed_job_id_is_400(server: LiveServer, method: str, rest: str, job_id: str) -> None:
    answer = call(server, method, f"{BATCHES}/{job_id}{rest}")
    assert answer.status == 400
    assert is_error(answer.body)
    expected = f"INVALID_ARGUMENT: Invalid job ID format: {job_id}. Expected format: 'job-<uuid4>'"
    assert answer.body["detail"] == expected


@pytest.mark.parametrize(("method", "rest"), JOB_ROUTES)
def test_an_unknown_job_is_404(server: LiveServer, method: str, rest: str) -> None:
    answer = call(server, method, f"{BATCHES}/{UNKNOWN_JOB}{rest}")
    assert (answer.status, answer.body["detail"]) == (404, f"Job with id {UNKNOWN_JOB} not found")
    assert is_error(answer.body)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", BATCHES, {"GET", "HEAD", "POST"}),
        ("DELETE", BATCHES, {"GET", "HEAD", "POST"}),
        ("POST", f"{BATCHES}/{UNKNOWN_JOB}", {"GET", "HEAD", "DELETE"}),
        ("POST", f"{BATCHES}/{UNKNOWN_JOB}/cancel", {"PATCH"}),
        ("GET", f"{BATCHES}/{UNKNOWN_JOB}/retry", {"POST"}),
        ("PUT", "/v1/agents/", {"GET", "HEAD", "POST"}),
    ],
)
def test_an_unsupported_method_is_405_and_names_the_supported_ones(
    server: LiveServer, method: str, path: str, allowed: set[str]
) -> None:
    answer = call(server, method, path)
    assert (answer.status, answer.body["detail"]) == (405, "Method Not Allowed")
    assert is_error(answer.body)
    assert {*re.split(r",\s*", answer.headers["Allow"])} == allowed


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/agents/calculator/nothing", "/v1/nothing", f"{BATCHES}/{UNKNOWN_JOB}/nothing"]
)
def test_an_unknown_path_is_404(server: LiveServer, path: str) -> None:
    answer = call(server, "GET", path)
    assert (answer.status, answer.body["detail"]) == (404, "Not Found")
    assert is_error(answer.body)


@pytest.mark.parametrize(
    "path",
    [
        *(f"{BATCHES}/{{job}}{rest}" for rest in ("", "/messages", "/items", "/results")),
        *("/v1/agents", "/v1/agents/calculator", "/v1/health", "/readyz"),
    ],
)
def test_a_trailing_slash_changes_nothing(server: LiveServer, job_ids: list[str], path: str) -> None:
    without, with_slash = (call(server, "GET", path.format(job=job_ids[0]) + slash) for slash in ("", "/"))
    assert (without.status, without.body) == (with_slash.status, with_slash.body)
    assert without.status == 200


@pytest.mark.parametrize(
    "path",
    [
        *(f"{BATCHES}{rest}" for rest in ("", "/{job}", "/{job}/messages", "/{job}/items", "/none", f"/{UNKNOWN_JOB}")),
        *("/v1/agents/calculator", "/v1/models/", "/readyz", "/openapi.json", "/nowhere", f"{BATCHES}?limit=x"),
    ],
)
def test_head_has_the_status_and_headers_of_get(server: LiveServer, job_ids: list[str], path: str) -> None:
    get, head = (call(server, method, path.format(job=job_ids[0])) for method in ("GET", "HEAD"))
    assert (head.status, head.body or "") == (get.status, "")
    for name in ("Content-Type", "Content-Length", "Server"):
        assert head.headers[name] == get.headers[name]


@pytest.mark.parametrize("path", ["results", "results?follow=true", "events"])
def test_head_of_a_stream_returns_its_headers_at_once(server: LiveServer, path: str) -> None:
    never = {"agent_id": "planner", "input": json.dumps({"script": [{"text": "too late", "delay_s": 300}]})}
    running = create(server, [never])["id"]
    for job_id, status in ((running, 200), (UNKNOWN_JOB, 404)):
        head = call(server, "HEAD", f"{BATCHES}/{job_id}/{path}", timeout=20)
        assert (head.status, head.body or "") == (status, "")
    assert cancel(server, running).status == 200


def test_a_batch_may_be_posted_with_a_trailing_slash(server: LiveServer) -> None:
    job = call(server, "POST", f"{BATCHES}/", {"requests": [SUM]})
    assert job.status == 200
    assert [each["id"] for each in call(server, "GET", f"{BATCHES}/?limit=1").body] == [job.body["id"]]
    assert call(server, "PATCH", f"{BATCHES}/{job.body['id']}/cancel/").body is None


def test_cancel_returns_null_with_200(server: LiveServer) -> None:
    job_id = create(server, [SUM])["id"]
    ended(server, job_id)
    answer = call(server, "PATCH", f"{BATCHES}/{job_id}/cancel")
    assert (answer.status, answer.body, answer.headers["Content-Type"].split(";")[0]) == (200, None, "application/json")


# -- lists


def test_a_list_ends_in_an_empty_page(server: LiveServer, job_ids: list[str]) -> None:
    newest = call(server, "GET", f"{BATCHES}?limit=1").body[0]["id"]
    assert call(server, "GET", f"{BATCHES}?after={newest}&order=asc").body == []
    assert call(server, "GET", f"{BATCHES}?before={newest}").body == []
    [message, *_] = call(server, "GET", f"{BATCHES}/{job_ids[0]}/messages").body["messages"]
    path = f"{BATCHES}/{job_ids[0]}/messages?order=asc&after={message['id']}"
    assert call(server, "GET", path).body == {"messages": []}


def test_cursors_follow_the_order_of_the_list(server: LiveServer, job_ids: list[str]) -> None:
    def listed(query: str) -> list[str]:
        return [job["id"] for job in call(server, "GET", f"{BATCHES}?{query}").body]

    first, second, third = job_ids
    assert listed(f"order=asc&after={first}&limit=2") == [second, third]
    assert listed(f"order=desc&after={third}&limit=2") == [second, first]
    assert listed(f"order=asc&before={third}&limit=2") == [first, second]
    assert listed(f"order=desc&before={first}&limit=2") == [third, second]
    assert listed(f"order=asc&after={first}&before={third}") == [second]
    assert listed(f"order=asc&after={third}&before={first}") == []


@pytest.mark.parametrize("cursor", ["after", "before"])
@pytest.mark.parametrize(
    ("list_path", "unknown"),
    [
        (BATCHES, UNKNOWN_JOB),
        (BATCHES, "no id at all"),
        (f"{BATCHES}/{{job}}/messages", "message-1b4e28ba-2fa1-4d3b-a3f5-ef19c0ffee00"),
        (f"{BATCHES}/{{job}}/messages", "no id at all"),
        (f"{BATCHES}/{{job}}/items", "batch_item-1b4e28ba-2fa1-4d3b-a3f5-ef19c0ffee00"),
        (f"{BATCHES}/{{job}}/items", "no id at all"),
        ("/v1/agents/", "agent-unknown"),
        ("/v1/agents/calculator/messages", "message-1b4e28ba-2fa1-4d3b-a3f5-ef19c0ffee00"),
        ("/v1/agents/calculator/messages", "no id at all"),
    ],
)
def test_an_unknown_cursor_is_400_and_named(
    server: LiveServer, job_ids: list[str], list_path: str, cursor: str, unknown: str
) -> None:
    path = list_path.format(job=job_ids[0])
    answer = call(server, "GET", f"{path}?{cursor}={unknown.replace(' ', '%20')}")
    assert answer.status == 400
    assert is_error(answer.body)
    assert f"{unknown} not found" in answer.body["detail"]


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=-1", "limit=abc", "limit=1001", "order=up", "order_by=colour", "limit=", "limit=1&limit=2"],
)
@pytest.mark.parametrize("path", [BATCHES, "/v1/agents/", "/v1/agents/calculator/messages"])
def test_an_invalid_query_is_422_and_names_the_parameter(server: LiveServer, path: str, query: str) -> None:
    answer = call(server, "GET", f"{path}?{query}")
    assert answer.status == 422
    assert is_error(answer.body)
    assert query.partition("=")[0] in answer.body["detail"]


def test_unknown_parameters_are_ignored(server: LiveServer) -> None:
    assert call(server, "GET", f"{BATCHES}?limit=1&colour=red&colour=blue").status == 200


def test_batches_of_every_status_are_listed(server: LiveServer) -> None:
    stopped = create(server, [{"agent_id": "slow", "input": "x"}])["id"]
    call(server, "PATCH", f"{BATCHES}/{stopped}/cancel")
    failed = create(server, [{"agent_id": "refused", "input": "x"}])["id"]
    completed = create(server, [SUM])["id"]
    for job_id in (stopped, failed, completed):
        ended(server, job_id)
    listed = call(server, "GET", f"{BATCHES}?limit=3").body
    assert [job["status"] for job in listed] == ["completed", "failed", "cancelled"]


# -- agents


def made(server: LiveServer, **fields: Any) -> dict[str, Any]:
    answer = call(server, "POST", "/v1/agents/", {"model": "offline/rules", **fields})
    assert answer.status == 200, answer
    return dict(answer.body)


REFUSED_AGENTS: dict[str, tuple[Any, int, str]] = {
    "no model": ({"name": "x"}, 400, "INVALID_ARGUMENT: Must specify either model or llm_config in request"),
    "an unknown model": ({"model": "unknown/model"}, 404, "NOT_FOUND: Handle unknown/model not found"),
    "an unknown tool": ({"model": "offline/rules", "tools": ["os:system"]}, 404, "NOT_FOUND: Tool os:system"),
    "an unknown tool id": ({"model": "offline/rules", "tool_ids": ["tool-1"]}, 404, "NOT_FOUND: Tool with id tool-1"),
    "a name that is not text": ({"model": "offline/rules", "name": 7}, 422, "name"),
    "a temperature that is not a number": ({"model": "offline/rules", "model_settings": {"temperature": "x"}}, 422, ""),
    "a block without a value": ({"model": "offline/rules", "memory_blocks": [{"label": "x"}]}, 422, "value"),
    "no JSON": (b"{", 422, ""),
}


@pytest.mark.parametrize(("body", "status", "detail"), REFUSED_AGENTS.values(), ids=REFUSED_AGENTS)
def test_an_invalid_agent_is_refused(server: LiveServer, body: object, status: int, detail: str) -> None:
    answer = call(server, "POST", "/v1/agents/", body)
    assert answer.status == status, answer
    assert is_error(answer.body)
    assert detail in answer.body["detail"]


def test_the_secrets_of_a_client_are_not_stored(server: LiveServer) -> None:
    agent = made(server, memory_blocks=[{"label": "human", "value": "Anna", "read_only": None}])
    assert agent["blocks"][0] == agent["memory"]["blocks"][0]
    assert call(server, "GET", f"/v1/agents/{agent['id']}").body == agent
    secrets = {"TOKEN": "s3cr3t-of-a-client"}
    assert call(server, "PATCH", f"/v1/agents/{agent['id']}", {"secrets": secrets}).status == 422
    files = [file.read_bytes() for file in server.data_dir.iterdir() if file.is_file()]
    assert all(b"s3cr3t-of-a-client" not in text for text in files)
    assert any(agent["id"].encode() in text for text in files)


def test_an_update_changes_only_the_fields_that_it_gives(server: LiveServer) -> None:
    agent = made(server, tools=["calculate"], memory_blocks=[{"label": "human", "value": "Anna"}])
    path = f"/v1/agents/{agent['id']}"
    changed = call(server, "PATCH", path, {"tags": ["new"], "name": None, "tool_rules": None})
    assert changed.status == 200
    assert changed.body == {**agent, "tags": ["new"], "updated_at": changed.body["updated_at"]}
    assert call(server, "PATCH", path, {"tool_ids": []}).body["tools"] == []
    config = {"model": "scripted", "handle": "offline/scripted", "model_endpoint_type": "openai", "context_window": 9}
    assert call(server, "PATCH", path, {"llm_config": config}).body["model"] == "offline/scripted"
    assert call(server, "PATCH", path, {"model": "offline/rules"}).body["model"] == "offline/rules"
    for field in ("tools", "memory_blocks", "id"):
        refused = call(server, "PATCH", path, {field: []})
        assert (refused.status, refused.body["detail"].startswith(f"{field}: unknown key")) == (422, True)


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
def test_an_operators_agent_is_read_only(server: LiveServer, method: str) -> None:
    answer = call(server, method, "/v1/agents/calculator", {"name": "mine"} if method == "PATCH" else None)
    assert answer.status == 403
    assert is_error(answer.body)
    assert call(server, "GET", "/v1/agents/calculator").body["name"] == "calculator"


@pytest.mark.parametrize(
    ("method", "rest", "body"),
    [
        ("GET", "", None),
        ("PATCH", "", {"name": "x"}),
        ("DELETE", "", None),
        ("GET", "/messages", None),
        ("POST", "/messages", {"input": "x"}),
        ("POST", "/messages/stream", {"input": "x"}),
    ],
)
def test_an_unknown_agent_is_404(server: LiveServer, method: str, rest: str, body: object) -> None:
    answer = call(server, method, f"/v1/agents/agent-unknown{rest}", body)
    assert (answer.status, answer.body["detail"]) == (404, "Agent with ID agent-unknown not found")
    assert is_error(answer.body)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({}, "Must specify either"),
        ({"input": "x", "messages": [USER]}, "Cannot specify both"),
        ({"messages": []}, "at least 1 item"),
        ({"input": "x", "stream": True}, "stream: unknown key; did you mean 'streaming'?"),
        ({"messages": [{"role": "user", "contnt": "x"}]}, "messages[0].contnt: unknown key; did you mean 'content'?"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role"),
        (b"{", ""),
    ],
    ids=str,
)
def test_an_invalid_request_to_an_agent_is_422(server: LiveServer, body: object, detail: str) -> None:
    answer = call(server, "POST", "/v1/agents/calculator/messages", body)
    assert answer.status == 422
    assert is_error(answer.body)
    assert detail in answer.body["detail"]


def test_a_model_failure_has_lettas_error_type_and_forbids_a_retry(server: LiveServer) -> None:
    answer = call(server, "POST", "/v1/agents/refused/messages", {"input": "x"})
    assert answer.status == 500
    assert answer.headers["x-should-retry"] == "false"
    assert answer.body["error"] == {
        "type": "llm_error",
        "message": "the provider refused this call",
        "detail": "api_error",
    }


# -- HTTP itself


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/json; charset=latin-1"}, 415),
        ({"Content-Type": "application/json; charset=UTF-8"}, 200),
        ({"Content-Encoding": "gzip"}, 415),
        ({"Idempotency-Key": ""}, 400),
        ({"Idempotency-Key": "k" * 256}, 400),
    ],
    ids=str,
)
def test_an_invalid_header_is_refused(server: LiveServer, headers: dict[str, str], status: int) -> None:
    answer = call(server, "POST", BATCHES, {"requests": [SUM]}, headers=headers)
    assert answer.status == status, answer
    assert status == 200 or is_error(answer.body)


@pytest.fixture
def connection(server: LiveServer) -> Iterator[socket.socket]:
    place = urlsplit(server.url)
    with socket.create_connection((place.hostname, place.port), timeout=30) as connected:
        yield connected


def test_a_body_beyond_256_mib_is_413_before_any_of_it_is_sent(connection: socket.socket) -> None:
    head = f"POST {BATCHES} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {256 * 1024 * 1024 + 1}\r\n\r\n".encode())
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    assert answer.status == 413
    assert b"Request too large" in answer.read()


def test_a_foreign_host_name_is_refused_without_keys(server: LiveServer) -> None:
    answer = call(server, "GET", BATCHES, headers={"Host": "evil.example:80"})
    assert answer.status == 421
    assert is_error(answer.body)

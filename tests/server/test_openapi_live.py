"""The responses of the server agree with its OpenAPI document, for every operation and for wrong requests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from letta_client import Letta

from tests.server.document import Document, Operation
from tests.server.http_client import ask
from tests.server.live import LiveServer
from tests.server.sdk_values import FILE, INPUT, MODEL, OF_EVERY_METHOD, Value, World, value_for

BODIES: dict[str, Value] = {
    "create_openai_batch": lambda world: {
        "input_file_id": world.new_file(),
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    },
    "create_batch": lambda world: {"requests": [{"agent_id": world.agent_id, "input": INPUT}]},
    "create_agent": {"name": "described", "model": MODEL},
    "update_agent": {"description": "Changed."},
    "create_block": {"label": "described", "value": "Anna."},
    "update_block": {"value": "Bert."},
    "update_agent_block": {"value": "Bert."},
    "send_agent_message": {"input": INPUT},
    "stream_agent_message": {"input": INPUT},
    "reset_agent_messages": {"add_default_initial_messages": False},
    "send_agent_message_async": {"input": INPUT},
    "cancel_agent_runs": lambda world: {"run_ids": world.new_run()},
    "stream_run": {},
    "run_agent_tool": {"args": {"expression": "1 + 2"}},
    "search_tools": {"query": "calculate"},
    "update_agent_tool_approval": {"requires_approval": True},
    "update_step_feedback": {"feedback": "positive", "tags": ["good"]},
}
"""A valid body for each operation that needs one."""

IDS: dict[str, dict[str, Value]] = {
    "attach_agent_tool": {"agent_id": World.new_agent},
    "detach_agent_tool": {"agent_id": World.new_agent},
    "update_agent_tool_approval": {"agent_id": World.new_agent},
    "cancel_batch": {"batch_id": World.new_batch},
    "cancel_openai_batch": {"openai_batch_id": World.cancelled_openai_batch},
    "retrieve_openai_model": {"model": "calculator"},
    "cancel_job": {"job_id": World.new_batch},
    "delete_batch": {"batch_id": World.new_batch},
    "delete_job": {"job_id": World.new_batch},
    "delete_run": {"run_id": World.ended_run},
    "delete_agent": {"agent_id": World.new_agent},
    "delete_block": {"block_id": World.new_block},
    "delete_file": {"file_id": World.new_file},
    "detach_agent_block": {"block_id": World.attached_block},
    "attach_agent_block": {"block_id": World.new_block},
    "reset_agent_messages": {"agent_id": World.new_agent},
    "update_agent": {"agent_id": World.new_agent},
}
"""Objects of their own for operations that change them."""

_NO_JOB = "00000000-0000-4000-8000-000000000000"
UNKNOWN = {
    "batch_id": f"job-{_NO_JOB}",
    "run_id": f"run-{_NO_JOB}",
    "step_id": f"step-{_NO_JOB}",
    "job_id": f"job-{_NO_JOB}",
}
REFUSED = {"unpause_batch": 409, **dict.fromkeys(("create_tool", "upsert_tool", "update_tool", "delete_tool"), 403)}
"""The statuses of operations that the objects of this test, or any objects, do not allow."""


def is_form(operation: Operation) -> bool:
    return "multipart/form-data" in operation.described["requestBody"]["content"]


class Caller:
    """Calls operations, and compares each response with the document."""

    def __init__(self, server: LiveServer, world: World) -> None:
        self.document = Document(ask(server.url, "/openapi.json"))
        self._http, self._world = httpx.Client(base_url=server.url, verify=False), world

    def call(self, operation: Operation, ids: dict[str, str] | None = None, **request: Any) -> httpx.Response:
        """Send a request, about objects that exist unless there are other `ids`, and compare its response."""

        def id_of(name: re.Match[str]) -> str:
            known = {**OF_EVERY_METHOD, **IDS.get(operation.id, {}), **(ids or {})}
            return str(value_for(self._world, known[name[1]]))

        path = re.sub(r"{(\w+)}", id_of, operation.path)
        response = self._http.request(operation.method, path, **request)
        kind = response.headers["Content-Type"]
        found = self.document.problems(operation.method, path, response.status_code, kind, response.content)
        assert found == [], (operation.id, response.text[:1000])
        return response

    def valid(self, operation: Operation) -> dict[str, Any]:
        """Return the valid body of an operation, as an argument of `call`."""
        if "requestBody" not in operation.described:
            return {}
        if is_form(operation):
            return {"files": {"file": ("batch.jsonl", FILE)}, "data": {"purpose": "batch"}}
        return {"json": value_for(self._world, BODIES[operation.id])}

    def close(self) -> None:
        self._http.close()


@pytest.fixture(scope="module")
def caller(server: LiveServer) -> Iterator[Caller]:
    with Letta(base_url=server.url, api_key="any") as letta:
        caller = Caller(server, World(letta))
        yield caller
        caller.close()


def test_every_operation_answers_as_described(caller: Caller) -> None:
    for operation in caller.document.operations:
        response = caller.call(operation, **caller.valid(operation))
        assert response.status_code == REFUSED.get(operation.id, 200), (operation.id, response.text)


def test_unknown_objects_are_refused_as_described(caller: Caller) -> None:
    for operation in caller.document.operations:
        for name in re.findall(r"{(\w+)}", operation.path):
            for unknown in (UNKNOWN.get(name, "unknown"), "%00", "a" * 300):
                response = caller.call(operation, {name: unknown}, **caller.valid(operation))
                wanted = (400, 404, REFUSED.get(operation.id, 404))
                assert response.status_code in wanted, (operation.id, response.text)


def test_unusable_bodies_are_refused_as_described(caller: Caller) -> None:
    for operation in caller.document.operations:
        if "requestBody" in operation.described:
            kind = {"Content-Type": "multipart/form-data; boundary=-" if is_form(operation) else "application/json"}
            if not operation.described["requestBody"]["required"]:
                assert caller.call(operation).status_code == 200
            for body in (b"{", b"[]", b"\xff", b'{"' + b"a" * 99, b"1" * 99):
                assert caller.call(operation, content=body, headers=kind).status_code in (400, 422), operation.id
            text = {"Content-Type": "text/plain"}
            assert caller.call(operation, content=b"{}", headers=text).status_code == 415, operation.id


def test_unusable_queries_are_refused_as_described(caller: Caller) -> None:
    for operation in caller.document.operations:
        for parameter in operation.described["parameters"]:
            if parameter["in"] == "query" and parameter["schema"].get("type") in ("integer", "boolean"):
                response = caller.call(operation, params={parameter["name"]: "much"}, **caller.valid(operation))
                wanted = 422 if "422" in operation.described["responses"] else 400
                assert response.status_code == wanted, (operation.id, parameter["name"])

"""A plain client of the endpoint, for tests that want to see every byte."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tests.server.live import LiveServer


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: Any


def call(
    server: LiveServer,
    method: str,
    path: str,
    body: object = None,
    *,
    headers: Mapping[str, str] | None = None,
    timeout: float = 60,
) -> Answer:
    """Send a request and return its answer; `body` is sent as JSON, or as it is where it is bytes."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    sent = {**({"Content-Type": "application/json"} if data is not None else {}), **(headers or {})}
    request = urllib.request.Request(server.url + path, data=data, headers=sent, method=method)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return _answer(response.status, dict(response.headers.items()), response.read())
    except urllib.error.HTTPError as error:
        with error:
            return _answer(error.code, dict(error.headers.items()), error.read())


def _answer(status: int, headers: Mapping[str, str], text: bytes) -> Answer:
    is_json = (headers.get("Content-Type") or "").partition(";")[0] == "application/json"
    return Answer(status, headers, json.loads(text) if is_json else text.decode())


def create(server: LiveServer, requests: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """Create a batch and return its job."""
    answer = call(server, "POST", "/v1/messages/batches", {"requests": requests, **fields})
    assert answer.status == 200, answer
    return dict(answer.body)


def job_of(server: LiveServer, job_id: str) -> dict[str, Any]:
    """Return a job as it is now."""
    answer = call(server, "GET", f"/v1/messages/batches/{job_id}")
    assert answer.status == 200, answer
    return dict(answer.body)


def ended(server: LiveServer, job_id: str, timeout_s: float = 60.0) -> dict[str, Any]:
    """Wait for a job's end and return it."""
    return job_when(server, job_id, lambda job: job["completed_at"] is not None, timeout_s)


def job_when(
    server: LiveServer, job_id: str, is_so: Callable[[dict[str, Any]], bool], timeout_s: float = 60.0
) -> dict[str, Any]:
    """Wait until something is so of a job, looking often, and return it."""
    end = time.monotonic() + timeout_s
    while not is_so(job := job_of(server, job_id)):
        assert time.monotonic() < end, f"it did not come about in time: {job}"
        time.sleep(0.05)
    return job

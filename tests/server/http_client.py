"""HTTP calls to a live server; `raw_http` sends what HTTP libraries refuse to send."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from tests.polling import until
from tests.server.live import LiveServer

BATCHES = "/v1/messages/batches"
CONNECTION_ERRORS = (OSError, http.client.HTTPException, ValueError)
"""A connection that was refused, was reset, or ended in the middle of a response."""

Value = TypeVar("Value")


class Response(NamedTuple):
    """Any response; `body` is parsed if it is JSON."""

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
) -> Response:
    """Send a request and return its response, whatever its status; `body` is sent as JSON unless it is bytes."""
    try:
        with _open(server.url, path, body, method, headers or {}, timeout) as response:
            return _response(response.status, dict(response.headers.items()), response.read())
    except urllib.error.HTTPError as error:
        with error:
            return _response(error.code, dict(error.headers.items()), error.read())


def ask(url: str, path: str, body: object = None, method: str | None = None, **headers: str) -> Any:
    """Return the JSON of a successful response.  Raises `urllib.error.HTTPError` for any other."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with _open(url, path, body, method, named) as response:
        return json.load(response)


def status_of(url: str, path: str, body: object = None) -> int:
    """Return the status of a response."""
    try:
        ask(url, path, body)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    return 200


def if_available(request: Callable[[], Value]) -> Value | None:
    """Make a request; None if the server cannot be reached, or asks to come again later (409, 503)."""
    try:
        return request()
    except urllib.error.HTTPError as error:
        with error:
            if error.code not in (409, 503):
                raise AssertionError(f"{error.url}: {error.code} {error.read()!r}") from error
        return None
    except CONNECTION_ERRORS:
        return None


def results(url: str, job_id: str) -> Iterator[dict[str, Any]]:
    """Yield a job's results, in index order."""
    with _open(url, f"{BATCHES}/{job_id}/results") as response:
        for line in response:
            yield json.loads(line)


def create(server: LiveServer, requests: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """Create a batch and return its job."""
    response = call(server, "POST", BATCHES, {"requests": requests, **fields})
    assert response.status == 200, response
    return dict(response.body)


def cancel(server: LiveServer, job_id: str) -> Response:
    """Cancel a job."""
    return call(server, "PATCH", f"{BATCHES}/{job_id}/cancel")


def job_of(server: LiveServer, job_id: str) -> dict[str, Any]:
    """Return a job in its present state."""
    response = call(server, "GET", f"{BATCHES}/{job_id}")
    assert response.status == 200, response
    return dict(response.body)


def counts_of(server: LiveServer, job_id: str) -> dict[str, int]:
    """Return how many items of a job have each status."""
    return dict(job_of(server, job_id)["metadata"]["request_counts"])


def n_done(server: LiveServer, job_id: str) -> int:
    """Return how many items of a job have an outcome."""
    counts = counts_of(server, job_id)
    return counts["total"] - counts["pending"]


def ended(server: LiveServer, job_id: str, timeout_s: float = 60.0) -> dict[str, Any]:
    """Wait until a job ends, and return it."""
    return job_when(server, job_id, lambda job: job["completed_at"] is not None, timeout_s)


def job_when(
    server: LiveServer, job_id: str, condition: Callable[[dict[str, Any]], bool], timeout_s: float = 60.0
) -> dict[str, Any]:
    """Wait until a condition holds for a job, and return the job."""

    def look() -> dict[str, Any] | None:
        job = job_of(server, job_id)
        return job if condition(job) else None

    return until(look, timeout_s)


def _open(
    url: str,
    path: str,
    body: object = None,
    method: str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 60,
) -> Any:
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    sent = {**({"Content-Type": "application/json"} if data is not None else {}), **(headers or {})}
    return urllib.request.urlopen(urllib.request.Request(url + path, data, sent, method=method), timeout=timeout)


def _response(status: int, headers: Mapping[str, str], text: bytes) -> Response:
    is_json = (headers.get("Content-Type") or "").partition(";")[0] == "application/json"
    return Response(status, headers, json.loads(text) if is_json and text else text.decode())

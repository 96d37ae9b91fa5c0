"""Plain HTTP with a live server, for tests that have no loop of their own."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from tests.server.live import LiveServer

Seen = TypeVar("Seen")

BATCHES = "/v1/messages/batches"

LOST = (OSError, http.client.HTTPException, ValueError)  # refused, reset, or broken off in the middle


def ask(url: str, path: str, body: Any = None, method: str | None = None, **headers: str) -> Any:
    """Return the JSON that a server answers with.  Raises urllib.error.HTTPError for a refusal."""
    with _open(url, path, body, method, **headers) as answer:
        return json.load(answer)


def if_there(look: Callable[[], Seen]) -> Seen | None:
    """Return what a look at a server gives; None where it is not there, or says to come again."""
    try:
        return look()
    except urllib.error.HTTPError as error:
        with error:
            if error.code not in (409, 503):
                raise AssertionError(f"{error.url}: {error.code} {error.read()!r}") from error
        return None
    except LOST:
        return None


def status_of(url: str, path: str, body: Any = None) -> int:
    """Return the status that a server answers with."""
    try:
        ask(url, path, body)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    return 200


def results(url: str, job_id: str) -> Iterator[dict[str, Any]]:
    """Yield a job's results, in index order."""
    with _open(url, f"{BATCHES}/{job_id}/results") as answer:
        for line in answer:
            yield json.loads(line)


def get(server: LiveServer, path: str) -> tuple[int, Any]:
    """Return status and body of a GET, whatever the status."""
    return _told(server, path)


def post(server: LiveServer, path: str, body: Any, **headers: str) -> Any:
    """Return the body of a POST that succeeded."""
    status, answer = _told(server, path, body, **headers)
    assert status == 200, answer
    return answer


def patch(server: LiveServer, path: str) -> tuple[int, Any]:
    """Return status and body of a PATCH without a body."""
    return _told(server, path, method="PATCH")


def _told(
    server: LiveServer, path: str, body: Any = None, method: str | None = None, **headers: str
) -> tuple[int, Any]:
    try:
        return 200, ask(server.url, path, body, method, **headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def _open(url: str, path: str, body: Any = None, method: str | None = None, **headers: str) -> Any:
    data = None if body is None else json.dumps(body).encode()
    named = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return urllib.request.urlopen(urllib.request.Request(url + path, data, named, method=method), timeout=60)

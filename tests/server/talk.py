"""Plain HTTP with a live server, for tests that have no loop of their own."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from tests.server.live import LiveServer


def get(server: LiveServer, path: str) -> tuple[int, Any]:
    """Return status and body of a GET, whatever the status."""
    return _ask(urllib.request.Request(server.url + path))


def post(server: LiveServer, path: str, body: Any, **headers: str) -> Any:
    """Return the body of a POST that succeeded."""
    request = urllib.request.Request(
        server.url + path,
        json.dumps(body).encode(),
        {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}},
    )
    status, answer = _ask(request)
    assert status == 200, answer
    return answer


def patch(server: LiveServer, path: str) -> tuple[int, Any]:
    """Return status and body of a PATCH without a body."""
    return _ask(urllib.request.Request(server.url + path, method="PATCH"))


def _ask(request: urllib.request.Request) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)

"""How a server starts and ends."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

from tests.server.live import LiveServer, live_server


def get(server: LiveServer, path: str) -> tuple[int, object]:
    try:
        with urllib.request.urlopen(server.url + path, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_it_says_where_it_listens_and_ends_with_status_0(tmp_path: Path) -> None:
    with live_server(tmp_path / "data") as server:
        assert get(server, "/readyz")[0] == 200
        assert get(server, "/v1/health/") == (200, {"version": "0.1.0", "status": "ok"})
        assert server.stop() == 0
    assert "Traceback" not in server.log

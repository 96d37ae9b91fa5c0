"""Clients that ask an agent of a live server, whose model is the loopback provider, and leave before its answer."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from batchray.store import JobRecord, Store
from tests.polling import until
from tests.provider_server import ProviderServer
from tests.server.live import LiveServer, live_server
from tests.server.raw_http import head, wire

ASK = "/v1/agents/asked/messages"
ENDLESS = '[[latency:0.3]] [[steps:99]] [[tool:calculate {"expression": "1 + 1"}]]'


@contextmanager
def answering_server(
    directory: Path, provider: ProviderServer, *options: str, executor: str = "local"
) -> Iterator[LiveServer]:
    """Start a server whose agent `asked` is answered by the provider."""
    (directory / "tools.py").write_text(
        'def calculate(expression: str) -> str:\n    """Calculate."""\n    return "2"\n'
    )
    described = {
        "providers": {"local": {"protocol": "openai", "base_url": provider.base_url}},
        "agents": [{"id": "asked", "model": "local/m", "tools": ["tools:calculate"], "max_steps": 99}],
    }
    file = directory / "agents.json"
    file.write_text(json.dumps(described))
    with live_server(directory / "data", *options, agents=file, executor=executor) as server:
        yield server


def runs_of(server: LiveServer) -> list[JobRecord]:
    store = Store.open_for_reading(server.data_dir)
    try:
        return store.jobs.find(kind="run")
    finally:
        store.close()


def leave_after_the_first_call(
    server: LiveServer, provider: ProviderServer, bodies: list[dict[str, Any]], stay_s: float = 0.0, **headers: str
) -> float:
    """Send requests, close their connections when each has called its model, and return when.

    They stay connected for at least `stay_s` seconds.
    """
    n_before = provider.n_calls
    with ExitStack() as connections:
        for body in bodies:
            data = json.dumps(body).encode()
            connections.enter_context(wire(server)).send(head(ASK, Content_Length=len(data), **headers), data)
        until(lambda: provider.n_calls >= n_before + len(bodies))
        time.sleep(stay_s)
    return time.monotonic()

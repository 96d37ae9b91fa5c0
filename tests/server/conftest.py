"""One live server for the tests that only talk to it; it runs its requests in its own process, without Ray."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.live import LiveServer, live_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Return a server with the quickstart's agents and no API keys."""
    with live_server(tmp_path_factory.mktemp("server") / "data") as running:
        yield running

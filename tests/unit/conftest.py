"""Fixtures of the unit tests.  Nothing here starts a process or a server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from batchray.agents import AttemptRunner


@pytest.fixture
async def attempt_runner() -> AsyncIterator[AttemptRunner]:
    """Return the runner of attempts that a lane has."""
    made = AttemptRunner()
    yield made
    await made.close()

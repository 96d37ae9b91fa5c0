"""What all tests share.  Nothing here knows of Ray."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.postgres import Database, postgres

# A busy machine is not a bug: how long an example takes, or its drawing, is no claim of any test.
settings.register_profile("batchray", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("batchray")


@pytest.fixture(scope="session")
def database() -> Iterator[Database]:
    """Return a PostgreSQL server; tests that stop it start it again."""
    with postgres() as running:
        yield running

"""What all tests share.  Nothing here knows of Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.postgres import Database, postgres

# A busy machine is not a bug: how long an example takes, or its drawing, is no claim of any test.
settings.register_profile("batchray", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("batchray")


_CLUSTER = Path(__file__).parent / "cluster"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests run in one process, one after the other: those of a file, and all that share a Ray cluster."""
    for item in items:
        group = "cluster" if _CLUSTER in item.path.parents else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def database() -> Iterator[Database]:
    """Return a PostgreSQL server; tests that stop it start it again."""
    with postgres() as running:
        yield running

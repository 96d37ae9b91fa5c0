"""What all tests share.  Nothing here knows of Ray."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.postgres import Database, postgres

# A busy machine is not a bug: how long an example takes, or its drawing, is no claim of any test.
settings.register_profile("batchray", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("batchray")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes run the whole suite, which mostly waits; a choice of tests is run by this one alone.

    A choice is over before other processes are up, or, as benchmarks do, wants the machine for itself.
    """
    is_whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not config.option.keyword
    return 2 if is_whole and config.option.markexpr in config.getini("addopts") else 0


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together, in one process and one after the other, the tests of a file and those of the session's cluster.

    The cluster's come first: they take about half of the time, and the others fill up the rest.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            shares_cluster = "ray_session" in getattr(item, "fixturenames", ())
            group = "cluster" if shares_cluster else f"{item.path.parent.name}/{item.path.stem}"
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: "ray_session" not in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def database() -> Iterator[Database]:
    """Return a PostgreSQL server; tests that stop it start it again."""
    with postgres() as running:
        yield running

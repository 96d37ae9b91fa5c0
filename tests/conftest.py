"""What all tests share.  Nothing here knows of Ray."""

from __future__ import annotations

import fcntl
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.postgres import Database, postgres
from tests.together import CLUSTER, InGroups, group_of

# A busy machine is not a bug: how long an example takes, or its drawing, is no claim of any test.  And what fails once
# fails for everybody: the examples are the same in every run.
settings.register_profile("batchray", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("batchray")


def pytest_configure() -> None:
    """Heed interrupts: a run in a shell's background ignores them, and so would all that it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes run the whole suite, which mostly waits; a choice of tests is run by this one alone.

    A choice is over before other processes are up, or, as benchmarks do, wants the machine for itself.
    """
    is_whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not config.option.keyword
    return 2 if is_whole and config.option.markexpr in config.getini("addopts") else 0


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> InGroups:
    return InGroups(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what shares the session's cluster: it takes about half of the time, the others fill up the rest."""
    items.sort(key=lambda item: group_of(item.nodeid) != CLUSTER)


@pytest.fixture
def memory_alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let no other test that asks for this run meanwhile: Ray's memory monitor looks at the whole machine."""
    with (tmp_path_factory.getbasetemp().parent / "memory.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def database() -> Iterator[Database]:
    """Return a PostgreSQL server; tests that stop it start it again."""
    with postgres() as running:
        yield running

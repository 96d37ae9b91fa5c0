"""Settings and fixtures of all tests.  Nothing here imports Ray."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.postgres import Database, postgres
from tests.scheduling import rank

# Container images often forbid bytecode files.  The suite starts hundreds of processes, and each of them would compile
# batchray again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# No deadline and no check for slow examples: a busy machine is not a defect.  `derandomize` makes every run use the
# same examples, so that a failure can be repeated.  `.ci/run` tries more: --hypothesis-profile=full.
_FULL = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("full", _FULL)
settings.register_profile("default", _FULL, max_examples=15)
settings.load_profile("default")


def pytest_configure() -> None:
    """Restore interrupts: a run in a shell's background ignores them, and its child processes would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run the whole suite in four processes, because it often waits; run a selection of tests in this one.

    A selection ends before other processes have started or, as benchmarks do, needs the machine for itself.
    """
    is_whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not config.option.keyword
    return 4 if is_whole and config.option.markexpr in config.getini("addopts") else 0


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the slowest files, so that the processes of a whole run end at about the same time."""
    items.sort(key=lambda item: rank(item.nodeid))


@pytest.fixture
def memory_alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Exclude other tests with this fixture meanwhile: Ray's memory monitor measures the whole machine."""
    with (tmp_path_factory.getbasetemp().parent / "memory.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def database() -> Iterator[Database]:
    """Return a PostgreSQL server; a test that stops it must start it again."""
    with postgres() as running:
        yield running

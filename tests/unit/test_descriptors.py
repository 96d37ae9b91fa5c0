"""The limit of open files: raised as far as possible, and a window that fits into it."""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchray.config import Settings
from batchray.executors import LocalExecutor
from batchray.jobs.runtime import fit_window
from batchray.support.descriptors import connections_that_fit, raise_descriptor_limit


@pytest.fixture
def low_limit() -> Iterator[int]:
    """Lower the soft limit of this process for one test, and return the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_soft_limit_is_raised_to_the_hard_one_but_not_beyond_65536(low_limit: int) -> None:
    raise_descriptor_limit()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == low_limit
    assert soft == (65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536))
    raise_descriptor_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)


def test_descriptors_that_are_open_or_needed_for_files_hold_no_connections(low_limit: int, tmp_path: Path) -> None:
    before = connections_that_fit()
    assert 0 < before < 512 - 64
    with (tmp_path / "a").open("w"), (tmp_path / "b").open("w"):
        assert connections_that_fit() == before - 2


def test_a_window_that_does_not_fit_is_lowered_with_a_warning(low_limit: int, caplog: pytest.LogCaptureFixture) -> None:
    executor = LocalExecutor()
    assert fit_window(Settings(max_in_flight=16), executor).max_in_flight == 16
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        fitted = fit_window(Settings(max_in_flight=2000), executor).max_in_flight
    assert fitted == connections_that_fit()
    assert f"max_in_flight is lowered from 2000 to {fitted}" in caplog.text

"""One real Ray cluster for the session, which batchray starts as it does for any user."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import batchray

LANES = {"lanes": 2, "num_cpus": 2}
"""Settings of all jobs of the session; equal settings make them share lanes."""


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Keep Ray's files in a directory of this session, and stop its cluster at the end."""
    with tempfile.TemporaryDirectory(prefix="br", ignore_cleanup_errors=True) as directory:
        os.environ["RAY_TMPDIR"] = directory  # a short path, because Ray creates sockets in it
        yield
        batchray.shutdown()
        del os.environ["RAY_TMPDIR"]


@pytest.fixture
def options(ray_session: None, tmp_path: Path) -> dict[str, Any]:
    """Return settings for a job on the session's cluster, with a new data directory."""
    return {"data_dir": tmp_path / "data", "progress": False, **LANES}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder with `cluster`."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)

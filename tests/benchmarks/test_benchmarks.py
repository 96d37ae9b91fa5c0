"""The benchmarks as tests, for `python -m pytest -m benchmark -s`."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(900)]


@pytest.mark.parametrize(
    "name",
    [
        "import_time",
        "cpu_per_request",
        "peers --only aiohttp,batchray",
        "memory",
        "intake",
        "uploads",
        "connections",
        "readers",
        "followers",
        "restarts",
        "askers",
        "tables",
        "exports",
        "nodes",
        "million --requests 100000",
    ],
)
def test_the_limits_of_the_benchmark_are_held(name: str) -> None:
    subprocess.run([sys.executable, "-m", *f"tests.benchmarks.{name}".split()], check=True)

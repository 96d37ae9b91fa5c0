"""The report of the chaos tests: one table row for each run, printed at the end."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pytest

ROWS = pytest.StashKey[list[dict[str, Any]]]()


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Return a function that adds this run's figures to the report."""
    rows = request.config.stash.setdefault(ROWS, [])

    def add(**figures: Any) -> None:
        rows.append({"run": request.node.name, **figures})

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = terminalreporter.config.stash.get(ROWS, [])
    if rows:
        terminalreporter.section(f"chaos, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}")
        for row in rows:
            figures = " | ".join(f"{name} {value}" for name, value in row.items() if name != "run")
            terminalreporter.write_line(f"| {row['run']} | {figures} |")

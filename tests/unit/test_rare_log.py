"""Log lines that are written once a minute."""

from __future__ import annotations

import logging

import pytest

from batchray.support.rare_log import RareLog


def test_a_repeated_message_is_counted_and_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    rare = RareLog(logging.getLogger("batchray.test"), logging.WARNING, "no room: %s", 60.0, lambda: now)
    for now in (0.0, 1.0, 59.9, 60.0, 61.0, 500.0):
        rare.log(f"at {now:g} s")
    assert [record.getMessage() for record in caplog.records] == [
        "no room: at 0 s",
        "no room: at 60 s (2 more since the last such line)",
        "no room: at 500 s (1 more since the last such line)",
    ]

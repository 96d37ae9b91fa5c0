"""Timeouts that pause."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class PausedTimeout:
    """A limit that stands still, since this moment or an earlier one by the loop's clock, until `end`."""

    def __init__(self, limit: asyncio.Timeout, since: float | None = None) -> None:
        self._limit, self._ends = limit, limit.when()
        self._since = asyncio.get_running_loop().time() if since is None else since
        self._move(None)

    def end(self) -> None:
        """Let the limit go on where it was."""
        stood_s = asyncio.get_running_loop().time() - self._since
        self._move(None if self._ends is None else self._ends + stood_s)

    def _move(self, ends: float | None) -> None:
        with suppress(RuntimeError):  # what it limits is over, or is being ended
            self._limit.reschedule(ends)


@contextmanager
def paused(limit: asyncio.Timeout) -> Iterator[None]:
    """Let the time for which this is entered not count towards a limit: nobody can help it that a store waits."""
    standstill = PausedTimeout(limit)
    try:
        yield
    finally:
        standstill.end()

"""Limits of time that stand still while a store does, which nobody who waits for it can help."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from batchray.agents import PausedTimeout

# A commit takes milliseconds; who waits for one that takes longer than this waits for a disk or a database.
_SLOW_S = 1.0


class PausableDeadlines:
    """The limits of all that runs in one process: a lane keeps the steps of several jobs at once.

    They stand still from a moment before a store is found to be slow until none is waited for any more.
    """

    def __init__(self, slow_s: float = _SLOW_S) -> None:
        self._slow_s, self._stalled_s, self._since = slow_s, 0.0, 0.0
        self._limits: dict[asyncio.Timeout, None] = {}
        self._standing: dict[asyncio.Timeout, PausedTimeout] = {}
        self._slow: set[object] = set()  # of those who wait, who have waited for long

    def stalled_s(self) -> float:
        """Return for how long they have stood still so far, in seconds."""
        return self._stalled_s + (_now() - self._since if self._slow else 0.0)

    @contextmanager
    def of(self, limit: asyncio.Timeout) -> Iterator[None]:
        """Let a limit, which has been entered, be one of them while this is."""
        self._limits[limit] = None
        if self._slow:
            self._standing[limit] = PausedTimeout(limit)
        try:
            yield
        finally:
            del self._limits[limit]
            self._standing.pop(limit, None)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Enter while a store is waited for."""
        waiter = object()
        slow = asyncio.get_running_loop().call_later(self._slow_s, self._begin, waiter)
        try:
            yield
        finally:
            slow.cancel()
            self._end(waiter)

    def _begin(self, waiter: object) -> None:
        if not self._slow:
            self._since = _now() - self._slow_s
            self._standing = {limit: PausedTimeout(limit, self._since) for limit in self._limits}
        self._slow.add(waiter)

    def _end(self, waiter: object) -> None:
        if waiter not in self._slow:
            return
        self._slow.discard(waiter)
        if not self._slow:
            self._stalled_s += _now() - self._since
            for standstill in self._standing.values():
                standstill.end()
            self._standing.clear()


def _now() -> float:
    return asyncio.get_running_loop().time()

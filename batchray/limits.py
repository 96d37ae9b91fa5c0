"""Limits of time that stand still while a store does, which nobody who waits for it can help."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from batchray.agents import untimed

# A commit takes milliseconds; who waits for one that takes longer than this waits for a disk or a database.
_SLOW_S = 1.0


class Limits:
    """The limits of what runs now.  `stalled_s` is for how long they have stood still so far, in seconds."""

    def __init__(self, slow_s: float = _SLOW_S) -> None:
        self._slow_s, self._stalled_s = slow_s, 0.0
        self._limits: dict[asyncio.Timeout, None] = {}
        self._standing: ExitStack | None = None
        self._since = 0.0

    @property
    def stalled_s(self) -> float:
        """For how long they have stood still, in seconds."""
        return self._stalled_s + (time.monotonic() - self._since if self._standing is not None else 0.0)

    @contextmanager
    def of(self, limit: asyncio.Timeout) -> Iterator[None]:
        """Let a limit, which has been entered, be one of them while this is."""
        self._limits[limit] = None
        try:
            yield
        finally:
            del self._limits[limit]

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Enter while the store is waited for; where that is for long they stand still until it is over."""
        slow = asyncio.get_running_loop().call_later(self._slow_s, self._stand)
        try:
            yield
        finally:
            slow.cancel()
            self._go_on()

    def _stand(self) -> None:
        self._since, self._standing = time.monotonic(), ExitStack()
        for limit in self._limits:
            self._standing.enter_context(untimed(limit))

    def _go_on(self) -> None:
        if self._standing is not None:
            self._stalled_s += time.monotonic() - self._since
            self._standing.close()
            self._standing = None

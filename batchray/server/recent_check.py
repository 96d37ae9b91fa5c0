"""A check whose success counts for a moment, so that frequent askers do not wait for it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

_RENEW_S, _VALID_S = 0.3, 2.0


class RecentCheck:
    """Runs `check`, which raises if it fails, at most once at a time.

    A success counts for `valid_s` seconds; from `renew_s` on the next asker starts the check again, without waiting.  A
    failure does not count: the next asker waits for a new check.
    """

    def __init__(
        self,
        check: Callable[[], Awaitable[None]],
        renew_s: float = _RENEW_S,
        valid_s: float = _VALID_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._check, self._renew_s, self._valid_s, self._clock = check, renew_s, valid_s, clock
        self._passed_at = -math.inf
        self._running: asyncio.Task[None] | None = None

    async def passed(self) -> None:
        """Return if the check has passed recently, or passes now.  Raises its error if not."""
        age_s = self._clock() - self._passed_at
        if age_s >= self._renew_s and self._running is None:
            self._running = asyncio.create_task(self._run())
            self._running.add_done_callback(self._note)
        if age_s >= self._valid_s:
            assert self._running is not None
            await asyncio.shield(self._running)

    async def _run(self) -> None:
        await self._check()

    def _note(self, run: asyncio.Task[None]) -> None:
        has_passed = not run.cancelled() and run.exception() is None
        self._passed_at, self._running = self._clock() if has_passed else -math.inf, None

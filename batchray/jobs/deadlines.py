"""Deadlines that pause while the store is unavailable."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol

from batchray.support.timeouts import PausedTimeout

# A commit takes milliseconds.  One that takes longer than this waits for a disk or for a database server.
_SLOW_S = 1.0


class Clock(Protocol):
    """Tells the time in seconds and sets timers; an asyncio event loop is one."""

    def time(self) -> float:
        """Return the time, in seconds since some moment."""
        ...

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        """Call a function after a delay; the handle cancels that."""
        ...


class PausableDeadlines:
    """All deadlines of one process that pause while the store is unavailable, for all of its jobs together.

    A stall begins when a commit takes longer than `slow_s`; it counts from the start of that commit, and ends when no
    slow commit is waited for.  The deadlines are those of everything that runs, because a lane's checkpoints of several
    jobs wait for the same commits.  `clock` is the running event loop by default.
    """

    def __init__(self, slow_s: float = _SLOW_S, clock: Clock | None = None) -> None:
        self._slow_s, self._given_clock = slow_s, clock
        self._stalled_s, self._since = 0.0, 0.0
        self._timeouts: dict[asyncio.Timeout, None] = {}
        self._paused: dict[asyncio.Timeout, PausedTimeout] = {}
        self._slow_commits: set[object] = set()

    def timeout(self, limit_s: float | None) -> PausableTimeout:
        """Limit a block to `limit_s` seconds, not counting stalls, as `asyncio.timeout` does."""
        return PausableTimeout(self, limit_s)

    def add(self, timeout: asyncio.Timeout) -> None:
        """Pause a timeout during stalls, and now if there is one, until it is removed."""
        self._timeouts[timeout] = None
        if self._slow_commits:
            self._pause(timeout, None)

    def remove(self, timeout: asyncio.Timeout) -> None:
        """Pause a timeout no more."""
        del self._timeouts[timeout]
        self._paused.pop(timeout, None)

    @contextmanager
    def commit(self) -> Iterator[None]:
        """Enter while a commit is waited for."""
        commit = object()
        timer = self._clock.call_later(self._slow_s, self._begin_stall, commit)
        try:
            yield
        finally:
            timer.cancel()
            self._end_stall(commit)

    def stopwatch(self) -> Stopwatch:
        """Start to count stalls, to take them out of a duration that is measured elsewhere."""
        return Stopwatch(self)

    def stalled_s(self) -> float:
        """Return how long all stalls so far have lasted, in seconds."""
        return self._stalled_s + (self._clock.time() - self._since if self._slow_commits else 0.0)

    @property
    def _clock(self) -> Clock:
        return self._given_clock or asyncio.get_running_loop()

    def _pause(self, timeout: asyncio.Timeout, since: float | None) -> None:
        self._paused[timeout] = PausedTimeout(timeout, since, self._clock.time)

    def _begin_stall(self, commit: object) -> None:
        if not self._slow_commits:
            self._since = self._clock.time() - self._slow_s
            for timeout in self._timeouts:
                self._pause(timeout, self._since)
        self._slow_commits.add(commit)

    def _end_stall(self, commit: object) -> None:
        if commit not in self._slow_commits:
            return
        self._slow_commits.discard(commit)
        if not self._slow_commits:
            self._stalled_s += self._clock.time() - self._since
            for pause in self._paused.values():
                pause.end()
            self._paused.clear()


class PausableTimeout:
    """The block of `PausableDeadlines.timeout`.  A class, because each attempt enters one: a generator costs more."""

    def __init__(self, deadlines: PausableDeadlines, limit_s: float | None) -> None:
        self._deadlines, self._timeout = deadlines, asyncio.timeout(limit_s)

    async def __aenter__(self) -> asyncio.Timeout:
        await self._timeout.__aenter__()
        self._deadlines.add(self._timeout)
        return self._timeout

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._deadlines.remove(self._timeout)
        await self._timeout.__aexit__(kind, raised, traceback)


class Stopwatch:
    """Counts the stalls since its creation."""

    def __init__(self, deadlines: PausableDeadlines) -> None:
        self._deadlines, self._before_s = deadlines, deadlines.stalled_s()

    def without_stalls(self, duration_s: float) -> float:
        """Return a duration that began no earlier than this stopwatch, less the stalls since then; 0 or more."""
        return max(duration_s - (self._deadlines.stalled_s() - self._before_s), 0.0)

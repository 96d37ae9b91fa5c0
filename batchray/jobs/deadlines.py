"""Deadlines that pause while the store is unavailable, or while the provider of their requests takes no calls."""

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


class Pauses:
    """The pauses that some deadlines have in common.  `clock` is the running event loop by default."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._given_clock = clock
        self._since: float | None = None
        self._total_s = 0.0
        self._timeouts: dict[PausableTimeout, None] = {}

    @property
    def clock(self) -> Clock:
        """Tells the time of these pauses."""
        return self._given_clock or asyncio.get_running_loop()

    def begin(self, ago_s: float = 0.0) -> None:
        """Pause all deadlines, as of `ago_s` seconds ago.  Does nothing during a pause."""
        if self._since is None:
            self._since = self.clock.time() - ago_s
            for timeout in self._timeouts:
                timeout.pause(self._since, self.clock.time)

    def end(self) -> None:
        """Continue all deadlines with the time that they had left.  Does nothing if there is no pause."""
        if self._since is not None:
            self._total_s += self.clock.time() - self._since
            self._since = None
            for timeout in self._timeouts:
                timeout.resume()

    def add(self, timeout: PausableTimeout) -> None:
        """Pause a timeout during these pauses, and now if there is one, until it is removed."""
        self._timeouts[timeout] = None
        if self._since is not None:
            timeout.pause(self.clock.time(), self.clock.time)

    def remove(self, timeout: PausableTimeout) -> None:
        """Pause a timeout no more."""
        del self._timeouts[timeout]

    def total_s(self) -> float:
        """Return how long all pauses so far have lasted, in seconds."""
        return self._total_s + (self.clock.time() - self._since if self._since is not None else 0.0)


class PausableDeadlines(Pauses):
    """All deadlines of one process that pause while the store is unavailable, for all of its jobs together.

    A stall begins when a commit takes longer than `slow_s`; it counts from the start of that commit, and ends when no
    slow commit is waited for.  The deadlines are those of everything that runs, because a lane's checkpoints of several
    jobs wait for the same commits.
    """

    def __init__(self, slow_s: float = _SLOW_S, clock: Clock | None = None) -> None:
        super().__init__(clock)
        self._slow_s = slow_s
        self._slow_commits: set[object] = set()

    def timeout(self, limit_s: float | None, *others: Pauses) -> PausableTimeout:
        """Limit a block to `limit_s` seconds, without stalls and `others`, as `asyncio.timeout` does."""
        return PausableTimeout((self, *others), limit_s)

    @contextmanager
    def commit(self) -> Iterator[None]:
        """Enter while a commit is waited for, or another call of the store that a request needs."""
        commit = object()
        timer = self.clock.call_later(self._slow_s, self._begin_stall, commit)
        try:
            yield
        finally:
            timer.cancel()
            self._end_stall(commit)

    def stopwatch(self, *others: Pauses) -> Stopwatch:
        """Start to count stalls and `others`, to take them out of a duration that is measured elsewhere."""
        return Stopwatch((self, *others))

    def _begin_stall(self, commit: object) -> None:
        self.begin(self._slow_s)
        self._slow_commits.add(commit)

    def _end_stall(self, commit: object) -> None:
        if commit in self._slow_commits:
            self._slow_commits.discard(commit)
            if not self._slow_commits:
                self.end()


class PausableTimeout:
    """The block of `PausableDeadlines.timeout`.  A class, because each attempt enters one: a generator costs more.

    Pauses of different kinds may overlap: it continues when all of them have ended.
    """

    def __init__(self, pauses: tuple[Pauses, ...], limit_s: float | None) -> None:
        self._pauses, self._timeout = pauses, asyncio.timeout(limit_s)
        self._n_pauses = 0
        self._paused: PausedTimeout | None = None

    async def __aenter__(self) -> asyncio.Timeout:
        await self._timeout.__aenter__()
        for pauses in self._pauses:
            pauses.add(self)
        return self._timeout

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for pauses in self._pauses:
            pauses.remove(self)
        await self._timeout.__aexit__(kind, raised, traceback)

    def pause(self, since: float, clock: Callable[[], float]) -> None:
        """Pause it since a moment of the clock, until as many `resume` as `pause` were called."""
        self._n_pauses += 1
        if self._paused is None:
            self._paused = PausedTimeout(self._timeout, since, clock)

    def resume(self) -> None:
        """Continue it with the time that was left, unless another pause has not ended."""
        self._n_pauses -= 1
        if self._paused is not None and not self._n_pauses:
            self._paused.end()
            self._paused = None


class Stopwatch:
    """Counts the pauses since its creation."""

    def __init__(self, pauses: tuple[Pauses, ...]) -> None:
        self._pauses, self._before_s = pauses, sum(each.total_s() for each in pauses)

    def without_pauses(self, duration_s: float) -> float:
        """Return a duration that began no earlier than this stopwatch, less the pauses since then; 0 or more."""
        paused_s = sum(each.total_s() for each in self._pauses) - self._before_s
        return max(duration_s - paused_s, 0.0)

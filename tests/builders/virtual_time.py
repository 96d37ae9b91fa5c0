"""Virtual time: a sleep takes no real time, and the clock advances by it."""

from __future__ import annotations

import asyncio
import functools
import heapq
import itertools
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# How often a loop has to find no work until the bytes of loopback connections have arrived.
_N_IDLE = 20


class _Selector(selectors.DefaultSelector):
    """A selector that, instead of waiting for a timer, advances the clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:  # no timer is set; only another thread can wake the loop
            return super().select()
        events = super().select(0)
        if not events:
            self.now += max(0.0, timeout)
        return events


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Runs timers at once, in their order.  Not for code that waits for threads or sockets with a timeout."""

    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        """Return the virtual time, in seconds."""
        return self._clock.now


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Make an async test run on a loop of its own with virtual time."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run


class SteppedTime:
    """A clock for code that sleeps and uses real sockets: it advances to the next wake-up when nothing else happens.

    `is_busy` says whether a peer still works on something, so that its answer is awaited before time passes.
    """

    def __init__(self, is_busy: Callable[[], bool] = lambda: False) -> None:
        self.now, self.is_busy = 1000.0, is_busy
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    def clock(self) -> float:
        """Return the time, in seconds."""
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock has advanced by so much."""
        sleeper = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._numbers), sleeper))
        await sleeper

    async def run(self, work: Awaitable[T]) -> T:
        """Return what `work` returns, and let time pass meanwhile."""
        task = asyncio.ensure_future(work)
        n_idle = 0
        while not task.done():
            before = len(self._sleepers)
            await asyncio.sleep(0)
            n_idle = n_idle + 1 if len(self._sleepers) == before and not self.is_busy() else 0
            if n_idle > _N_IDLE and self._sleepers:
                n_idle = 0
                self._wake_next()
        return task.result()

    def _wake_next(self) -> None:
        self.now = max(self.now, self._sleepers[0][0])
        while self._sleepers and self._sleepers[0][0] <= self.now:
            if not (sleeper := heapq.heappop(self._sleepers)[2]).done():  # otherwise its task is being cancelled
                sleeper.set_result(None)

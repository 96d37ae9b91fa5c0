"""Deadlines pause while a commit is slow, and continue after it with the time that was left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from batchray.jobs.deadlines import PausableDeadlines

SLOW_S = 1.0


class Clock:
    """A clock that is set by hand; its timers fire as it is set."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self._timers: list[tuple[float, asyncio.TimerHandle]] = []

    def time(self) -> float:
        return self.now_s

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(self.now_s + delay, callback, args, asyncio.get_running_loop())
        self._timers.append((self.now_s + delay, handle))
        return handle

    def advance(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        due = sorted(each for each in self._timers if each[0] <= end_s)
        self._timers = [each for each in self._timers if each not in due]
        for when_s, handle in due:
            self.now_s = when_s
            if not handle.cancelled():
                handle._run()
        self.now_s = end_s


async def test_a_slow_commit_does_not_count() -> None:
    clock = Clock()
    deadlines = PausableDeadlines(SLOW_S, clock)
    async with deadlines.timeout(100) as timeout:
        ends = timeout.when()
        assert ends is not None
        with deadlines.commit():
            clock.advance(4)
            assert timeout.when() is None
            with deadlines.commit():  # a quick one meanwhile changes nothing
                pass
            assert timeout.when() is None
        assert timeout.when() == ends + 4
    assert deadlines.total_s() == 4


async def test_a_timeout_that_begins_during_a_stall_is_paused_too() -> None:
    clock = Clock()
    deadlines = PausableDeadlines(SLOW_S, clock)
    with deadlines.commit():
        clock.advance(2)
        async with deadlines.timeout(100) as timeout:
            assert timeout.when() is None
            clock.advance(2)
            assert timeout.when() is None
    assert deadlines.total_s() == 4


async def test_all_are_paused_until_no_slow_commit_is_left() -> None:
    clock = Clock()
    deadlines = PausableDeadlines(SLOW_S, clock)
    async with deadlines.timeout(100) as timeout:
        ends = timeout.when()
        assert ends is not None
        with deadlines.commit():
            with deadlines.commit():
                clock.advance(2)
            assert timeout.when() is None
        assert timeout.when() == ends + 2


async def test_a_quick_commit_counts() -> None:
    clock = Clock()
    deadlines = PausableDeadlines(SLOW_S, clock)
    async with deadlines.timeout(100) as timeout:
        ends = timeout.when()
        with deadlines.commit():
            clock.advance(0.9)
        clock.advance(10)
        assert (timeout.when(), deadlines.total_s()) == (ends, 0.0)


async def test_a_timeout_that_has_expired_stays_so() -> None:
    clock = Clock()
    deadlines = PausableDeadlines(SLOW_S, clock)
    timeouts: list[asyncio.Timeout] = []

    async def wait() -> None:
        async with deadlines.timeout(0) as timeout:
            timeouts.append(timeout)
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await wait()
    with deadlines.commit():
        clock.advance(2)
    assert timeouts[0].expired()


async def test_a_stopwatch_takes_the_stalls_out_of_a_duration() -> None:
    clock = Clock()
    deadlines = PausableDeadlines(SLOW_S, clock)
    with deadlines.commit():
        clock.advance(3)
        stopwatch = deadlines.stopwatch()
        clock.advance(2)
        assert stopwatch.without_pauses(5.0) == 3.0
    clock.advance(1)
    assert (stopwatch.without_pauses(6.0), stopwatch.without_pauses(1.0)) == (4.0, 0.0)

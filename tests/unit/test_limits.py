"""Limits stand still while a store is waited for, and go on after it where they were."""

from __future__ import annotations

import asyncio

import pytest

from batchray.jobs.deadlines import PausableDeadlines

SLOW_S = 0.05


async def test_a_limit_does_not_count_a_slow_wait() -> None:
    limits = PausableDeadlines(SLOW_S)
    async with asyncio.timeout(100) as limit:
        ends = limit.when()
        with limits.of(limit):
            with limits.waiting():
                await asyncio.sleep(0.2)
                assert limit.when() is None
                with limits.waiting():  # a short one beside it changes nothing
                    pass
                assert limit.when() is None
            assert ends is not None
            assert 100.19 < (limit.when() or 0.0) - ends + 100 < 110
    assert 0.19 < limits.stalled_s() < 10


async def test_a_limit_that_begins_meanwhile_stands_still_too() -> None:
    limits = PausableDeadlines(SLOW_S)
    async with asyncio.timeout(100) as limit:
        ends = limit.when()
        with limits.waiting():
            await asyncio.sleep(0.1)
            with limits.of(limit):
                assert limit.when() is None
                await asyncio.sleep(0.1)
                assert limit.when() is None
        assert ends is not None
    assert limits.stalled_s() > 0.19


async def test_all_stand_still_until_no_store_is_waited_for() -> None:
    limits = PausableDeadlines(SLOW_S)
    async with asyncio.timeout(100) as limit:
        with limits.of(limit):
            with limits.waiting():
                with limits.waiting():
                    await asyncio.sleep(0.1)
                assert limit.when() is None
            assert limit.when() is not None


async def test_a_wait_that_is_short_is_not_counted_out() -> None:
    limits = PausableDeadlines(100)
    async with asyncio.timeout(100) as limit:
        ends = limit.when()
        with limits.of(limit), limits.waiting():
            await asyncio.sleep(0.05)
        assert (limit.when(), limits.stalled_s()) == (ends, 0.0)


async def test_a_limit_that_has_come_stays_so() -> None:
    limits = PausableDeadlines(SLOW_S)
    limit = asyncio.timeout(0.01)

    async def wait() -> None:
        async with limit:
            with limits.of(limit):
                await asyncio.sleep(10)

    with pytest.raises(TimeoutError):
        await wait()
    with limits.waiting():
        await asyncio.sleep(0.1)
    assert limit.expired()

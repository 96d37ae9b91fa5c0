from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchray.jobs.window import Keys, Window


async def each(items: Iterable[int]) -> AsyncIterator[int]:
    for item in items:
        await asyncio.sleep(0)
        yield item


async def collect(
    window: Window[int, int], items: AsyncIterator[int], work: Callable[[int], Awaitable[int]]
) -> list[int]:
    async with aclosing(window.run(items, work)) as finished:
        return [result async for results in finished for result in results]


async def settle() -> None:
    """Let everything go on that can go on."""
    for _ in range(20):
        await asyncio.sleep(0)


class Works:
    """Work that ends when it is told to, and knows what runs."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.running: dict[int, asyncio.Future[int]] = {}
        self.cancelled: list[int] = []

    async def __call__(self, item: int) -> int:
        self.started.append(item)
        self.running[item] = asyncio.get_running_loop().create_future()
        try:
            return await self.running[item]
        except asyncio.CancelledError:
            self.cancelled.append(item)
            raise
        finally:
            del self.running[item]

    async def finish(self, *items: int) -> None:
        for item in items:
            self.running[item].set_result(item)
        await settle()


@given(st.integers(0, 60), st.integers(1, 8), st.integers(1, 5), st.integers(1, 10), st.randoms(use_true_random=False))
def test_every_item_is_worked_on_once_and_no_limit_is_passed(
    n_items: int, size: int, limit: int, max_waiting: int, rng: random.Random
) -> None:
    running: Counter[Hashable] = Counter()
    most: Counter[Hashable] = Counter()
    order: dict[Keys, list[int]] = {}

    def keys(item: int) -> Keys:
        return ((), ("limited",), ("free",), ("limited", "both"))[item % 4]

    async def work(item: int) -> int:
        order.setdefault(keys(item), []).append(item)
        here = (*keys(item), "all")
        running.update(here)
        for name, n in running.items():
            most[name] = max(most[name], n)
        for _ in range(rng.randrange(5)):
            await asyncio.sleep(0)
        running.subtract(here)
        return item

    async def run() -> list[int]:
        window: Window[int, int] = Window(
            size, keys=keys, limits={"limited": limit, "both": 1}, max_waiting=max_waiting
        )
        results = await collect(window, each(range(n_items)), work)
        assert window.in_flight == 0
        return results

    assert sorted(asyncio.run(run())) == list(range(n_items))
    assert most["all"] <= size
    assert most["limited"] <= limit
    assert most["both"] <= 1
    assert all(started == sorted(started) for started in order.values())


async def test_results_come_in_finish_order_and_together_what_finished_together() -> None:
    works, batches = Works(), list[list[int]]()
    window: Window[int, int] = Window(3)

    async def consume() -> None:
        async with aclosing(window.run(each(range(4)), works)) as finished:
            async for results in finished:
                batches.append(results)

    task = asyncio.create_task(consume())
    await settle()
    assert (works.started, window.in_flight) == ([0, 1, 2], 3)
    await works.finish(2)
    await works.finish(1, 3)
    await works.finish(0)
    await task
    assert batches == [[2], [1, 3], [0]]


async def test_a_key_at_its_limit_does_not_hold_up_the_others() -> None:
    works = Works()
    window: Window[int, int] = Window(10, keys=lambda item: ("slow",) if item < 5 else ("fast",), limits={"slow": 1})
    task = asyncio.create_task(collect(window, each(range(8)), works))
    await settle()
    assert works.started == [0, 5, 6, 7]
    await works.finish(5, 6, 7)
    for item in range(5):
        await works.finish(item)
    assert await task == [5, 6, 7, 0, 1, 2, 3, 4]


async def test_no_more_items_wait_for_a_key_than_may() -> None:
    works, n_read = Works(), 0

    async def items() -> AsyncIterator[int]:
        nonlocal n_read
        for item in range(100):
            n_read += 1
            yield item

    window: Window[int, int] = Window(10, keys=lambda item: ("slow",), limits={"slow": 1}, max_waiting=4)
    task = asyncio.create_task(collect(window, items(), works))
    await settle()
    assert n_read == 5
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert works.cancelled == [0]


async def test_what_waits_is_bounded_by_its_weight() -> None:
    works, n_read = Works(), 0

    async def items() -> AsyncIterator[int]:
        nonlocal n_read
        for item in (0, 10, 40, 1, 1):
            n_read += 1
            yield item

    window: Window[int, int] = Window(
        10, keys=lambda item: ("slow",), limits={"slow": 1}, weight=lambda item: item, max_waiting=50
    )
    task = asyncio.create_task(collect(window, items(), works))
    await settle()
    assert n_read == 3
    await works.finish(0)
    assert (works.started, n_read) == ([0, 10], 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_room_that_comes_while_an_item_is_read_is_for_the_one_that_waits() -> None:
    works, gates = Works(), [asyncio.Event() for _ in range(3)]

    async def items() -> AsyncIterator[int]:
        for item, gate in enumerate(gates):
            await gate.wait()
            yield item

    window: Window[int, int] = Window(10, keys=lambda item: ("agent",), limits={"agent": 1})
    task = asyncio.create_task(collect(window, items(), works))
    gates[0].set()
    gates[1].set()
    await settle()
    await works.finish(0)  # while item 2 is being read, and item 1 waits
    gates[2].set()
    await settle()
    for item in (1, 2):
        await works.finish(item)
    await task
    assert works.started == [0, 1, 2]


async def test_a_paused_window_starts_nothing_and_lets_go_on_what_runs() -> None:
    works = Works()
    window: Window[int, int] = Window(2)
    task = asyncio.create_task(collect(window, each(range(4)), works))
    await settle()
    window.pause()
    await works.finish(0)
    await works.finish(1)
    assert works.started == [0, 1]
    window.pause(False)
    await settle()
    assert works.started == [0, 1, 2, 3]
    await works.finish(2, 3)
    assert await task == [0, 1, 2, 3]


async def test_an_item_that_arrives_after_the_pause_waits_and_is_not_lost() -> None:
    works, arrived = Works(), asyncio.Event()

    async def items() -> AsyncIterator[int]:
        yield 0
        await arrived.wait()
        yield 1

    window: Window[int, int] = Window(2)
    task = asyncio.create_task(collect(window, items(), works))
    await settle()
    window.pause()
    arrived.set()
    await settle()
    assert works.started == [0]
    window.pause(False)
    await settle()
    await works.finish(0, 1)
    assert await task == [0, 1]


async def test_a_smaller_window_lets_finish_what_runs_beyond_it() -> None:
    works = Works()
    window: Window[int, int] = Window(3)
    task = asyncio.create_task(collect(window, each(range(6)), works))
    await settle()
    window.resize(1)
    await works.finish(0)
    assert works.started == [0, 1, 2]
    await works.finish(1, 2)
    assert works.started == [0, 1, 2, 3]
    window.resize(2)
    await settle()
    assert works.started == [0, 1, 2, 3, 4]
    await works.finish(3, 4)
    await works.finish(5)
    assert await task == [0, 1, 2, 3, 4, 5]


async def test_a_stopped_window_cancels_what_runs_and_ends() -> None:
    works = Works()
    window: Window[int, int] = Window(2)
    task = asyncio.create_task(collect(window, each(range(6)), works))
    await settle()
    window.stop()
    assert await task == []
    assert (works.cancelled, works.running, window.in_flight) == ([0, 1], {}, 0)


async def test_an_error_of_the_work_cancels_the_rest_and_is_raised() -> None:
    works = Works()

    async def work(item: int) -> int:
        if item == 2:
            raise LookupError("two")
        return await works(item)

    with pytest.raises(LookupError, match="two"):
        await collect(Window(5), each(range(5)), work)
    assert works.running == {}
    assert set(works.cancelled) == set(works.started)


async def test_an_error_of_the_items_cancels_the_rest_and_is_raised() -> None:
    works = Works()

    async def items() -> AsyncIterator[int]:
        yield 0
        await settle()
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        await collect(Window(5), items(), works)
    assert works.cancelled == [0]


async def test_two_errors_at_once_raise_the_first_and_leave_none_unretrieved() -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))

    async def work(item: int) -> int:
        raise LookupError(item)

    with pytest.raises(LookupError, match="0"):
        await collect(Window(5), each(range(5)), work)
    assert complaints == []


async def test_work_that_cancels_itself_is_an_error_and_not_lost() -> None:
    async def work(item: int) -> int:
        raise asyncio.CancelledError

    with pytest.raises(RuntimeError, match="was cancelled, and not by its window"):
        await collect(Window(5), each(range(2)), work)


async def test_an_empty_source_ends_at_once() -> None:
    assert await collect(Window(5), each([]), Works()) == []


async def never() -> int:
    return await asyncio.Future[int]()


async def test_a_source_that_has_to_wait_does_not_hold_up_a_stop() -> None:
    window: Window[int, int] = Window(4)
    work = Works()

    async def waits() -> AsyncIterator[int]:
        yield 1
        if (n := await window.unless_stopped(never())) is not None:
            yield n

    running = asyncio.ensure_future(collect(window, waits(), work))
    await settle()
    assert work.started == [1]
    window.stop()
    assert await running == []
    assert work.cancelled == [1]


async def test_what_is_not_stopped_is_told() -> None:
    window: Window[int, int] = Window(4)
    assert await window.unless_stopped(asyncio.sleep(0, 7)) == 7

    async def fails() -> int:
        raise LookupError

    with pytest.raises(LookupError):
        await window.unless_stopped(fails())

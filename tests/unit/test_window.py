from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchray.jobs.slots import Slot, Slots, Wanted
from batchray.jobs.window import Window


async def each(items: Iterable[int]) -> AsyncIterator[int]:
    for item in items:
        await asyncio.sleep(0)
        yield item


async def collect(
    window: Window[int, int], items: AsyncIterator[int], work: Callable[[int], Awaitable[int]]
) -> list[int]:
    async with aclosing(window.run(items, work)) as finished:
        return [result async for results in finished for result in results]


def is_unused(slots: Slots) -> bool:
    """Whether no slot is held, and nothing of a waiter is left."""
    return not slots._n_used and not slots._queues


async def settle() -> None:
    """Run until every task waits for something."""
    for _ in range(20):
        await asyncio.sleep(0)


SLOW = Slot("slow", 1)


class Works:
    """Work that ends when a test says so, and lists the items in flight."""

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
    order: dict[Wanted, list[int]] = {}
    limited, free, both = Slot("limited", limit), Slot("free", 100), Slot("both", 1)

    def wanted(item: int) -> Wanted:
        return ((), (limited,), (free,), (limited, both))[item % 4]

    async def work(item: int) -> int:
        order.setdefault(wanted(item), []).append(item)
        here = (*(slot.key for slot in wanted(item)), "all")
        running.update(here)
        for name, n in running.items():
            most[name] = max(most[name], n)
        for _ in range(rng.randrange(5)):
            await asyncio.sleep(0)
        running.subtract(here)
        return item

    async def run() -> list[int]:
        slots = Slots()
        window: Window[int, int] = Window(size, wanted=wanted, slots=slots, max_waiting=max_waiting)
        results = await collect(window, each(range(n_items)), work)
        assert window.in_flight == 0
        assert is_unused(slots)
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


async def test_items_that_wait_for_a_slot_do_not_hold_up_the_others() -> None:
    works = Works()
    window: Window[int, int] = Window(10, wanted=lambda item: (SLOW,) if item < 5 else ())
    task = asyncio.create_task(collect(window, each(range(8)), works))
    await settle()
    assert works.started == [0, 5, 6, 7]
    await works.finish(5, 6, 7)
    for item in range(5):
        await works.finish(item)
    assert await task == [5, 6, 7, 0, 1, 2, 3, 4]


async def test_no_more_items_wait_for_a_slot_than_may() -> None:
    works, n_read = Works(), 0

    async def items() -> AsyncIterator[int]:
        nonlocal n_read
        for item in range(100):
            n_read += 1
            yield item

    window: Window[int, int] = Window(10, wanted=lambda item: (SLOW,), max_waiting=4)
    task = asyncio.create_task(collect(window, items(), works))
    await settle()
    assert n_read == 5
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert works.cancelled == [0]


async def test_waiting_items_are_bounded_by_their_weight() -> None:
    works, n_read = Works(), 0

    async def items() -> AsyncIterator[int]:
        nonlocal n_read
        for item in (0, 10, 40, 1, 1):
            n_read += 1
            yield item

    window: Window[int, int] = Window(10, wanted=lambda item: (SLOW,), weight=lambda item: item, max_waiting=50)
    task = asyncio.create_task(collect(window, items(), works))
    await settle()
    assert n_read == 3
    await works.finish(0)
    assert (works.started, n_read) == ([0, 10], 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_slot_that_is_released_while_an_item_is_read_goes_to_the_waiting_item() -> None:
    works, gates = Works(), [asyncio.Event() for _ in range(3)]

    async def items() -> AsyncIterator[int]:
        for item, gate in enumerate(gates):
            await gate.wait()
            yield item

    window: Window[int, int] = Window(10, wanted=lambda item: (SLOW,))
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


async def test_a_paused_window_starts_nothing_and_its_items_in_flight_continue() -> None:
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


async def test_items_in_flight_beyond_a_smaller_window_finish() -> None:
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


async def test_a_stopped_window_cancels_its_items_in_flight_and_ends() -> None:
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


# -- work that leaves before its end, and items that are prepared


@given(st.integers(0, 40), st.integers(1, 6), st.integers(1, 3), st.integers(1, 6), st.randoms(use_true_random=False))
def test_no_more_items_are_worked_on_than_places_and_few_have_left(
    n_items: int, size: int, limit: int, max_weight: int, rng: random.Random
) -> None:
    working: set[int] = set()
    left: set[int] = set()
    prepared: list[int] = []
    started: list[int] = []
    limited = Slot("limited", limit)
    window: Window[int, int] = Window(size, wanted=lambda item: (limited,) if item % 2 else (), max_waiting=max_weight)

    async def work(item: int) -> int:
        started.append(item)
        working.add(item)
        assert len(working) <= size
        assert sum(each % 2 for each in working) <= limit
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        working.discard(item)
        if rng.random() < 0.7:
            left.add(item)
            assert len(left) < min(max_weight, size + 1) + size  # what was in flight when the bound was reached
            window.leave()
            for _ in range(rng.randrange(6)):
                await asyncio.sleep(0)
            left.discard(item)
        return item

    async def run() -> list[int]:
        async with aclosing(window.run(each(range(n_items)), work, prepared.append)) as finished:
            return [result async for results in finished for result in results]

    assert sorted(asyncio.run(run())) == list(range(n_items))
    for kind in (0, 1):
        assert [item for item in started if item % 2 == kind] == [*range(kind, n_items, 2)]
        of_kind = [item for item in prepared if item % 2 == kind]
        assert of_kind == sorted(set(of_kind))
    assert (window.in_flight, window._n_ready, window._weight_left) == (0, 0, 0)


class Leaving(Works):
    """Work that leaves its place when a test says `arrive`, and ends when it says `finish`."""

    def __init__(self, window: Window[int, int]) -> None:
        super().__init__()
        self.window = window
        self.arrivals: dict[int, asyncio.Future[None]] = {}

    async def __call__(self, item: int) -> int:
        self.arrivals[item] = asyncio.get_running_loop().create_future()
        self.started.append(item)
        await self.arrivals[item]
        self.window.leave(10)
        self.started.pop(self.started.index(item))
        return await super().__call__(item)

    async def arrive(self, *items: int) -> None:
        for item in items:
            self.arrivals[item].set_result(None)
        await settle()


async def test_an_item_that_has_left_makes_room_but_only_for_as_many_as_may_have_left() -> None:
    window: Window[int, int] = Window(2)
    works = Leaving(window)
    task = asyncio.create_task(collect(window, each(range(8)), works))
    await settle()
    assert sorted(works.arrivals) == [0, 1]
    await works.arrive(0, 1)
    assert (sorted(works.arrivals), window.in_flight) == ([0, 1, 2, 3], 2)
    await works.arrive(2)
    assert (sorted(works.arrivals), window.in_flight) == ([0, 1, 2, 3], 1)  # three have left
    await works.finish(0)
    assert (sorted(works.arrivals), window.in_flight) == ([0, 1, 2, 3, 4], 2)
    window.stop()
    assert await task in ([], [0])


@pytest.mark.parametrize("n_aside", [0, 2])  # of those that were set aside, and have left since
async def test_items_that_have_left_are_waited_for_when_the_window_winds_down(n_aside: int) -> None:
    window: Window[int, int] = Window(1)
    works = Leaving(window)
    task = asyncio.create_task(collect(window, each(range(3)), works))
    await settle()
    await works.arrive(0)
    await works.arrive(1)
    window.wind_down()
    window.set_aside(n_aside)
    await settle()
    assert not task.done()
    await works.finish(1, 0)
    assert await task == [1, 0]


async def run_prepared(window: Window[int, int], n_items: int, works: Works, prepared: list[int]) -> None:
    async with aclosing(window.run(each(range(n_items)), works, prepared.append)) as finished:
        async for _ in finished:
            pass


async def test_a_full_window_prepares_the_items_that_start_next_in_their_order() -> None:
    works, prepared = Works(), list[int]()
    window: Window[int, int] = Window(2)
    task = asyncio.create_task(run_prepared(window, 9, works, prepared))
    await settle()
    assert (works.started, prepared) == ([0, 1], [2, 3])
    await works.finish(1)
    assert (works.started, prepared) == ([0, 1, 2], [2, 3, 4])
    window.pause()
    await works.finish(0)
    assert (works.started, prepared) == ([0, 1, 2], [2, 3, 4])
    window.pause(False)
    window.resize(3)
    await settle()
    assert (works.started, prepared) == ([0, 1, 2, 3, 4], [2, 3, 4, 5, 6, 7])
    window.stop()
    await task


async def test_items_that_wait_for_a_slot_are_prepared_too_and_bounded() -> None:
    works, prepared = Works(), list[int]()
    window: Window[int, int] = Window(4, wanted=lambda item: (SLOW,), max_waiting=100)
    task = asyncio.create_task(run_prepared(window, 20, works, prepared))
    await settle()
    assert (works.started, prepared) == ([0], [1, 2, 3, 4])
    await works.finish(0)
    assert (works.started, prepared) == ([0, 1], [1, 2, 3, 4, 5])
    window.stop()
    await task


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


async def test_a_source_that_is_not_stopped_returns_or_raises() -> None:
    window: Window[int, int] = Window(4)
    assert await window.unless_stopped(asyncio.sleep(0, 7)) == 7

    async def fails() -> int:
        raise LookupError

    with pytest.raises(LookupError):
        await window.unless_stopped(fails())


# -- slots that windows share


class Job:
    """A window over items whose work ends when a test says so."""

    def __init__(self, slots: Slots, n_items: int, size: int = 10, wanted: Wanted = (SLOW,)) -> None:
        self.works = Works()
        self.window: Window[int, int] = Window(size, wanted=lambda item: wanted, slots=slots)
        self.task = asyncio.create_task(collect(self.window, each(range(n_items)), self.works))


async def test_windows_take_turns_at_a_shared_slot() -> None:
    slots = Slots()
    jobs = [Job(slots, 3) for _ in range(3)]
    await settle()
    order: list[int] = []
    for _ in range(9):
        [busy] = [i for i, job in enumerate(jobs) if job.works.running]
        order.append(busy)
        await jobs[busy].works.finish(*jobs[busy].works.running)
    assert order == [0, 1, 2] * 3
    assert [await job.task for job in jobs] == [[0, 1, 2]] * 3
    assert is_unused(slots)


async def test_a_full_window_leaves_the_slot_to_the_next_one_and_keeps_its_place_in_the_queue() -> None:
    slots = Slots()
    holder, first, second = Job(slots, 1), Job(slots, 1), Job(slots, 2)
    await settle()
    first.window.resize(0)
    await holder.works.finish(0)
    assert (first.works.started, second.works.started) == ([], [0])
    first.window.resize(1)
    await second.works.finish(0)
    assert (first.works.started, second.works.started) == ([0], [0])
    await first.works.finish(0)
    await second.works.finish(1)
    assert is_unused(slots)


@pytest.mark.parametrize("is_paused", [False, True])
async def test_a_window_that_has_stopped_leaves_its_slots_to_the_others(is_paused: bool) -> None:
    slots = Slots()
    stopped, waiting, other = Job(slots, 3), Job(slots, 3), Job(slots, 1)
    await settle()
    waiting.window.pause(is_paused)
    waiting.window.stop()
    stopped.window.stop()
    await settle()
    assert (await stopped.task, await waiting.task, other.works.started) == ([], [], [0])
    await other.works.finish(0)
    assert await other.task == [0]
    assert is_unused(slots)


async def test_a_paused_window_holds_up_no_other() -> None:
    slots = Slots()
    holder, waiting, other = Job(slots, 1), Job(slots, 1), Job(slots, 1)
    await settle()
    waiting.window.pause()
    await holder.works.finish(0)
    await other.works.finish(0)
    waiting.window.pause(False)
    await settle()
    await waiting.works.finish(0)
    assert [await job.task for job in (holder, waiting, other)] == [[0]] * 3


async def test_an_error_of_one_window_releases_its_slots() -> None:
    slots = Slots()

    async def fail(item: int) -> int:
        raise LookupError

    failing: Window[int, int] = Window(3, wanted=lambda item: (SLOW,), slots=slots)
    other = Job(slots, 1)
    with pytest.raises(LookupError):
        await collect(failing, each(range(5)), fail)
    await settle()
    await other.works.finish(0)
    assert await other.task == [0]
    assert is_unused(slots)


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 5)), min_size=1, max_size=4),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_no_shared_limit_is_passed_and_every_item_of_every_window_runs(
    jobs: list[tuple[int, int]], limit: int, rng: random.Random
) -> None:
    provider, agents = Slot("provider", limit), [Slot(("agent", i), 1) for i in range(3)]
    running: Counter[Hashable] = Counter()

    def wanted(item: int) -> Wanted:
        return ((), (provider,), (agents[0], provider), (agents[1], provider), (agents[2],))[item % 5]

    async def run_one(slots: Slots, n_items: int, size: int) -> list[int]:
        order: dict[Wanted, list[int]] = {}

        async def work(item: int) -> int:
            order.setdefault(wanted(item), []).append(item)
            for slot in wanted(item):
                running[slot.key] += 1
                assert running[slot.key] <= slot.size
            for _ in range(rng.randrange(5)):
                await asyncio.sleep(0)
            for slot in wanted(item):
                running[slot.key] -= 1
            return item

        window: Window[int, int] = Window(size, wanted=wanted, slots=slots)
        task = asyncio.create_task(collect(window, each(range(n_items)), work))
        while not task.done():
            await asyncio.sleep(0)
            change = rng.randrange(20)
            if change < 3:
                window.resize(change + 1)
            elif change == 3:
                window.pause()
            elif change < 10:
                window.pause(False)
            for key, queue in slots._queues.items():  # a key with free slots has no queue
                if any(waiter.is_waiting() for _, waiter in queue):
                    assert slots._n_used[key] >= (limit if key == "provider" else 1)
        assert all(started == sorted(started) for started in order.values())
        return sorted(await task)

    async def run() -> None:
        slots = Slots()
        results = await asyncio.gather(*(run_one(slots, n_items, size) for n_items, size in jobs))
        assert results == [list(range(n_items)) for n_items, _ in jobs]
        assert is_unused(slots)

    asyncio.run(run())


async def test_a_slot_that_another_window_releases_lets_the_waiting_one_read_ahead() -> None:
    slots, works = Slots(), Works()
    holder = Job(slots, 1)
    await settle()
    window: Window[int, int] = Window(10, wanted=lambda item: (SLOW,) if item == 0 else (), slots=slots, max_waiting=1)
    task = asyncio.create_task(collect(window, each(range(2)), works))
    await settle()
    assert works.started == []  # item 0 waits for the slot, and no more may be read ahead
    await holder.works.finish(0)
    await settle()
    assert works.started == [0, 1]
    await works.finish(0, 1)
    assert sorted(await task) == [0, 1]

"""At most N items in flight, results in finish order, over any coroutine function."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

from batchray.jobs.slots import Slots, Waiter, Wanted

Item = TypeVar("Item")
Result = TypeVar("Result")
T = TypeVar("T")


class Window(Generic[Item, Result]):  # more than 20 methods: one state machine in steps of a few lines
    """Keeps at most `size` items in flight, each of which holds the slots that `wanted` returns for it.

    Items that want the same slots start in their order.  While slots are not free, items that want others start: items
    are read ahead until the weights of those that wait add up to `max_waiting`.  `slots` may be shared with other
    windows.  `size` and `is_paused` may change while the window runs; it runs once.

    Items in flight that are set aside, because they only wait, do not count: others start in their place.  There are
    at most `size` of them, so that at most twice that many items are in flight.

    Work that calls `leave` frees its item's place and slots before it has its result, for example to store it.  No item
    starts while more than `size` have left, or while their weights add up to `max_waiting`.
    """

    def __init__(
        self,
        size: int,
        *,
        wanted: Callable[[Item], Wanted] = lambda item: (),
        slots: Slots | None = None,
        weight: Callable[[Item], int] = lambda item: 1,
        max_waiting: int = 1024,
    ) -> None:
        self.size, self.is_paused, self.in_flight, self.n_aside = size, False, 0, 0
        self._wanted, self._slots = wanted, slots or Slots()
        self._weight, self._max_waiting = weight, max_waiting
        self._waiting: dict[Wanted, _Group[Item]] = {}
        self._declined: dict[_Group[Item], None] = {}  # groups that could start if the window had room
        self._weight_waiting = 0
        self._n_ready = 0  # items of the declined groups
        self._weight_left = 0
        self._work: Callable[[Item], Awaitable[Result]] | None = None
        self._prepare: Callable[[Item], None] | None = None
        self._tasks: dict[asyncio.Future[Result], Wanted] = {}  # with what they hold, in the order of their start
        self._left: dict[asyncio.Future[Result], int] = {}  # those of them that have left, with their weights
        self._finished: deque[asyncio.Future[Result]] = deque()
        self._changed, self._stopped, self._is_winding_down = asyncio.Event(), asyncio.Event(), False

    def renewed(self) -> Window[Item, Result]:
        """Return a window like this one that has not run yet."""
        window: Window[Item, Result] = Window(
            self.size,
            wanted=self._wanted,
            slots=self._slots,
            weight=self._weight,
            max_waiting=self._max_waiting,
        )
        return window

    def resize(self, size: int) -> None:
        """Allow `size` items in flight from now on; items in flight beyond that finish."""
        self.size = size
        self._start_declined()
        self._changed.set()

    def pause(self, is_paused: bool = True) -> None:
        """Start no more items until unpaused."""
        self.is_paused = is_paused
        self._start_declined()
        self._changed.set()

    def set_aside(self, n_aside: int) -> None:
        """Leave `n_aside` of the items in flight out of the count, until the next call."""
        self.n_aside = n_aside
        self._start_declined()
        self._changed.set()

    def wind_down(self) -> None:
        """Start no more items, and end `run` when none is in flight but those set aside, which are cancelled.

        Results of items that have left are waited for.
        """
        self._is_winding_down = True
        self._changed.set()

    def stop(self) -> None:
        """End `run` now: items in flight are cancelled, and results that were not yielded yet are dropped."""
        self._stopped.set()
        self._changed.set()

    async def unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Return the result of `work`, or None as soon as the window is stopped: for a source that may have to wait."""
        working, stopped = asyncio.ensure_future(work), asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait((working, stopped), return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            working.cancel()
            stopped.cancel()

    def leave(self, weight: int = 1) -> None:
        """Free the place and the slots of the item whose work calls this; its result, of this weight, is to come."""
        task = asyncio.current_task()
        assert task is not None
        if task in self._tasks and task not in self._left:
            self._left[task] = weight
            self._weight_left += weight
            self._free(task)

    async def run(
        self,
        items: AsyncIterator[Item],
        work: Callable[[Item], Awaitable[Result]],
        prepare: Callable[[Item], None] | None = None,
    ) -> AsyncGenerator[list[Result], None]:
        """Yield the results of `work` on each item, those that finished together in one list.

        `prepare` is called with items that will start soon, at most `size` of those that want the same slots; they are
        read ahead for it.  It gets none that starts as soon as it is read.

        An exception of `work` or `items` stops everything: items in flight are cancelled and waited for.
        """
        source, self._work, self._prepare = _Source(items), work, prepare
        try:
            while not self._stopped.is_set():
                self._changed.clear()
                await self._fill(source)
                if self._finished:
                    results = [_result(task) for task in self._finished]
                    self._finished.clear()
                    yield results
                elif self._is_over(source):
                    return
                else:
                    await self._changed.wait()
        finally:
            for group in self._waiting.values():
                group.items.clear()  # its offers have no effect any more
            self._waiting.clear()
            self._declined.clear()
            self._n_ready = 0
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, *self._finished, return_exceptions=True)

    def _is_over(self, source: _Source[Item]) -> bool:
        if self._is_winding_down:
            return not self._left and len(self._tasks) <= self.n_aside
        return not self._tasks and source.is_empty and not self._waiting

    async def _fill(self, source: _Source[Item]) -> None:
        """Start items until the window is full, or all items that may be read ahead wait for slots.

        A full window reads items to prepare them.
        """
        while (self._has_room or self._reads_ahead) and self._weight_waiting < self._max_waiting:
            item = await source.next()
            if item is None:
                return
            wanted = self._wanted(item)
            # While the item was read the window may have been paused, and slots may have become free.
            if self._has_room and wanted not in self._waiting and self._slots.acquire(wanted):
                self._start(item, wanted)
            else:
                self._add_waiting(item, wanted)

    def _add_waiting(self, item: Item, wanted: Wanted) -> None:
        self._weight_waiting += self._weight(item)
        group = self._waiting.get(wanted)
        if group is None:
            group = self._waiting[wanted] = _Group(wanted, self._offer)
            self._declined[group] = None
        group.items.append(item)
        self._n_ready += group in self._declined
        self._prepare_first(group)
        self._start_declined()

    def _prepare_first(self, group: _Group[Item]) -> None:
        """Prepare the first items of a group, except those that are prepared already."""
        while self._prepare is not None and group.n_prepared < min(self.size, len(group.items)):
            self._prepare(group.items[group.n_prepared])
            group.n_prepared += 1

    def _start_declined(self) -> None:
        """Start items that wait for nothing but room in the window."""
        while self._declined and self._has_room:
            group = next(iter(self._declined))
            del self._declined[group]
            self._n_ready -= len(group.items)
            if self._slots.acquire_or_wait(group):
                self._start_first(group)
                if group.items:
                    self._decline(group)  # behind the others

    def _decline(self, group: _Group[Item]) -> None:
        self._declined[group] = None
        self._n_ready += len(group.items)

    def _offer(self, group: _Group[Item]) -> bool:
        """Start a group's first item if the window has room."""
        if not self._has_room:
            self._decline(group)
            return False
        self._start_first(group)
        self._changed.set()  # items may be read ahead again
        return True

    def _start_first(self, group: _Group[Item]) -> None:
        item = group.items.popleft()
        group.n_prepared = max(group.n_prepared - 1, 0)
        if not group.items:
            del self._waiting[group.wanted]
        self._prepare_first(group)
        self._weight_waiting -= self._weight(item)
        self._start(item, group.wanted)

    def _start(self, item: Item, held: Wanted) -> None:
        assert self._work is not None
        self.in_flight += 1
        task = asyncio.ensure_future(self._work(item))
        self._tasks[task] = held
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Future[Result]) -> None:
        if task in self._left:
            self._weight_left -= self._left.pop(task)
            self._start_declined()
            self._changed.set()
        else:
            self._free(task)
        del self._tasks[task]
        self._finished.append(task)

    def _free(self, task: asyncio.Future[Result]) -> None:
        self.in_flight -= 1
        self._slots.release(self._tasks[task])
        self._start_declined()
        self._changed.set()

    @property
    def has_waiting(self) -> bool:
        """Whether items wait for slots, or for room."""
        return bool(self._waiting)

    @property
    def _has_room(self) -> bool:
        return self._is_open and self.in_flight < self.size + min(self.n_aside, self.size)

    @property
    def _reads_ahead(self) -> bool:
        """Whether to read items to prepare, although the window is full."""
        return self._is_open and self._prepare is not None and self._n_ready < self.size

    @property
    def _is_open(self) -> bool:
        """Whether items may start."""
        if self.is_paused or self._is_winding_down or self._stopped.is_set():
            return False
        return len(self._left) <= self.size and self._weight_left < self._max_waiting


class _Group(Waiter, Generic[Item]):
    """Items of one window that wait for the same slots."""

    def __init__(self, wanted: Wanted, start: Callable[[_Group[Item]], bool]) -> None:
        super().__init__(wanted)
        self.items: deque[Item] = deque()
        self.n_prepared = 0
        self._start = start

    def offer(self) -> bool:
        return self._start(self)

    def is_waiting(self) -> bool:
        return bool(self.items)


def _result(task: asyncio.Future[Result]) -> Result:
    if task.cancelled():  # by itself: an item must not be lost without an error
        raise RuntimeError("work on an item was cancelled, and not by its window")
    return task.result()


class _Source(Generic[Item]):
    """An async iterator that remembers that it ended."""

    def __init__(self, items: AsyncIterator[Item]) -> None:
        self._items, self.is_empty = items, False

    async def next(self) -> Item | None:
        """Return the next item, or None after the last one."""
        if self.is_empty:
            return None
        try:
            return await anext(self._items)
        except StopAsyncIteration:
            self.is_empty = True
            return None

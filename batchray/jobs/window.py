"""At most N pieces of work in flight, results in finish order, over any coroutine function."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Hashable, Mapping
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
T = TypeVar("T")
Keys = tuple[Hashable, ...]
"""What limits an item beside the window: its provider, say, and its agent."""


class Window(Generic[Item, Result]):
    """Keeps at most `size` items in flight, and at most `limits[key]` of each of an item's keys.

    Items of the same keys start in their order.  Items are read one ahead of need, or further ahead where a key is at
    its limit, so that one slow provider does not hold up the others: until the weights of those that wait add up to
    `max_waiting`.  `size` and `is_paused` may be changed while it runs.
    """

    def __init__(
        self,
        size: int,
        *,
        keys: Callable[[Item], Keys] = lambda item: (),
        limits: Mapping[Hashable, int] | None = None,
        weight: Callable[[Item], int] = lambda item: 1,
        max_waiting: int = 1024,
    ) -> None:
        self.size, self.is_paused, self.in_flight = size, False, 0
        self._keys, self._limits = keys, dict(limits or {})
        self._weight, self._max_waiting = weight, max_waiting
        self._running: Counter[Hashable] = Counter()
        self._waiting: dict[Keys, deque[Item]] = {}  # each with what waits in it
        self._weight_waiting = 0
        self._changed, self._stopped = asyncio.Event(), asyncio.Event()

    def resize(self, size: int) -> None:
        """Allow `size` items in flight from now on; what runs beyond it is left to finish."""
        self.size = size
        self._changed.set()

    def pause(self, is_paused: bool = True) -> None:
        """Start nothing more until unpaused."""
        self.is_paused = is_paused
        self._changed.set()

    def stop(self) -> None:
        """End `run` now: what is in flight is cancelled, and results not yet yielded are dropped."""
        self._stopped.set()
        self._changed.set()

    async def unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Return what `work` returns; None as soon as the window is stopped, for a source that may have to wait."""
        working, stopped = asyncio.ensure_future(work), asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait((working, stopped), return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            working.cancel()
            stopped.cancel()

    async def run(
        self, items: AsyncIterator[Item], work: Callable[[Item], Awaitable[Result]]
    ) -> AsyncGenerator[list[Result], None]:
        """Yield the results of `work` on each item, those that finished together in one list.

        An exception of `work` or `items` stops everything: what is in flight is cancelled and waited for.
        """
        finished: deque[asyncio.Task[Result]] = deque()
        tasks: dict[asyncio.Task[Result], None] = {}  # in the order of their start
        source = _Source(items)

        def on_done(task: asyncio.Task[Result], keys: Keys) -> None:
            tasks.pop(task, None)
            for key in keys:
                self._running[key] -= 1
            self.in_flight -= 1
            finished.append(task)
            self._changed.set()

        try:
            while not self._stopped.is_set():
                self._changed.clear()
                while (item := await self._next(source)) is not None:
                    keys = self._keys(item)
                    for key in keys:
                        self._running[key] += 1
                    self.in_flight += 1
                    task = asyncio.ensure_future(work(item))
                    tasks[task] = None
                    task.add_done_callback(lambda task, keys=keys: on_done(task, keys))  # type: ignore[misc]
                if finished:
                    results = [_result(task) for task in finished]
                    finished.clear()
                    yield results
                elif not tasks and source.is_empty and not self._waiting:
                    return
                else:
                    await self._changed.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, *finished, return_exceptions=True)

    async def _next(self, source: _Source[Item]) -> Item | None:
        """Take an item that may start now, or None: the window is full, or all that is left has to wait."""
        if not self._may_start:
            return None
        for keys in self._waiting:
            if self._has_room(keys):
                return self._take_waiting(keys)
        while self._may_start and self._weight_waiting < self._max_waiting:
            item = await source.next()
            if item is None:
                return None
            keys = self._keys(item)
            # While it waited for the item the window may have been paused, and room for an earlier one have come.
            if self._may_start and keys not in self._waiting and self._has_room(keys):
                return item
            self._waiting.setdefault(keys, deque()).append(item)
            self._weight_waiting += self._weight(item)
        return None

    def _take_waiting(self, keys: Keys) -> Item:
        waiting = self._waiting[keys]
        item = waiting.popleft()
        if not waiting:
            del self._waiting[keys]
        self._weight_waiting -= self._weight(item)
        return item

    @property
    def _may_start(self) -> bool:
        return not self._stopped.is_set() and not self.is_paused and self.in_flight < self.size

    def _has_room(self, keys: Keys) -> bool:
        return all(self._running[key] < self._limits.get(key, self.size) for key in keys)


def _result(task: asyncio.Task[Result]) -> Result:
    if task.cancelled():  # by itself: an item must not be lost without a word
        raise RuntimeError("work on an item was cancelled, and not by its window")
    return task.result()


class _Source(Generic[Item]):
    """An async iterator that remembers that it ended."""

    def __init__(self, items: AsyncIterator[Item]) -> None:
        self._items, self.is_empty = items, False

    async def next(self) -> Item | None:
        if self.is_empty:
            return None
        try:
            return await anext(self._items)
        except StopAsyncIteration:
            self.is_empty = True
            return None

"""At most N pieces of work in flight, results in finish order, over any coroutine function."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Window(Generic[Item, Result]):
    """Keeps at most `size` items in flight, and at most `limits[key(item)]` of one key.

    Items are read one ahead of need, or up to `max_waiting` ahead where a key is at its limit, so that one slow
    provider does not hold up the others.  `size` and `is_paused` may be changed while it runs.
    """

    def __init__(
        self,
        size: int,
        *,
        key: Callable[[Item], str | None] = lambda item: None,
        limits: Mapping[str, int] | None = None,
        max_waiting: int = 1024,
    ) -> None:
        self.size, self.is_paused, self.in_flight, self._is_stopped = size, False, 0, False
        self._key, self._limits, self._max_waiting = key, dict(limits or {}), max_waiting
        self._running: dict[str | None, int] = {}
        self._waiting: dict[str | None, deque[Item]] = {}
        self._n_waiting = 0
        self._changed = asyncio.Event()

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
        self._is_stopped = True
        self._changed.set()

    async def run(
        self, items: AsyncIterator[Item], work: Callable[[Item], Awaitable[Result]]
    ) -> AsyncGenerator[list[Result], None]:
        """Yield the results of `work` on each item, those that finished together in one list.

        An exception of `work` or `items` stops everything: what is in flight is cancelled and waited for.
        """
        finished: deque[asyncio.Task[Result]] = deque()
        tasks: dict[asyncio.Task[Result], None] = {}  # in the order of their start
        source = _Source(items)

        def on_done(task: asyncio.Task[Result], key: str | None) -> None:
            tasks.pop(task, None)
            self._running[key] -= 1
            self.in_flight -= 1
            finished.append(task)
            self._changed.set()

        try:
            while not self._is_stopped:
                self._changed.clear()
                while (item := await self._next(source)) is not None:
                    key = self._key(item)
                    self._running[key] = self._running.get(key, 0) + 1
                    self.in_flight += 1
                    task = asyncio.ensure_future(work(item))
                    tasks[task] = None
                    task.add_done_callback(lambda task, key=key: on_done(task, key))  # type: ignore[misc]
                if finished:
                    results = [_result(task) for task in finished]
                    finished.clear()
                    yield results
                elif not tasks and source.is_empty and not self._n_waiting:
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
        for key, waiting in self._waiting.items():
            if waiting and self._has_room(key):
                self._n_waiting -= 1
                return waiting.popleft()
        while self._may_start and self._n_waiting < self._max_waiting:
            item = await source.next()
            if item is None:
                return None
            key = self._key(item)
            if self._may_start and self._has_room(key):  # it may have been paused while it waited for the item
                return item
            self._waiting.setdefault(key, deque()).append(item)
            self._n_waiting += 1
        return None

    @property
    def _may_start(self) -> bool:
        return not self._is_stopped and not self.is_paused and self.in_flight < self.size

    def _has_room(self, key: str | None) -> bool:
        return key is None or self._running.get(key, 0) < self._limits.get(key, self.size)


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

"""A store whose calls wait while the database is unavailable."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from batchray.errors import StoreUnavailableError
from batchray.store.async_store import AsyncStore
from batchray.store.database import Chunked
from batchray.store.store import Store
from batchray.support.backoff import backoff_s

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_BASE_S, _CAP_S = 0.05, 2.0


class RetryingStore(AsyncStore):
    """Repeats each call while the disk is full, another program has locked the file, or the server restarts.

    Called functions must tolerate a second call: after a lost reply it is unknown whether a commit succeeded.
    """

    def __init__(self, store: Store, who: str) -> None:
        super().__init__(store)
        self._who = who
        self._ended = asyncio.Event()

    def end(self) -> None:
        """Stop waiting: from now on the first failure is raised."""
        self._ended.set()

    async def call(self, method: Callable[P, T], /, *args: P.args, **keywords: P.kwargs) -> T:
        """Run a blocking function on the writer thread, again until it succeeds."""
        return await self._retried(lambda: self.sync.database.call(method, *args, **keywords))

    async def call_chunked(self, work: Callable[P, Chunked[T]], /, *args: P.args, **keywords: P.kwargs) -> T:
        """Run long work on the writer thread, from its start again until it succeeds."""
        return await self._retried(lambda: self.sync.database.call_chunked(work(*args, **keywords)))

    async def _retried(self, try_it: Callable[[], Awaitable[T]]) -> T:
        n_failures = 0
        while True:
            try:
                result = await try_it()
            except StoreUnavailableError as error:
                if self._ended.is_set():
                    raise
                if n_failures == 0:
                    logger.warning("%s waits: %s", self._who, error)
                n_failures += 1
                await self.back_off(n_failures)
            else:
                if n_failures:
                    logger.info("%s continues: the store is available again", self._who)
                return result

    async def wait_for_space(self) -> None:
        """Return when the disk has space for new work."""
        n_looks = 0
        while not self.sync.has_room() and not self._ended.is_set():
            n_looks += 1
            await self.back_off(n_looks)

    async def back_off(self, n_failures: int) -> None:
        """Wait after the n-th failure in a row, longer each time; returns early on `end`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(backoff_s(n_failures, _BASE_S, _CAP_S)):
                await self._ended.wait()

"""Waiting for a store that cannot be used at the moment."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from batchray.errors import StoreUnavailableError
from batchray.store.database import Chunked, Database
from batchray.support.backoff import backoff_s

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_BASE_S, _CAP_S = 0.05, 2.0


class StoreRetry:
    """Calls a store again and again while its disk is full, somebody else has locked it, or its server restarts.

    What is called has to bear being called twice: nobody knows whether a commit came through whose answer was lost.
    """

    def __init__(self, store: Database, who: str) -> None:
        self._store, self._who = store, who
        self._ended = asyncio.Event()

    def end(self) -> None:
        """Wait no more: from now on the first failure is raised."""
        self._ended.set()

    async def call(self, method: Callable[P, T], /, *args: P.args, **keywords: P.kwargs) -> T:
        """Run a blocking method on the writer's thread until it can be done."""
        return await self._done(lambda: self._store.call(method, *args, **keywords))

    async def call_chunked(self, work: Callable[P, Chunked[T]], /, *args: P.args, **keywords: P.kwargs) -> T:
        """Do long work on the writer's thread, from its beginning again until it can be done."""
        return await self._done(lambda: self._store.call_chunked(work(*args, **keywords)))

    async def _done(self, try_it: Callable[[], Awaitable[T]]) -> T:
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
                await self.rest(n_failures)
            else:
                if n_failures:
                    logger.info("%s goes on: the store can be used again", self._who)
                return result

    async def room(self) -> None:
        """Return when the store has room for what is still to come."""
        n_looks = 0
        while not self._store.has_room() and not self._ended.is_set():
            n_looks += 1
            await self.rest(n_looks)

    async def rest(self, n_failures: int) -> None:
        """Wait after the n-th failure in a row, longer each time; less where the waiting is ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(backoff_s(n_failures, _BASE_S, _CAP_S)):
                await self._ended.wait()

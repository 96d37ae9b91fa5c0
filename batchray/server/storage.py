"""The server's access to the store: one writer and one reader."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from batchray.config import ServerSettings
from batchray.jobs.runtime import Runtime
from batchray.store import AsyncStore, Store, ThreadedStore, lock

P = ParamSpec("P")
T = TypeVar("T")

_N_BULK_READS = 2


class ServerStorage:
    """The store, which the runtime's jobs share, and a reader whose queries run side by side on threads.

    `bulk` is the same reader for large reads, of which few run at once: they bound the memory, and leave threads to the
    others.  `probe` has a thread of its own, so that health checks wait for none of them.  Raises StoreLockedError if
    another process uses the data directory.
    """

    def __init__(self, settings: ServerSettings, runtime: Runtime) -> None:
        self._runtime = runtime
        self.store = AsyncStore(runtime.open_store(settings))
        self.reader = ThreadedStore(Store.open_for_reading(settings.data_dir, settings.url))
        self.bulk, self.probe = _BulkReader(self.reader.sync), AsyncStore(self.reader.sync)
        # Uploads are spooled to the data directory, and each server empties that at its start.  A store in the
        # directory locks it already; with a shared database the directory needs a lock of its own.
        self._lock = lock(settings.data_dir) if self.store.is_shared else None

    def close(self) -> None:
        """Close the reader, release the store and unlock the data directory."""
        self.reader.sync.close()
        self._runtime.release_store(self.store.sync)
        if self._lock is not None:
            os.close(self._lock)


class _BulkReader(ThreadedStore):
    """Runs `_N_BULK_READS` calls at once."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._free = asyncio.Semaphore(_N_BULK_READS)

    async def call(self, method: Callable[P, T], /, *args: P.args, **keywords: P.kwargs) -> T:
        """Run a blocking function on a thread, as soon as fewer calls run."""
        async with self._free:
            return await super().call(method, *args, **keywords)

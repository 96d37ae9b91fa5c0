"""The server's access to the store: one writer and one reader."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from batchray.config import ServerSettings
from batchray.jobs.runtime import Runtime
from batchray.store import AsyncStore, Store, ThreadedStore, lock
from batchray.support.interpreter import return_free_memory
from batchray.support.threads import DaemonThread

P = ParamSpec("P")
T = TypeVar("T")

_N_BULK_READS = 2
# How long there are no large reads before the memory that they used is returned.
_QUIET_S = 5.0


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
        self.bulk, self.probe = BulkReader(self.reader.sync), AsyncStore(self.reader.sync)
        # Uploads are spooled to the data directory, and each server empties that at its start.  A store in the
        # directory locks it already; with a shared database the directory needs a lock of its own.
        self._lock = lock(settings.data_dir) if self.store.is_shared else None

    def can_read_and_has_room(self) -> bool:
        """Return whether the disk has space for new work.  Blocks; raises StoreError if the store cannot be read."""
        self.reader.sync.callbacks.count()
        return self.store.sync.has_room()

    def close(self) -> None:
        """Close the reader, release the store and unlock the data directory."""
        self.bulk.close()
        self.reader.sync.close()
        self._runtime.release_store(self.store.sync)
        if self._lock is not None:
            os.close(self._lock)


class BulkReader(ThreadedStore):
    """Runs `_N_BULK_READS` calls at once, on threads of its own: the C library keeps some memory for each thread."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._idle = [DaemonThread(f"batchray-bulk-{number}") for number in range(_N_BULK_READS)]
        self._free = asyncio.Semaphore(_N_BULK_READS)
        self._n_calls = self._n_seen = self._n_returned = 0

    async def call(self, method: Callable[P, T], /, *args: P.args, **keywords: P.kwargs) -> T:
        """Run a blocking function on a thread, as soon as fewer calls run."""
        self._n_calls += 1
        async with self._free:
            thread = self._idle.pop()
            try:
                return await asyncio.get_running_loop().run_in_executor(thread, lambda: method(*args, **keywords))
            finally:
                self._idle.append(thread)

    def close(self) -> None:
        """End the idle threads; those that read end with the process."""
        for thread in self._idle:
            thread.shutdown(wait=False)

    def has_become_quiet(self) -> bool:
        """Return True once after each time of reads: if there was none since the last call."""
        n_before, self._n_seen = self._n_seen, self._n_calls
        if n_before != self._n_calls or self._n_returned == self._n_calls:
            return False
        self._n_returned = self._n_calls
        return True

    async def return_memory(self, forget: Callable[[], None]) -> None:
        """Whenever reads have ceased, `forget` what is kept of them and return their memory; until cancelled."""
        while True:
            await asyncio.sleep(_QUIET_S)
            if self.has_become_quiet():
                forget()
                await asyncio.to_thread(return_free_memory)

"""The server's access to the store: one writer and one reader."""

from __future__ import annotations

import os

from batchray.config import ServerSettings
from batchray.jobs.runtime import Runtime
from batchray.store import AsyncStore, Store, ThreadedStore, lock


class ServerStorage:
    """The store, which the runtime's jobs share, and a reader whose queries run side by side on threads.

    Raises StoreLockedError if another process uses the data directory.
    """

    def __init__(self, settings: ServerSettings, runtime: Runtime) -> None:
        self._runtime = runtime
        self.store = AsyncStore(runtime.open_store(settings))
        self.reader = ThreadedStore(Store.open_for_reading(settings.data_dir, settings.url))
        # Uploads are spooled to the data directory, and each server empties that at its start.  A store in the
        # directory locks it already; with a shared database the directory needs a lock of its own.
        self._lock = lock(settings.data_dir) if self.store.is_shared else None

    def close(self) -> None:
        """Close the reader, release the store and unlock the data directory."""
        self.reader.sync.close()
        self._runtime.release_store(self.store.sync)
        if self._lock is not None:
            os.close(self._lock)

"""Deletes jobs with all their rows, when a client asks."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from batchray.errors import BatchrayError, StoreError, UnknownJobError
from batchray.jobs.retention import purge
from batchray.server.background import BackgroundTasks
from batchray.server.errors import unavailable
from batchray.server.scheduler import JobScheduler
from batchray.server.storage import ServerStorage
from batchray.store import JobRecord

_POLL_S = 0.05
# How long a deletion waits for the end of the job that it has cancelled.
_END_POLLS = 400
# How long a deletion waits for the rows, of which a large job has many; the rest continues in the background.
_PURGE_S = 2.0
_RETRY_S = 5.0


class JobDeletion:
    """Deletes jobs.  One that has not ended is cancelled first.

    What is left of deletions before a crash is deleted when the store is opened again.
    """

    def __init__(self, storage: ServerStorage, scheduler: JobScheduler, tasks: BackgroundTasks) -> None:
        self._store, self._reader, self._scheduler, self._tasks = storage.store, storage.reader, scheduler, tasks

    async def delete(self, record: JobRecord) -> JobRecord:
        """Delete a job and return it as it was; it is unknown when this returns.

        Raises UnknownJobError if it is deleted already, and HttpError 503 if it could not be ended.
        """
        ended = await self._end(record)
        if (job := self._scheduler.table.running_job(record.id)) is not None:
            with suppress(BatchrayError):  # the store records the end a moment before the driver stops
                await job.wait_async()
        if not await self._store.retention.forget(ended):
            raise UnknownJobError(record.id, self._store.sync.database.backend.name)
        is_done = asyncio.Event()
        self._tasks.spawn(self._purge(record.key, is_done))
        with suppress(TimeoutError):
            async with asyncio.timeout(_PURGE_S):
                await is_done.wait()
        return ended

    async def _end(self, record: JobRecord) -> JobRecord:
        """Cancel a job that has not ended, and wait until it has."""
        if record.is_ended:
            return record
        await self._scheduler.cancel(record)
        for _ in range(_END_POLLS):
            if (ended := await self._reader.jobs.get(record.id)).is_ended:
                return ended
            await asyncio.sleep(_POLL_S)
        raise unavailable(5, f"job {record.id} is being cancelled; delete it again in a moment")

    async def _purge(self, key: int, is_done: asyncio.Event) -> None:
        while True:
            with suppress(StoreError):  # a full disk or a locked database; the job is unknown already
                await purge(self._store, key)
                is_done.set()
                return
            await asyncio.sleep(_RETRY_S)

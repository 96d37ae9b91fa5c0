"""Looks after unfinished jobs that this server does not run: adopts, ends or expires them."""

from __future__ import annotations

import asyncio
import logging

from batchray.config import ServerSettings
from batchray.errors import LeaseLostError, StoreError
from batchray.jobs.endings import CANCELED
from batchray.jobs.idle import end_idle_job, expire_idle_job
from batchray.server.background import BackgroundTasks
from batchray.server.job_table import JobState
from batchray.server.scheduler import JobScheduler
from batchray.server.storage import ServerStorage

logger = logging.getLogger(__name__)

# The interval in which the deadlines of jobs that do not run are checked.
_EXPIRY_INTERVAL_S = 30.0
# The delay between attempts to end an abandoned run while the store fails.
_ABANDONED_RETRY_S = 2.0


class IdleJobs:
    """Adopts the jobs of servers that are gone, and expires jobs that wait."""

    def __init__(
        self,
        settings: ServerSettings,
        storage: ServerStorage,
        scheduler: JobScheduler,
        tasks: BackgroundTasks,
        expiry_interval_s: float = _EXPIRY_INTERVAL_S,
    ) -> None:
        self._expiry_interval_s = expiry_interval_s
        self._settings, self._scheduler, self._tasks = settings, scheduler, tasks
        self._store, self._reader, self._table = storage.store, storage.reader, scheduler.table

    async def start(self) -> None:
        """Adopt all unfinished jobs that no server leads; from now on also expire waiting jobs, and adopt orphans."""
        await self._adopt()
        self._tasks.spawn(self._expire_repeatedly())
        if self._store.is_shared:
            self._tasks.spawn(self._adopt_repeatedly())

    async def _adopt(self) -> None:
        """Continue jobs that need no client, and cancel the other runs: the server of their clients is gone."""
        for record in await self._reader.jobs.unended():
            if not record.is_single:
                self._scheduler.enqueue(record.id)
            elif record.outlives_client:
                self._scheduler.start_soon(record.id)
            elif self._table.state(record.id) in (None, JobState.RESTARTING):
                await self._end_abandoned(record.id)

    async def _end_abandoned(self, job_id: str) -> None:
        """Cancel an abandoned run, or keep trying in the background while the store fails."""
        if not await self._cancel_run(job_id) and self._table.may_move(job_id, JobState.ABANDONED):
            self._table.move(job_id, JobState.ABANDONED)
            self._tasks.spawn(self._end_abandoned_later(job_id))

    async def _end_abandoned_later(self, job_id: str) -> None:
        while self._table.state(job_id) is JobState.ABANDONED:
            await asyncio.sleep(_ABANDONED_RETRY_S)
            if await self._cancel_run(job_id):
                break
        if self._table.state(job_id) is JobState.ABANDONED:
            self._table.remove(job_id)

    async def _cancel_run(self, job_id: str) -> bool:
        """Cancel an abandoned run; returns False if the store fails."""
        try:
            async with self._scheduler.lock(job_id):
                with self._scheduler.ending(job_id):
                    await self._store.call_chunked(end_idle_job, self._store.sync, job_id, CANCELED)
        except LeaseLostError:  # another server took it over
            return True
        except StoreError as error:
            logger.warning("job %s cannot be ended at the moment: %s", job_id, error)
            return False
        return True

    async def _adopt_repeatedly(self) -> None:
        """Adopt jobs whose leases have expired because their servers are gone."""
        while not self._scheduler.is_draining:
            await asyncio.sleep(self._settings.lease_s / 3)
            try:
                await self._adopt()
            except StoreError as error:
                logger.warning("the jobs of other servers cannot be checked: %s", error)

    async def _expire_repeatedly(self) -> None:
        """Expire jobs whose deadline passes while they are queued, or while an agent of theirs is missing."""
        while True:
            await asyncio.sleep(self._expiry_interval_s)
            try:
                await self._expire()
            except (StoreError, LeaseLostError) as error:
                logger.warning("the deadlines of waiting jobs cannot be checked: %s", error)

    async def _expire(self) -> None:
        for record in await self._reader.jobs.unended():
            async with self._scheduler.lock(record.id):
                is_idle = self._table.state(record.id) not in (JobState.STARTING, JobState.RUNNING, JobState.REOPENING)
                if not is_idle or self._scheduler.is_draining:
                    continue
                if await self._store.call_chunked(expire_idle_job, self._store.sync, record, self._settings):
                    if self._table.state(record.id) in (JobState.QUEUED, JobState.RESTARTING):
                        self._table.remove(record.id)
                    self._scheduler.on_job_end()

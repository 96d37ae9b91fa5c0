"""Schedules the jobs of one server: queues, starts, restarts, cancels and drains them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from weakref import WeakValueDictionary

from batchray.config import AgentSet, Provider, ServerSettings
from batchray.errors import (
    BatchrayError,
    ConfigError,
    JobInterruptedError,
    StoreError,
    StoreUnavailableError,
    UnknownJobError,
)
from batchray.jobs.control import ControlRequest, reopen_job
from batchray.jobs.idle import cancel_idle_job
from batchray.jobs.local_run import LocalRun
from batchray.jobs.runtime import Runtime
from batchray.server.background import BackgroundTasks
from batchray.server.errors import NO_RETRY, HttpError, unavailable
from batchray.server.job_table import JobEntry, JobState, JobTable
from batchray.server.storage import ServerStorage
from batchray.store import JobRecord, RetryingStore

logger = logging.getLogger(__name__)

# The delay before a job is restarted whose driver failed, for example because the cluster was lost.
_RESTART_S = 2.0
# How long a cancel waits for a busy or unavailable store before the client gets an error.
_PERSIST_CANCEL_S = 5.0


class JobScheduler:  # more than 20 methods: each transition of a job is one
    """Runs up to `max_running_jobs` batches at once, and single runs immediately.  Not thread-safe.

    `table` holds the state of each job.  `on_job_end` is called whenever a job stops running or is ended.
    """

    def __init__(
        self,
        settings: ServerSettings,
        runtime: Runtime,
        storage: ServerStorage,
        tasks: BackgroundTasks,
        on_job_end: Callable[[], None],
        restart_delay_s: float = _RESTART_S,
        providers: Mapping[str, Provider] | None = None,
    ) -> None:
        self._restart_delay_s, self._providers = restart_delay_s, providers or {}
        self._settings, self._runtime, self._tasks = settings, runtime, tasks
        self._store, self._reader = storage.store, storage.reader
        self.on_job_end = on_job_end
        self.table = JobTable()
        self.is_draining = False
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._loop = asyncio.get_running_loop()
        runtime.share_window(settings.max_in_flight)

    # -- requests of clients

    def enqueue(self, job_id: str) -> None:
        """Queue a stored job for its turn.  Does nothing if the job is scheduled already."""
        if self.table.state(job_id) in (None, JobState.RESTARTING):
            self._enqueue(job_id)

    def start_soon(self, job_id: str) -> None:
        """Start a stored single run outside of the queue, again and again if that fails, unless it is scheduled."""
        if self.table.state(job_id) in (None, JobState.RESTARTING):
            self._spawn_start(job_id, skips_queue=True)

    async def start_now(self, job_id: str) -> LocalRun:
        """Start a stored single run immediately, outside of the queue and its limit."""
        entry = self.table.move(job_id, JobState.STARTING, started=asyncio.Event(), skips_queue=True)
        with self._starting(job_id, entry):
            return await self._launch(job_id, entry)

    async def cancel(self, record: JobRecord) -> None:
        """Cancel a job; one that has ended stays unchanged.

        The cancel is durable when this returns: a crash afterwards does not undo it.  Raises StoreUnavailableError, and
        HttpError 503, if it could not be stored; a running job is stopped all the same.
        """
        async with self.lock(record.id):
            if (entry := self.table.get(record.id)) and entry.started is not None:
                await entry.started.wait()
            job = self.table.running_job(record.id)
            if job is not None and job.steer(ControlRequest(is_canceled=True)):
                await self._persist_cancel(record)
                return
            with self.ending(record.id):
                await self._store.call_chunked(cancel_idle_job, self._store.sync, record.id)
        self.on_job_end()

    async def unpause(self, record: JobRecord) -> None:
        """Continue a paused job, here or on the server that leads it.

        Raises HttpError 409 if it does not run.
        """
        job, request = self.table.running_job(record.id), ControlRequest(is_paused=False)
        if record.is_ended or (job is None and not self._store.is_shared):
            raise HttpError(409, f"job {record.id} does not run", NO_RETRY)
        if job is None or not job.steer(request):
            await self._store.leases.request(record, **request.model_dump(exclude_none=True))

    async def cancel_stopped(self, job_id: str) -> None:
        """Cancel a job whose driver has failed, so that it is not restarted.  Raises StoreError."""
        async with self.lock(job_id):
            with self.ending(job_id):
                await self._store.call_chunked(cancel_idle_job, self._store.sync, job_id)

    async def retry(self, record: JobRecord) -> None:
        """Run again the items of an ended job that did not succeed.  Raises HttpError 409 if it has not ended."""
        job = self.table.running_job(record.id)
        if record.is_ended and job is not None:  # the store records the end a moment before the driver stops
            with suppress(BatchrayError):
                await job.wait_async()
        if not record.is_ended or not self.table.may_move(record.id, JobState.REOPENING):
            raise HttpError(409, f"job {record.id} has not ended yet", NO_RETRY)
        if record.counts["succeeded"] == record.total:
            return
        self.table.move(record.id, JobState.REOPENING)
        try:
            await self._store.call(reopen_job, self._store.sync, record.id)
        except BaseException:
            self.table.remove(record.id)
            raise
        self._enqueue(record.id)

    # -- shutdown

    def begin_drain(self) -> None:
        """Start no more jobs and accept no more batches.  Running items continue."""
        self.is_draining = True

    async def drain(self) -> None:
        """Start no more items, and wait for the running ones within the grace period; the next server does the rest."""
        self.begin_drain()
        self.table.remove_queued()
        await self._runtime.run(self._runtime.drain(self._settings.shutdown_grace_s))

    # -- also for `IdleJobs`, which ends jobs that do not run

    def lock(self, job_id: str) -> asyncio.Lock:
        """Return a job's lock.  It is held while a job that does not run is ended, because that takes many steps."""
        return self._locks.setdefault(job_id, asyncio.Lock())

    @contextmanager
    def ending(self, job_id: str) -> Iterator[None]:
        """Keep a job from starting while the block ends it.

        Afterwards the job is not scheduled any more.  If the block raises, the job returns to the front of the queue,
        or is restarted after the delay if it was waiting for that.
        """
        entry = self.table.get(job_id)
        if entry is None or (state := entry.state) not in (JobState.QUEUED, JobState.RESTARTING):
            yield
            return
        self.table.move(job_id, JobState.ENDING)
        try:
            yield
        except BaseException:
            if state is JobState.QUEUED:
                self._enqueue(job_id, at_front=True)
            else:
                self._restart_later(job_id, entry)
            raise
        self.table.remove(job_id)

    # -- inside

    async def _persist_cancel(self, record: JobRecord) -> None:
        store = RetryingStore(self._store.sync, f"the cancel of job {record.id}")
        timeout = self._loop.call_later(_PERSIST_CANCEL_S, store.end)
        try:
            await store.leases.request(record, is_canceled=True)
        except StoreUnavailableError:
            raise unavailable(5, "the batch is being cancelled, but that could not be stored; ask again") from None
        finally:
            timeout.cancel()

    def _enqueue(self, job_id: str, *, at_front: bool = False) -> None:
        self.table.move(job_id, JobState.QUEUED, at_front=at_front)
        self._start_queued()
        if self._store.is_shared and self.table.state(job_id) is JobState.QUEUED:
            self._tasks.spawn(self._offer(job_id))

    async def _offer(self, job_id: str) -> None:
        """Allow other servers to start a job that has to wait here."""
        try:
            await self._store.leases.offer(job_id)
        except StoreError as error:
            logger.warning("job %s waits here, although another server may have time for it: %s", job_id, error)

    def _start_queued(self) -> None:
        """Start queued jobs while there are free slots."""
        while not self.is_draining and self.table.n_slots_taken < self._settings.max_running_jobs:
            job_id = self.table.first_queued()
            if job_id is None:
                return
            self._spawn_start(job_id)

    def _spawn_start(self, job_id: str, *, skips_queue: bool = False) -> None:
        entry = self.table.move(job_id, JobState.STARTING, started=asyncio.Event(), skips_queue=skips_queue)
        self._tasks.spawn(self._start(job_id, entry))

    async def _start(self, job_id: str, entry: JobEntry) -> None:
        with self._starting(job_id, entry):
            try:
                await self._launch(job_id, entry)
            except ConfigError as error:  # the key or the code of an agent is missing
                logger.error("job %s cannot continue: %s", job_id, error)
            except UnknownJobError:  # deleted through another server
                logger.info("job %s was deleted before it started", job_id)
            except Exception as error:  # noqa: BLE001  # any other failure may pass, and no job may be forgotten
                logger.error("job %s could not be started and will be tried again: %s", job_id, error)
                self._restart_later(job_id, entry)

    @contextmanager
    def _starting(self, job_id: str, entry: JobEntry) -> Iterator[None]:
        """End the state STARTING with the block: a job that is neither running nor restarted then is removed."""
        assert entry.started is not None
        try:
            yield
        finally:
            if self.table.get(job_id) is entry:
                self.table.remove(job_id)
            entry.started.set()
            self._start_queued()

    async def _launch(self, job_id: str, entry: JobEntry) -> LocalRun:
        """Start the driver of a job in state STARTING."""
        snapshot = await self._reader.jobs.agent_snapshot(job_id)
        agents = AgentSet.from_snapshot(snapshot, providers=self._providers)
        store = self._runtime.open_store(self._settings)
        try:
            job = self._runtime.start(job_id, agents, store, self._settings)
        except BaseException:
            self._runtime.release_store(store)
            raise
        self.table.move(job_id, JobState.RUNNING, job=job, skips_queue=entry.skips_queue)
        job.add_done_callback(lambda: self._loop.call_soon_threadsafe(self._on_stopped, job))
        return job

    def _on_stopped(self, job: LocalRun) -> None:
        """Handle the end of a job's driver: restart the job if the driver failed."""
        error = job.error()
        if error is None or isinstance(error, JobInterruptedError) or self.is_draining:
            self.table.remove(job.id)
        else:
            logger.error("job %s stopped and will be restarted: %s", job.id, error)
            self._restart_later(job.id, self.table.get(job.id))
        self._start_queued()
        self.on_job_end()

    def _restart_later(self, job_id: str, before: JobEntry | None) -> None:
        skips_queue = before is not None and before.skips_queue
        self._tasks.spawn(self._restart(job_id, self.table.move(job_id, JobState.RESTARTING, skips_queue=skips_queue)))

    async def _restart(self, job_id: str, entry: JobEntry) -> None:
        await asyncio.sleep(self._restart_delay_s)
        if self.table.get(job_id) is not entry:  # adopted, cancelled or expired meanwhile
            return
        if entry.skips_queue and not self.is_draining:
            self._spawn_start(job_id, skips_queue=True)
        else:
            self._enqueue(job_id)

"""Single runs: one request to one agent, started immediately, while its client waits or without one."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Set
from contextlib import suppress
from dataclasses import dataclass
from weakref import WeakValueDictionary

from batchray.config import BoundAgent, ServerSettings
from batchray.errors import BatchrayError, ClusterError, KeyInUseError, StoreError, UnknownJobError
from batchray.jobs.control import ControlRequest
from batchray.jobs.local_run import LocalRun
from batchray.jobs.runtime import Runtime
from batchray.schema import new_job_id
from batchray.server.agent_catalog import AgentLookup
from batchray.server.errors import NO_RETRY, HttpError, stopping, unavailable
from batchray.server.idempotency import known_job
from batchray.server.scheduler import JobScheduler
from batchray.server.storage import ServerStorage
from batchray.store import JobRecord, NewItem, NewJob, StoredResult

_MAX_BACKGROUND = 2000
"""How many single runs there may be at once for another one to start in the background."""
_POLL_S = 0.25
"""How often the store is asked for the end of a run that this process does not run now."""


@dataclass(frozen=True)
class NewRun:
    """A request to one agent, as it is started.

    `request` is its JSON.  No client waits for a run `in_background`; its end may be sent to a `callback_url`.
    `unused` are names of fields that have no effect.  `agent` answers it instead of the stored agent.
    """

    user_id: str
    agent_id: str
    request: bytes
    key: str | None = None
    in_background: bool = False
    callback_url: str | None = None
    unused: Set[str] = frozenset()
    agent: BoundAgent | None = None

    @property
    def digest(self) -> str | None:
        """The digest that all requests of one idempotency key must share; None without a key."""
        if self.key is None:
            return None
        head = f"{'background' if self.in_background else 'run'}\n{self.callback_url or ''}\n"
        return hashlib.sha256(head.encode() + self.request).hexdigest()


class SingleRuns:
    """Runs single requests as jobs of one item.  They do not wait in the queue of batches.

    A run without an idempotency key ends with its client.  One with a key, or in the background, continues until its
    end, also after a restart of the server.
    """

    def __init__(
        self,
        settings: ServerSettings,
        runtime: Runtime,
        storage: ServerStorage,
        agents: AgentLookup,
        scheduler: JobScheduler,
    ) -> None:
        self._settings, self._runtime, self._agents, self._scheduler = settings, runtime, agents, scheduler
        self._store, self._reader = storage.store, storage.reader
        self._starting: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def start(self, run: NewRun, has_left: Callable[[], bool] = lambda: False) -> JobRecord:
        """Start a request and return its job; with a key that came before, return the job of that request.

        `has_left` says whether its client has left: a start may take long, for example while Ray restarts.
        Raises HttpError 503 if it cannot be run now, and 422 if the key came with another body; ConnectionResetError if
        the client of a request without a key has left before it could start.
        """
        if self._scheduler.is_draining:
            raise stopping()
        if run.in_background and self._scheduler.table.n_single_runs >= _MAX_BACKGROUND:
            raise unavailable(5, "too many requests run in the background; try again in a moment")
        if run.key is None:
            return await self._start(run, has_left)
        lock = self._starting.setdefault((run.user_id, run.key), asyncio.Lock())
        async with lock:
            return await known_job(self._reader, run.user_id, run.key, run.digest) or await self._start(run)

    async def _start(self, run: NewRun, has_left: Callable[[], bool] = lambda: False) -> JobRecord:
        try:
            # Before the job is stored: one that waits for its executor would look abandoned to other servers.
            await self._runtime.ensure_executor(self._settings)
        except ClusterError as error:
            raise unavailable(5, f"nothing can be run now: {error}") from None
        if has_left():
            raise ConnectionResetError("the client has left")
        agent = run.agent
        new = NewJob(
            new_job_id(),
            self._agents.snapshot if agent is None else lambda ids: self._agents.snapshot_of(agent),
            callback_url=run.callback_url,
            kind="background" if run.in_background else "run",
            user_id=run.user_id,
            agent_id=run.agent_id,
            idempotency_key=run.key,
            body_digest=run.digest,
            unused_fields=lambda: run.unused,
        )
        try:
            await self._store.jobs.create(new, [NewItem(run.agent_id, None, run.request)])
        except KeyInUseError:  # another server has started it at the same time
            if (known := await known_job(self._reader, run.user_id, run.key, run.digest)) is not None:
                return known
            raise unavailable(1, "a request with this Idempotency-Key is being started") from None
        if has_left():
            with suppress(StoreError):
                await self._scheduler.cancel_stopped(new.id)
            raise ConnectionResetError("the client has left")
        await self._launch(new.id, outlives_client=run.in_background or run.key is not None)
        return await self._reader.jobs.get(new.id)

    async def _launch(self, job_id: str, *, outlives_client: bool) -> None:
        """Start a stored run.  If that fails, a run that ends with its client ends now; another is started later."""
        try:
            await self._scheduler.start_now(job_id)
        except Exception:
            if outlives_client:
                self._scheduler.start_soon(job_id)
            else:
                with suppress(StoreError):
                    await self._scheduler.cancel_stopped(job_id)
            raise

    async def result_of(self, record: JobRecord) -> tuple[JobRecord, StoredResult]:
        """Wait for the end of a run, and return its job and result.

        Cancelling the wait cancels a run that ends with its client.  Raises HttpError 503 if the run could not be
        completed.
        """
        try:
            ended = await self._end_of(record)
        except UnknownJobError:  # it was deleted
            raise
        except BatchrayError as error:
            if not record.outlives_client:
                with suppress(StoreError):  # or it would be restarted, with no client to read the result
                    await self._scheduler.cancel_stopped(record.id)
            raise unavailable(5, f"the request could not be run: {error}") from None
        result = await self._reader.items.result(ended, 0)
        if result is None:
            raise HttpError(500, "the request ended without a result", NO_RETRY)
        return ended, result

    async def item_result(self, record: JobRecord, index: int) -> tuple[JobRecord, StoredResult]:
        """Wait for the result of an item of any job.  Cancelling the wait does not stop the item.

        Raises UnknownJobError if the job is deleted, and HttpError 503 if this server stops.
        """
        while (result := await self._reader.items.result(record, index)) is None:
            record = await self._reader.jobs.get(record.id)
            if self._scheduler.is_draining:
                raise stopping()
            await asyncio.sleep(_POLL_S)
        return record, result

    async def _end_of(self, record: JobRecord) -> JobRecord:
        """Wait for the end of a run, here or on another server."""
        while not record.is_ended:
            if (job := self._scheduler.table.running_job(record.id)) is not None:
                return await self._end_here(record, job)
            if self._scheduler.is_draining:
                raise stopping()
            await asyncio.sleep(_POLL_S)
            record = await self._reader.jobs.get(record.id)
        return record

    async def _end_here(self, record: JobRecord, job: LocalRun) -> JobRecord:
        try:
            return await job.wait_async()
        except asyncio.CancelledError:  # the client has left
            if not record.outlives_client:
                job.steer(ControlRequest(is_canceled=True))
            raise

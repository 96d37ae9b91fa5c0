"""Single runs: one request to one agent, started immediately, while its client waits."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from batchray.config import ServerSettings
from batchray.errors import BatchrayError, ClusterError, StoreError
from batchray.jobs.control import ControlRequest
from batchray.jobs.local_run import LocalRun
from batchray.jobs.runtime import Runtime
from batchray.schema import new_job_id
from batchray.server.agent_catalog import AgentLookup
from batchray.server.errors import NO_RETRY, HttpError, stopping, unavailable
from batchray.server.scheduler import JobScheduler
from batchray.server.storage import ServerStorage
from batchray.store import JobRecord, NewItem, NewJob, StoredResult


class SingleRuns:
    """Runs single requests as jobs of one item.  They do not wait in the queue of batches."""

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

    async def run(self, user_id: str, agent_id: str, request: bytes) -> tuple[JobRecord, StoredResult]:
        """Run one request and return its job and result.  Raises as `start` and `result_of` do."""
        return await self.result_of(await self.start(user_id, agent_id, request))

    async def start(self, user_id: str, agent_id: str, request: bytes) -> LocalRun:
        """Start one request.  Raises UnknownAgentError, and HttpError 503 if it cannot be run now."""
        if self._scheduler.is_draining:
            raise stopping()
        await self._reader.call(self._agents.find, user_id, agent_id)
        try:
            # Before the job is stored: one that waits for its executor would look abandoned to other servers.
            await self._runtime.ensure_executor(self._settings)
        except ClusterError as error:
            raise unavailable(5, f"nothing can be run now: {error}") from None
        new = NewJob(new_job_id(), self._agents.snapshot, kind="run", user_id=user_id, agent_id=agent_id)
        await self._store.jobs.create(new, [NewItem(agent_id, None, request)])
        return await self._scheduler.start_now(new.id)

    async def result_of(self, job: LocalRun) -> tuple[JobRecord, StoredResult]:
        """Wait for the end of a run, and return its job and result.  Cancelling the wait cancels the run.

        Raises HttpError 503 if the run could not be completed.
        """
        try:
            record = await job.wait_async()
        except asyncio.CancelledError:  # the client has disconnected
            job.steer(ControlRequest(is_canceled=True))
            raise
        except BatchrayError as error:
            with suppress(StoreError):  # without this cancel it would be restarted, with no client to read the result
                await self._scheduler.cancel_stopped(job.id)
            raise unavailable(5, f"the request could not be run: {error}") from None
        result = await self._reader.items.result(record, 0)
        if result is None:
            raise HttpError(500, "the request ended without a result", NO_RETRY)
        return record, result

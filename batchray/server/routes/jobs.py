"""The routes of jobs: batches as Letta's jobs, and the deletion of jobs and runs."""

from __future__ import annotations

from functools import partial

from aiohttp import web

from batchray.schema import BatchJob
from batchray.server.auth import user_of
from batchray.server.deletion import JobDeletion
from batchray.server.errors import NO_RETRY, HttpError
from batchray.server.job_queries import JobQueries
from batchray.server.routing import NoQuery, ResponseBody, Route
from batchray.server.run_queries import JobsQuery
from batchray.server.run_reader import RunReader
from batchray.server.scheduler import JobScheduler
from batchray.server.storage import ServerStorage
from batchray.server.views import batch_job

_BASE = "/v1/jobs/"
_ONE = "/v1/jobs/{job_id}"
_BATCH = "/v1/messages/batches/{batch_id}"
_RUN = "/v1/runs/{run_id}"


class JobRoutes:
    """The endpoints of jobs, and those that delete."""

    def __init__(self, storage: ServerStorage, scheduler: JobScheduler, deletion: JobDeletion) -> None:
        self._reader, self._scheduler, self._deletion = storage.reader, scheduler, deletion
        self._jobs, self._runs = JobQueries(storage.reader), RunReader(storage.reader.sync)

    def routes(self) -> list[Route]:
        """Return the routes."""
        of_one = partial(Route, response=BatchJob, errors=(404,))
        return [
            Route(
                "GET", _BASE, self.index, "list_jobs", "List batches", JobsQuery, response=list[BatchJob], tag="jobs"
            ),
            of_one("GET", _ONE, self.retrieve, "retrieve_job", "Retrieve a job", tag="jobs"),
            of_one("PATCH", f"{_ONE}/cancel", self.cancel, "cancel_job", "Cancel a job", tag="jobs"),
            of_one("DELETE", _ONE, self.delete, "delete_job", "Delete a job with all its items", tag="jobs"),
            of_one("DELETE", _BATCH, self.delete, "delete_batch", "Delete a batch with all its items"),
            Route(
                "DELETE",
                _RUN,
                self.delete_run,
                "delete_run",
                "Delete a single run",
                errors=(404, 409),
                tag="runs",
            ),
        ]

    async def index(self, request: web.Request, query: JobsQuery) -> ResponseBody:
        """List a user's batches.  Single requests are listed as runs."""
        user_id = user_of(request)
        if query.ascending is not None:
            query = query.model_copy(update={"order": "asc" if query.ascending else "desc"})
        return [batch_job(record) for record in await self._jobs.batches(user_id, query, query.active)]

    async def retrieve(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Return a job: a batch, or the job of a single run."""
        return batch_job(await self._jobs.of_path(request))

    async def cancel(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Cancel a job; it may still be running in the response."""
        record = await self._jobs.of_path(request)
        await self._scheduler.cancel(record)
        return batch_job(await self._reader.jobs.get(record.id))

    async def delete(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Delete a job with its items, results and messages, and return it; one that runs is cancelled first."""
        return batch_job(await self._deletion.delete(await self._jobs.of_path(request)))

    async def delete_run(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Delete a single run; one that has not ended is cancelled first.  Runs of a batch are deleted with it."""
        run_id = request.match_info["run_id"]
        job = (await self._reader.call(self._runs.run, user_of(request), run_id)).job
        if not job.is_single:
            raise HttpError(409, f"run {run_id} belongs to batch {job.id}; delete that", NO_RETRY)
        await self._deletion.delete(job)
        return None

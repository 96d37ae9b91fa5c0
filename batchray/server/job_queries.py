"""The jobs that a request names: one in its path, or a page of a user's batches."""

from __future__ import annotations

from aiohttp import web

from batchray.errors import UnknownJobError
from batchray.schema import is_job_id
from batchray.server.auth import user_of
from batchray.server.errors import HttpError
from batchray.server.pagination import Page, paged
from batchray.store import AsyncStore, JobRecord


class JobQueries:
    """Finds jobs for the routes of batches and those of jobs."""

    def __init__(self, reader: AsyncStore) -> None:
        self._reader = reader

    async def of_path(self, request: web.Request) -> JobRecord:
        """Return the job of the path.  Raises HttpError 400 for a malformed id, and UnknownJobError."""
        job_id = request.match_info.get("job_id") or request.match_info["batch_id"]
        if not is_job_id(job_id):
            raise HttpError(400, f"INVALID_ARGUMENT: Invalid job ID format: {job_id}. Expected format: 'job-<uuid4>'")
        return await self._reader.jobs.get(job_id, user_of(request))

    async def batches(self, user_id: str, query: Page, is_active: bool = False) -> list[JobRecord]:
        """Return a page of a user's batches; with `is_active` only those that have not ended."""

        def page(query: Page) -> list[JobRecord]:
            return self._reader.sync.jobs.find(
                user_id=user_id,
                kind="batch",
                order=query.order,
                after=self._key_of(user_id, query.after),
                before=self._key_of(user_id, query.before),
                limit=query.limit,
                is_active=is_active,
            )

        return await self._reader.call(paged, query, page)

    def _key_of(self, user_id: str, job_id: str | None) -> int | None:
        if job_id is None:
            return None
        try:
            return self._reader.sync.jobs.get(job_id, user_id).key
        except UnknownJobError:
            raise HttpError(400, f"Job with id {job_id} not found") from None

"""The routes of batches in OpenAI's API: other views of the same jobs."""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated, Any

from aiohttp import web
from pydantic import Field

from batchray.batch.rules import RequestRules
from batchray.config import ServerSettings
from batchray.errors import UnknownJobError
from batchray.schema.base import WireModel
from batchray.schema.openai_batches import CreateOpenAIBatch, OpenAIBatch, OpenAIBatchList
from batchray.server.auth import user_of
from batchray.server.errors import NO_RETRY, HttpError
from batchray.server.idempotency import KEY_PATTERN, key_of
from batchray.server.openai_acceptance import OpenAIAcceptance
from batchray.server.openai_errors import OpenAIErrorBody
from batchray.server.openai_views import Spec, batch_view, job_id_of
from batchray.server.routing import NoQuery, ResponseBody, Route
from batchray.server.scheduler import JobScheduler
from batchray.server.storage import ServerStorage
from batchray.server.upload import read_json
from batchray.store import JobRecord

_BASE = "/v1/batches"
_ONE = "/v1/batches/{openai_batch_id}"


class OpenAIBatchesQuery(WireModel):
    """Query of the list of batches.  `after` is the id of a batch."""

    limit: Annotated[int, Field(ge=1, le=100)] = 20
    after: str | None = None


class OpenAIBatchRoutes:
    """The endpoints of batches in OpenAI's API."""

    def __init__(
        self, settings: ServerSettings, storage: ServerStorage, acceptance: OpenAIAcceptance, scheduler: JobScheduler
    ) -> None:
        self._settings, self._acceptance, self._scheduler = settings, acceptance, scheduler
        self._store, self._reader = storage.store, storage.reader

    def routes(self) -> list[Route]:
        """Return the routes."""
        route = partial(Route, tag="openai", error_body=OpenAIErrorBody)
        one = partial(route, response=OpenAIBatch)
        return [
            one(
                "POST",
                _BASE,
                self.create,
                "create_openai_batch",
                "Create a batch of a file",
                body=CreateOpenAIBatch,
                errors=(409,),
                headers={"Idempotency-Key": KEY_PATTERN},
            ),
            route(
                "GET",
                _BASE,
                self.index,
                "list_openai_batches",
                "List batches, the newest first",
                OpenAIBatchesQuery,
                response=OpenAIBatchList,
            ),
            one("GET", _ONE, self.retrieve, "retrieve_openai_batch", "Retrieve a batch", errors=(404,)),
            one("POST", f"{_ONE}/cancel", self.cancel, "cancel_openai_batch", "Cancel a batch", errors=(404, 409)),
        ]

    async def create(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Make a batch of an uploaded file; it is durable before the response is sent."""
        key = key_of(request)
        given = await read_json(request, CreateOpenAIBatch, self._settings, RequestRules(()))
        job = await self._acceptance.accept(user_of(request), given, key)
        return self._view(job, await self._reader.openai_batches.spec(job))

    async def index(self, request: web.Request, query: OpenAIBatchesQuery) -> ResponseBody:
        """List a user's batches, those that were made in other ways included."""
        user_id, after = user_of(request), None
        if query.after is not None:
            after = (await self._job_of(query.after, user_id, "after")).key
        found = await self._reader.jobs.find(
            user_id=user_id, kind="batch", order="desc", after=after, limit=query.limit + 1
        )
        shown = found[: query.limit]
        specs = await self._reader.openai_batches.specs(shown)
        data = [self._view(job, specs.get(job.key)) for job in shown]
        return OpenAIBatchList(
            data=data,
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
            has_more=len(found) > query.limit,
        )

    async def retrieve(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Return one batch."""
        job = await self._job(request)
        return self._view(job, await self._reader.openai_batches.spec(job))

    async def cancel(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Cancel a batch, which is then `cancelling` until its running requests have stopped."""
        job = await self._job(request)
        if job.is_ended and job.status != "cancelled":
            status = self._view(job, None).status
            raise HttpError(409, f"Cannot cancel a batch with status '{status}'.", NO_RETRY)
        if not job.is_ended:
            await self._store.openai_batches.change(job, partial(_cancelling, now=int(time.time())))
            await self._scheduler.cancel(job)
        job = await self._reader.jobs.get(job.id)
        return self._view(job, await self._reader.openai_batches.spec(job))

    def _view(self, job: JobRecord, spec: Spec | None) -> OpenAIBatch:
        return batch_view(job, spec, self._settings.job_deadline_s)

    async def _job(self, request: web.Request) -> JobRecord:
        return await self._job_of(request.match_info["openai_batch_id"], user_of(request))

    async def _job_of(self, batch_id: str, user_id: str, param: str | None = None) -> JobRecord:
        """Return the job of a batch.  Raises HttpError 404; 400 for one that a parameter names."""
        job_id = job_id_of(batch_id)
        try:
            if job_id is not None and (job := await self._reader.jobs.get(job_id, user_id)).kind == "batch":
                return job
        except UnknownJobError:
            pass
        sentence = f"No batch found with id '{batch_id[:60]}'."
        raise HttpError(400 if param else 404, sentence, NO_RETRY, {"param": param})


def _cancelling(spec: Spec, now: int) -> dict[str, Any]:
    return {"cancelling_at": now, **spec}

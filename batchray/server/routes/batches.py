"""The routes of batches: those of Letta, and batchray's additions (items, results, events, retry)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from functools import partial

from aiohttp import web

from batchray.errors import StoreFullError
from batchray.schema import (
    BatchJob,
    CreateBatch,
    Message,
    Result,
    index_of,
    is_of_job,
    ordinal_of,
)
from batchray.server.acceptance import BatchAcceptance
from batchray.server.auth import user_of
from batchray.server.batch_queries import ItemsQuery, MessagesQuery, ResultsQuery
from batchray.server.bodies import EventsOf, LinesOf
from batchray.server.errors import NO_RETRY, HttpError
from batchray.server.idempotency import KEY_PATTERN, key_of
from batchray.server.job_queries import JobQueries
from batchray.server.json_lists import between_cursors, json_list
from batchray.server.pagination import Cursor, Page, is_between, paged
from batchray.server.result_streams import ResultStreams
from batchray.server.routing import NoQuery, ResponseBody, Route, with_warning
from batchray.server.scheduler import JobScheduler
from batchray.server.storage import ServerStorage
from batchray.server.upload import Uploads
from batchray.server.views import ItemView, MessagesPage, OutcomeView, batch_job, item_view, wanted_messages_of
from batchray.store import JobRecord, SortOrder, StoredItem
from batchray.views.result_pages import START, ResultPosition

_BASE = "/v1/messages/batches"
_ONE = _BASE + "/{batch_id}"
# Requests and messages that are read at a time for a list.
_PAGE_BYTES = 1024 * 1024
_EVENT_ID_PATTERN = "[0-9]{1,18}"


class BatchRoutes:
    """The endpoints of batches."""

    def __init__(
        self,
        storage: ServerStorage,
        uploads: Uploads,
        acceptance: BatchAcceptance,
        scheduler: JobScheduler,
        streams: ResultStreams,
    ) -> None:
        self._store, self._reader, self._bulk = storage.store, storage.reader, storage.bulk
        self._jobs = JobQueries(storage.reader)
        self._uploads, self._acceptance, self._scheduler, self._streams = uploads, acceptance, scheduler, streams

    def routes(self) -> list[Route]:
        """Return all routes of batches."""
        return [*self._letta_routes(), *self._own_routes()]

    def _letta_routes(self) -> list[Route]:
        """Return the routes of Letta's API."""
        of_one = partial(Route, errors=(404,))
        return [
            Route(
                "POST",
                _BASE,
                self.create,
                "create_batch",
                "Create a batch",
                body=CreateBatch,
                has_strict_body=True,
                response=BatchJob,
                errors=(404, 409),
                headers={"Idempotency-Key": KEY_PATTERN},
            ),
            Route("GET", _BASE, self.index, "list_batches", "List batches", Page, response=list[BatchJob]),
            of_one("GET", _ONE, self.retrieve, "retrieve_batch", "Retrieve a batch", response=BatchJob),
            of_one("PATCH", _ONE + "/cancel", self.cancel, "cancel_batch", "Cancel a batch"),
            of_one(
                "GET",
                _ONE + "/messages",
                self.messages,
                "list_batch_messages",
                "List the messages of a batch",
                MessagesQuery,
                response=MessagesPage,
            ),
        ]

    def _own_routes(self) -> list[Route]:
        """Return the routes that batchray adds."""
        get = partial(Route, "GET", errors=(404,))
        return [
            get(
                _ONE + "/items",
                self.items,
                "list_batch_items",
                "List the items of a batch",
                ItemsQuery,
                response=list[ItemView],
            ),
            get(
                _ONE + "/results",
                self.results,
                "stream_batch_results",
                "Stream the results of a batch as JSON Lines, one line per item",
                ResultsQuery,
                response=LinesOf(Result),
            ),
            get(
                _ONE + "/events",
                self.events,
                "stream_batch_events",
                "Watch a batch: its progress and outcomes as server-sent events",
                response=EventsOf({"progress": BatchJob, "outcome": OutcomeView, "end": BatchJob}),
                headers={"Last-Event-ID": _EVENT_ID_PATTERN},
            ),
            Route(
                "POST",
                _ONE + "/retry",
                self.retry,
                "retry_batch",
                "Run the failed items of an ended batch again",
                response=BatchJob,
                errors=(404, 409),
            ),
            Route(
                "POST",
                _ONE + "/unpause",
                self.unpause,
                "unpause_batch",
                "Continue a paused batch",
                response=BatchJob,
                errors=(404, 409),
            ),
        ]

    async def create(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Accept a batch, all of it or nothing; it is durable before the response is sent."""
        key = key_of(request)
        user_id = user_of(request)
        try:
            await asyncio.to_thread(self._store.sync.check_room)  # before a large body is uploaded for nothing
        except StoreFullError:
            if key is None or await self._reader.jobs.find_by_idempotency_key(user_id, key) is None:
                raise
        async with self._uploads.receive(request, needs_digest=key is not None) as body:
            job = batch_job(await self._acceptance.accept(user_id, body, key))
        return with_warning(job, (job.metadata or {}).get("unused_fields", ()))

    async def index(self, request: web.Request, query: Page) -> ResponseBody:
        """List a user's batches, of every status."""
        return [batch_job(record) for record in await self._jobs.batches(user_of(request), query)]

    async def retrieve(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Return the job of a batch."""
        return batch_job(await self._jobs.of_path(request))

    async def cancel(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Cancel a batch; the response is null, as in Letta."""
        await self._scheduler.cancel(await self._jobs.of_path(request))
        return None

    async def retry(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Run again the items of an ended batch that did not succeed."""
        record = await self._jobs.of_path(request)
        await self._scheduler.retry(record)
        return batch_job(await self._reader.jobs.get(record.id))

    async def unpause(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Continue a batch that has paused itself, or that was paused."""
        record = await self._jobs.of_path(request)
        await self._scheduler.unpause(record)
        return batch_job(await self._reader.jobs.get(record.id))

    async def items(self, request: web.Request, query: ItemsQuery) -> ResponseBody:
        """List the items of a batch."""
        job = await self._jobs.of_path(request)

        def page(query: ItemsQuery) -> list[StoredItem]:
            return self._reader.sync.items.find(
                job,
                order=query.order,
                after=None if query.after is None else _index_of(job, query.after),
                before=None if query.before is None else _index_of(job, query.before),
                status=query.status,
                stop_reason=query.stop_reason,
                agent_id=query.agent_id,
                custom_id=query.custom_id,
                limit=query.limit,
            )

        found = await self._reader.call(paged, query, page)
        return await json_list(request, self._reader, (item_view(job.id, item) for item in found))

    async def messages(self, request: web.Request, query: MessagesQuery) -> ResponseBody:
        """List the input and output messages of finished items, in the order in which the items finished."""
        job = await self._jobs.of_path(request)

        found = between_cursors(query, partial(self._cursor, job), partial(self._messages, job, query))
        return await json_list(request, self._bulk, found, b'{"messages":[', b"]}")

    def _messages(
        self, job: JobRecord, query: MessagesQuery, order: SortOrder, after: Cursor | None, before: Cursor | None
    ) -> Iterator[tuple[Cursor, Message]]:
        """Yield the messages between two cursors in an order, each with its own."""
        step = 1 if order == "asc" else -1
        since, until = after and after.seq, before and before.seq
        limits = {"limit": query.limit, "max_bytes": _PAGE_BYTES}
        while found := self._reader.sync.items.finished(
            job, order=order, since=since, until=until, agent_id=query.agent_id, **limits
        ):
            since = found[-1].seq + step
            for result in found:
                for message in wanted_messages_of(job, result)[::step]:
                    cursor = Cursor(result.seq, ordinal_of(message.id))
                    if is_between(cursor, after, before, order):
                        yield cursor, message

    def _cursor(self, job: JobRecord, message_id: str | None) -> Cursor | None:
        """Return the position of a message in a job.  Raises HttpError 400 for an unknown id."""
        if message_id is None:
            return None
        seq = None
        if message_id.startswith("message-") and is_of_job(message_id, job.id):
            seq = self._reader.sync.items.finish_position(job, index_of(message_id))
        if seq is None:
            raise HttpError(400, f"Message with id {message_id} not found")
        return Cursor(seq, ordinal_of(message_id))

    async def results(self, request: web.Request, query: ResultsQuery) -> ResponseBody:
        """Stream results as JSON Lines."""
        job = await self._jobs.of_path(request)
        after = START if query.after is None else await self._reader.call(self._position, job, query.after)
        return await self._streams.results(request, job, query, after)

    def _position(self, job: JobRecord, item_id: str) -> ResultPosition:
        """Return the position of a result.  Raises HttpError 400 if the job has no result of this item."""
        index = _index_of(job, item_id)
        seq = self._reader.sync.items.finish_position(job, index)
        if seq is None:
            raise HttpError(400, f"Item with id {item_id} has no result yet")
        return ResultPosition(index, seq)

    async def events(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Stream `progress` events (the job), `outcome` events (an item), and one final `end` event (the job).

        The id of an outcome event is its position in finish order.  A client that reconnects with it as
        `Last-Event-ID` misses none.  A stream without an `end` was cut; the job continues.
        """
        job = await self._jobs.of_path(request)
        return await self._streams.events(request, job, _last_event(request))


def _index_of(job: JobRecord, item_id: str) -> int:
    if not (item_id.startswith("batch_item-") and is_of_job(item_id, job.id)):
        raise HttpError(400, f"Item with id {item_id} not found")
    return index_of(item_id)


def _last_event(request: web.Request) -> int:
    given = request.headers.get("Last-Event-ID", "0")
    if not re.fullmatch(_EVENT_ID_PATTERN, given):
        raise HttpError(400, "Last-Event-ID: not an event id of this stream", NO_RETRY)
    return int(given)

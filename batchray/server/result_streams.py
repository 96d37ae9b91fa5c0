"""The streams of a job's results: JSON Lines, and server-sent events with its progress."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from datetime import datetime
from typing import Literal, NamedTuple

import orjson
from aiohttp import web

from batchray.server.batch_queries import ResultsQuery
from batchray.server.job_feeds import JobFeed, JobFeeds, JobSnapshot
from batchray.server.shared_pages import SharedPage, SharedPages
from batchray.server.storage import ServerStorage
from batchray.server.stream import Events, JsonLines, StreamedResponse, event
from batchray.store import JobRecord, Store, StoredResult
from batchray.views.carried import CarriedRows
from batchray.views.openai_lines import openai_line
from batchray.views.result_pages import START, ResultCursor, ResultOrder, ResultPosition
from batchray.views.results import ResultViews

# A page ends with the result that passes one of these.
_PAGE_RESULTS, _PAGE_BYTES = 500, 256 * 1024
# How soon a follower notices that its reader has left, while the job does not change.
_TICK_S = 1.0
# How many followers are written to before the server looks for other requests.
_N_TURNS = 8


class ResultForm(NamedTuple):
    """How results are shown: what readers must have in common to share pages."""

    kind: Literal["lines", "events", "openai"]
    order: ResultOrder
    failed: bool = False
    include_input: bool = False
    endpoint: str = ""
    """Of a file of an OpenAI batch: its endpoint.  If `failed`, it is the error file, otherwise the output file."""


class PageSource:
    """Makes the pages of a job's results in one form.  Its methods block."""

    def __init__(self, store: Store, job: JobRecord, form: ResultForm) -> None:
        self._items, self.job, self.form = store.items, job, form
        self._created_at = int(datetime.fromisoformat(job.created_at).timestamp())
        rows = CarriedRows(functools.partial(store.items.carried_columns, job))
        agents = store.jobs.agent_snapshot(job.id)
        self._views = ResultViews(job, agents, include_input=form.include_input, rows=rows)

    def page(self, after: ResultPosition, *, is_final: bool) -> SharedPage:
        """Return the page after a position."""
        cursor = ResultCursor(self.form.order, after, failed=self.form.failed)
        query = cursor.query(is_final=is_final)
        found = self._items.results(self.job, **query, limit=_PAGE_RESULTS, max_bytes=_PAGE_BYTES)
        shown = cursor.take(found, is_final=is_final)
        return SharedPage(b"".join(map(self._text, shown)), len(shown), cursor.position)

    def _text(self, stored: StoredResult) -> bytes:
        """Return a result as it is sent; empty if it is left out."""
        if self.form.failed and stored.status == "succeeded":
            return b""
        if self.form.kind == "openai" and self.form.failed == (stored.status == "succeeded"):
            return b""
        result = self._views.result(stored)
        if self.form.kind == "openai":
            return openai_line(result, self.form.endpoint, self._created_at) + b"\n"
        if self.form.kind == "lines":
            return result.model_dump_json().encode() + b"\n"
        shown = result.model_dump(mode="json", exclude={"input", "messages"})
        return event("outcome", orjson.dumps(shown), str(stored.seq))


class ResultStreams:
    """Streams results to many readers; those at the same place share one page."""

    def __init__(self, storage: ServerStorage) -> None:
        self._reader, self._bulk = storage.reader, storage.bulk
        self._feeds, self._pages = JobFeeds(storage.reader), SharedPages()
        self._turns = asyncio.Semaphore(_N_TURNS)

    def cut(self) -> None:
        """End all streams that follow a job, because the server exits."""
        self._feeds.cut()

    def forget_pages(self) -> None:
        """Forget the pages that no reader has in use."""
        self._pages.forget()

    async def results(
        self, request: web.Request, job: JobRecord, query: ResultsQuery, position: ResultPosition = START
    ) -> web.StreamResponse:
        """Stream the results after a position as JSON Lines; with `follow`, until the job ends."""
        lines = JsonLines(request, self._turns)
        if request.method == "HEAD":
            return await lines.end()
        source = await self._source(job, ResultForm("lines", query.order, query.failed, query.include_input))
        if not query.follow:
            await self._send(lines, source, JobSnapshot.of(job), position, is_final=True)
            return await lines.end()
        async with self._feeds.follow(job) as feed:
            state = feed.state
            while True:
                is_last = state.record.is_ended
                position = await self._send(lines, source, state, position, is_final=is_last)
                if is_last:
                    return await lines.end()
                state = await _next(feed, state, lines)

    async def events(self, request: web.Request, job: JobRecord, last_seq: int) -> web.StreamResponse:
        """Stream the outcomes after `last_seq`, the job as often as it changes, and its end."""
        events = Events(request, turns=self._turns)
        if request.method == "HEAD":
            return await events.end()
        source, position = await self._source(job, ResultForm("events", "finish")), ResultPosition(seq=last_seq)
        async with self._feeds.follow(job) as feed:
            state = feed.state
            while True:
                position = await self._send(events, source, state, position, is_final=True)
                if state.record.is_ended:
                    await events.send("end", state.text)
                    return await events.end()
                await events.send("progress", state.text)
                state = await _next(feed, state, events)

    async def openai_file(
        self, request: web.Request, job: JobRecord, form: ResultForm, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        """Stream the output or the error file of an ended OpenAI batch."""
        response = StreamedResponse(request, headers, self._turns)
        if request.method != "HEAD":
            source = await self._source(job, form)
            await self._send(response, source, JobSnapshot.of(job), START, is_final=True)
        return await response.end()

    async def size(self, job: JobRecord, form: ResultForm) -> int:
        """Return how many bytes such a file has."""
        source, position, n_bytes = await self._source(job, form), START, 0
        while (page := await self._bulk.call(source.page, position, is_final=True)).n_results:
            position, n_bytes = page.position, n_bytes + len(page.text)
        return n_bytes

    async def _source(self, job: JobRecord, form: ResultForm) -> PageSource:
        return await self._reader.call(PageSource, self._reader.sync, job, form)

    async def _send(
        self,
        response: StreamedResponse,
        source: PageSource,
        state: JobSnapshot,
        position: ResultPosition,
        *,
        is_final: bool,
    ) -> ResultPosition:
        """Send the results after a position, and return the position of the last one.

        With `is_final` no result waits for those before it.
        """
        await response.begin()
        while True:
            after = position

            async def read(after: ResultPosition = after) -> SharedPage:
                key = (source.job.key, source.form, after, is_final, state.version)
                return await self._pages.get(key, lambda: self._bulk.call(source.page, after, is_final=is_final))

            page = await response.write_page(read)
            if not page.n_results:
                return position
            position = page.position


async def _next(feed: JobFeed, seen: JobSnapshot, response: StreamedResponse) -> JobSnapshot:
    """Return the state after `seen`."""
    while (state := await feed.next(seen, _TICK_S)) is seen:
        await response.idle()
    return state

"""The routes of runs: each item of a batch and each single request is one."""

from __future__ import annotations

import asyncio
from collections.abc import Set
from functools import partial
from typing import ClassVar

from aiohttp import web

from batchray.batch.rules import RequestRules
from batchray.config import ServerSettings
from batchray.schema import LettaMessage, Run, RunUsage, Step
from batchray.schema.base import Integer, WireModel
from batchray.server.auth import user_of
from batchray.server.pagination import Page
from batchray.server.routing import NoQuery, ResponseBody, Route
from batchray.server.run_queries import OldestFirst, RunsQuery
from batchray.server.run_reader import RunReader, page_of
from batchray.server.run_stream import RUN_EVENTS, RunStream
from batchray.server.run_views import run_view, usage_view
from batchray.server.single_runs import SingleRuns
from batchray.server.upload import read_json
from batchray.store import ThreadedStore

_BASE = "/v1/runs/"
_ONE = "/v1/runs/{run_id}"


class StreamRun(WireModel):
    """The body of POST /v1/runs/{run_id}/stream: where the stream begins, and whether it has pings."""

    without_effect: ClassVar[Set[str]] = frozenset({"batch_size", "poll_interval"})

    batch_size: Integer | None = None
    include_pings: bool | None = True
    poll_interval: float | None = None
    starting_after: Integer = 0


class RunRoutes:
    """The endpoints of runs."""

    def __init__(self, settings: ServerSettings, reader: ThreadedStore, runs: SingleRuns) -> None:
        self._settings, self._reader, self._runs = settings, reader, runs
        self._read = RunReader(reader.sync)

    def routes(self) -> list[Route]:
        """Return the routes."""
        get = partial(Route, "GET", errors=(404,), tag="runs")
        return [
            Route("GET", _BASE, self.index, "list_runs", "List runs", RunsQuery, response=list[Run], tag="runs"),
            get(_ONE, self.retrieve, "retrieve_run", "Retrieve a run", response=Run),
            get(
                f"{_ONE}/messages",
                self.messages,
                "list_run_messages",
                "List the messages of a run",
                OldestFirst,
                response=list[LettaMessage],
            ),
            get(f"{_ONE}/usage", self.usage, "retrieve_run_usage", "Count the tokens of a run", response=RunUsage),
            get(f"{_ONE}/steps", self.steps, "list_run_steps", "List the steps of a run", Page, response=list[Step]),
            Route(
                "POST",
                f"{_ONE}/stream",
                self.stream,
                "stream_run",
                "Stream the messages of a run as server-sent events",
                body=StreamRun,
                has_strict_body=True,
                is_body_optional=True,
                response=RUN_EVENTS,
                errors=(404,),
                tag="runs",
            ),
        ]

    async def index(self, request: web.Request, query: RunsQuery) -> ResponseBody:
        """List a user's runs, those of batches included."""
        return await self._reader.call(self._read.runs, user_of(request), query)

    async def retrieve(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Return one run."""
        return run_view(await self._reader.call(self._read.run, *_run_of(request)))

    async def messages(self, request: web.Request, query: OldestFirst) -> ResponseBody:
        """List the messages of a run, those of its request included; those so far if it has not ended."""

        def page() -> ResponseBody:
            return page_of(self._read.details(*_run_of(request)).messages(), query)

        return await self._reader.call(page)

    async def usage(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Return the tokens of a run, so far if it has not ended."""
        return usage_view((await self._reader.call(self._read.details, *_run_of(request))).usage)

    async def steps(self, request: web.Request, query: Page) -> ResponseBody:
        """List the steps of a run; those so far if it has not ended."""

        def page() -> ResponseBody:
            return self._read.steps_of(self._read.details(*_run_of(request)), query)

        return await self._reader.call(page)

    async def stream(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Stream a run from its beginning, or after a message, until its end.  It continues without its readers."""
        run = await self._reader.call(self._read.run, *_run_of(request))
        given, rules = StreamRun(), RequestRules((), accepts_unused=True)
        if request.can_read_body:
            given = await read_json(request, StreamRun, self._settings, rules)
        stream = RunStream(
            self._reader,
            run.job,
            run.index,
            run.request,
            pings=given.include_pings is not False,
            after=max(given.starting_after, 0),
        )
        ended = asyncio.create_task(self._runs.item_result(run.job, run.index))
        return await stream.send(request, ended, rules.unused)


def _run_of(request: web.Request) -> tuple[str, str]:
    return user_of(request), request.match_info["run_id"]

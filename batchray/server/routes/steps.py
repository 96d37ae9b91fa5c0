"""The routes of steps: a step is a model call of a run, with the tool calls that it asked for."""

from __future__ import annotations

from functools import partial

from aiohttp import web

from batchray.batch.rules import RequestRules
from batchray.config import ServerSettings
from batchray.schema import Feedback, LettaMessage, ProviderTrace, Step, StepMetrics
from batchray.schema.base import WireModel
from batchray.server.auth import user_of
from batchray.server.routing import NoQuery, ResponseBody, Route
from batchray.server.run_queries import OldestFirst, StepsQuery
from batchray.server.run_reader import RunReader, page_of
from batchray.server.run_views import RunStep
from batchray.server.storage import ServerStorage
from batchray.server.upload import read_json
from batchray.store import StepFeedback

_BASE = "/v1/steps/"
_ONE = "/v1/steps/{step_id}"


class GiveFeedback(WireModel):
    """The body of PATCH /v1/steps/{step_id}/feedback; it replaces earlier feedback, null and no tags remove it."""

    feedback: Feedback | None = None
    tags: list[str] | None = None


class StepRoutes:
    """The endpoints of steps."""

    def __init__(self, settings: ServerSettings, storage: ServerStorage) -> None:
        self._settings, self._store, self._reader = settings, storage.store, storage.reader
        self._read = RunReader(storage.reader.sync)

    def routes(self) -> list[Route]:
        """Return the routes."""
        get = partial(Route, "GET", errors=(404,), tag="steps")
        return [
            Route("GET", _BASE, self.index, "list_steps", "List steps", StepsQuery, response=list[Step], tag="steps"),
            get(_ONE, self.retrieve, "retrieve_step", "Retrieve a step", response=Step),
            get(
                f"{_ONE}/messages",
                self.messages,
                "list_step_messages",
                "List the messages of a step",
                OldestFirst,
                response=list[LettaMessage],
            ),
            get(
                f"{_ONE}/metrics",
                self.metrics,
                "retrieve_step_metrics",
                "Retrieve the durations of a step",
                response=StepMetrics,
            ),
            get(
                f"{_ONE}/trace",
                self.trace,
                "retrieve_step_trace",
                "Retrieve the raw request and response of a step, of which none is kept",
                response=ProviderTrace | None,
            ),
            Route(
                "PATCH",
                f"{_ONE}/feedback",
                self.feedback,
                "update_step_feedback",
                "Say whether a step was good",
                body=GiveFeedback,
                has_strict_body=True,
                response=Step,
                errors=(404,),
                tag="steps",
            ),
        ]

    async def index(self, request: web.Request, query: StepsQuery) -> ResponseBody:
        """List a user's steps, those of batches included."""
        return await self._reader.call(self._read.steps, user_of(request), query)

    async def retrieve(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Return one step."""
        return await self._reader.call(self._view, request)

    async def messages(self, request: web.Request, query: OldestFirst) -> ResponseBody:
        """List the messages of a step."""

        def page() -> ResponseBody:
            return page_of(self._step(request).letta_messages(), query)

        return await self._reader.call(page)

    async def metrics(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Return the durations of a step, as far as they are known."""
        return (await self._reader.call(self._step, request)).metrics()

    async def trace(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Return null, as Letta's server does if it records no traces."""
        await self._reader.call(self._step, request)
        return None

    async def feedback(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Replace the feedback on a step."""
        step = await self._reader.call(self._step, request)
        given = await read_json(request, GiveFeedback, self._settings, RequestRules(()))
        said = StepFeedback(given.feedback, given.tags or ())
        await self._store.runs.set_feedback(step.of.run, step.ordinal, said)
        return await self._reader.call(self._view, request)

    def _step(self, request: web.Request) -> RunStep:
        return self._read.step(user_of(request), request.match_info["step_id"])

    def _view(self, request: web.Request) -> Step:
        return self._read.view(self._step(request))

"""The routes of an agent's messages: run one request immediately, and list the messages."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice

from aiohttp import web

from batchray.config import ServerSettings
from batchray.jobs import context
from batchray.schema import (
    LettaMessage,
    LettaResponse,
    Message,
    is_message_id,
    ordinal_of,
)
from batchray.server.agent_catalog import AgentLookup
from batchray.server.agent_queries import AgentMessagesQuery
from batchray.server.asks import AskAgent, AskReader
from batchray.server.auth import user_of
from batchray.server.clients import ClientWatch, has_left
from batchray.server.errors import NO_RETRY, HttpError
from batchray.server.idempotency import KEY_PATTERN
from batchray.server.json_lists import between_cursors, json_list
from batchray.server.pagination import Cursor, is_between, paged, slice_of
from batchray.server.routing import NoQuery, ResponseBody, Route, with_warning
from batchray.server.run_stream import RUN_EVENTS, RunStream
from batchray.server.run_views import RunDetails
from batchray.server.single_runs import NewRun, SingleRuns
from batchray.server.storage import ServerStorage
from batchray.server.views import letta_response
from batchray.store import HistoryPlace, RunFilter, RunPosition, SortOrder

_PATH = "/v1/agents/{agent_id}/messages"
_RUNS_AT_ONCE = 100
_MESSAGES_AT_ONCE = 32
# The status and error type that Letta's server uses for each kind of model failure.
_LLM_ERRORS = {
    "authentication_error": (401, "llm_authentication"),
    "permission_denied": (401, "llm_authentication"),
    "insufficient_quota": (402, "llm_insufficient_credits"),
    "rate_limited": (429, "llm_rate_limit"),
    "timeout": (504, "llm_timeout"),
    "deadline_exceeded": (504, "llm_timeout"),
}
# Errors of a request that conflicts with the agent's pending approvals, or that answers none of them.  They are 409, as
# in Letta's server for an agent with pending approvals: the request conflicts with the agent's state on the server.
_APPROVAL_ERRORS = frozenset(
    {
        "pending_approval",
        "already_answered",
        "no_pending_approval",
        "incomplete_approval",
        "ambiguous_approval",
        "mixed_messages",
        "tool_return_needed",
    }
)


class MessageRoutes:
    """The endpoints of an agent's messages."""

    def __init__(
        self,
        settings: ServerSettings,
        storage: ServerStorage,
        agents: AgentLookup,
        runs: SingleRuns,
        clients: ClientWatch,
    ) -> None:
        self._agents, self._runs, self._clients = agents, runs, clients
        self._reader, self._bulk = storage.reader, storage.bulk
        self._asks = AskReader(settings, storage.reader, agents)

    def routes(self) -> list[Route]:
        """Return the routes."""
        errors = (401, 402, 404, 409, 429, 504)
        post = partial(
            Route,
            "POST",
            body=AskAgent,
            has_strict_body=True,
            errors=errors,
            tag="agents",
            headers={"Idempotency-Key": KEY_PATTERN},
        )
        return [
            post(
                _PATH,
                self.ask,
                "send_agent_message",
                "Send messages to an agent and wait for its response",
                response=LettaResponse,
                streams=RUN_EVENTS,
            ),
            post(
                f"{_PATH}/stream",
                self.stream,
                "stream_agent_message",
                "Send messages to an agent and stream its response as server-sent events",
                response=RUN_EVENTS,
            ),
            Route(
                "GET",
                _PATH,
                self.index,
                "list_agent_messages",
                "List an agent's messages",
                AgentMessagesQuery,
                response=list[LettaMessage],
                errors=(404,),
                tag="agents",
            ),
        ]

    async def ask(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Run one request immediately, on the same executor as batches."""
        given, run = await self._asks.read(request, AskAgent)
        if given.streaming:
            return await self._stream(request, given, run)
        job = await self._runs.start(run, partial(has_left, request))
        record, result = await self._clients.while_connected(request, self._runs.result_of(job))
        if result.error is not None:
            raise _failure(result.error)
        return with_warning(letta_response(record, result), run.unused)

    async def stream(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Run one request immediately, and stream its response."""
        return await self._stream(request, *await self._asks.read(request, AskAgent))

    async def index(self, request: web.Request, query: AgentMessagesQuery) -> ResponseBody:
        """List an agent's messages, input included: the conversation of a stateful agent, or the single runs of others.

        Messages of batches are not listed for agents that are not stateful.
        """
        user_id, agent_id = user_of(request), request.match_info["agent_id"]
        bound = await self._reader.call(self._agents.find, user_id, agent_id)

        messages: Iterable[Message]
        if bound.agent.stateful:
            messages = await self._bulk.call(paged, query, partial(self._conversation, user_id, agent_id))
        else:
            read = partial(self._run_messages, user_id, agent_id, query)
            messages = between_cursors(query, partial(self._cursor, user_id), read)
        parts = (part for message in messages for part in query.parts(message))
        return await json_list(request, self._bulk, parts)

    def _conversation(self, user_id: str, agent_id: str, query: AgentMessagesQuery) -> list[Message]:
        places = self._reader.sync.conversations.places(user_id, agent_id)
        ids = [(each, place) for place in places for each in place.message_ids]
        ids = ids if query.order == "asc" else ids[::-1]
        found = self._messages_at(ids[slice_of([each for each, _ in ids], query, "Message with id")])
        return list(islice(filter(query.matches, found) if query.is_filtered else found, query.limit))

    def _messages_at(self, ids: Sequence[tuple[str, HistoryPlace]]) -> Iterator[Message]:
        """Yield messages of a conversation by their ids and places, reading a few items at a time."""
        for start in range(0, len(ids), _MESSAGES_AT_ONCE):
            part = ids[start : start + _MESSAGES_AT_ONCE]
            priors = self._reader.sync.conversations.items_at(dict.fromkeys(place for _, place in part))
            messages = {message.id: message for prior in priors for message in context.messages_of(prior)}
            yield from (messages[each] for each, _ in part if each in messages)

    def _run_messages(
        self,
        user_id: str,
        agent_id: str,
        query: AgentMessagesQuery,
        order: SortOrder,
        after: Cursor | None,
        before: Cursor | None,
    ) -> Iterator[tuple[Cursor, Message]]:
        """Yield the messages of an agent's single runs between two cursors in an order, each with its own."""
        step = 1 if order == "asc" else -1
        wanted = RunFilter(agent_ids=(agent_id,), kinds=("run", "background"))
        first = RunPosition(after.seq, -step) if after else None  # a single run is item 0 of its job
        pages = self._reader.sync.runs.pages(user_id, wanted, order, first, limit=_RUNS_AT_ONCE, with_messages=True)
        for run in chain.from_iterable(pages):
            for message in RunDetails.of(run).conversation()[::step] if run.status else ():
                cursor = Cursor(run.job.key, ordinal_of(message.id))
                if is_between(cursor, after, before, order) and (not query.is_filtered or query.matches(message)):
                    yield cursor, message

    def _cursor(self, user_id: str, message_id: str | None) -> Cursor | None:
        """Return the position of a message among all single runs.  Raises HttpError 400 for an unknown id."""
        if message_id is None:
            return None
        job = None
        if is_message_id(message_id):
            job = self._reader.sync.jobs.find_by_id_prefix(f"job-{message_id[8:32]}", user_id)
        if job is None:
            raise HttpError(400, f"Message with id {message_id} not found")
        return Cursor(job.key, ordinal_of(message_id))

    async def _stream(self, request: web.Request, given: AskAgent, run: NewRun) -> web.StreamResponse:
        """Stream the agent's output as its steps are checkpointed, and pings while there is nothing new."""
        job = await self._runs.start(run, partial(has_left, request))
        stream = RunStream(self._reader, job, 0, run.request, pings=given.include_pings)
        return await stream.send(request, asyncio.create_task(self._runs.result_of(job)), run.unused)


def _failure(error: Mapping[str, str]) -> HttpError:
    """Return the error response for a run that failed."""
    if error["type"] in _APPROVAL_ERRORS:
        body = {"type": error["type"], "message": error["message"], "detail": error["type"]}
        return HttpError(409, error["message"], NO_RETRY, {"error": body})
    if error["type"] == "unsupported_content":
        return HttpError(400, error["message"], NO_RETRY)
    status, kind = _LLM_ERRORS.get(error["type"], (500, "llm_error"))
    body = {"type": kind, "message": error["message"], "detail": error["type"]}
    return HttpError(status, error["message"], NO_RETRY, {"error": body})

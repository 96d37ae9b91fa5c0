"""Requests to one agent, as clients send them: with an answer at once, streamed, or in the background."""

from __future__ import annotations

from collections.abc import Set
from typing import Annotated, ClassVar, TypeVar

import orjson
from aiohttp import web
from pydantic import Field

from batchray.batch.rules import RequestRules
from batchray.config import ServerSettings
from batchray.schema import CallbackUrl, LettaRequest, RequestMessage
from batchray.schema.base import WireModel
from batchray.server.agent_catalog import AgentLookup
from batchray.server.auth import user_of
from batchray.server.idempotency import key_of
from batchray.server.single_runs import NewRun
from batchray.server.upload import read_json
from batchray.store import ThreadedStore

_MAX_RUN_IDS = 1000


class _Ask(LettaRequest):
    messages: Annotated[list[RequestMessage], Field(min_length=1)] | None = None


class AskAgent(_Ask):
    """The body of POST /v1/agents/{id}/messages: a request, and how its response is delivered."""

    without_effect: ClassVar[Set[str]] = LettaRequest.without_effect | {"stream_tokens", "background"}

    streaming: bool = False
    stream_tokens: bool = False
    include_pings: bool = True
    background: bool = False


class AskInBackground(_Ask):
    """The body of POST /v1/agents/{id}/messages/async: a request, and the address of its callback."""

    callback_url: CallbackUrl | None = None


class CancelRuns(WireModel):
    """The body of POST /v1/agents/{id}/messages/cancel: runs of the agent; all that have not ended if none is named."""

    run_ids: Annotated[list[str], Field(max_length=_MAX_RUN_IDS)] | None = None


A = TypeVar("A", bound=_Ask)


class AskReader:
    """Reads requests to one agent."""

    def __init__(self, settings: ServerSettings, reader: ThreadedStore, agents: AgentLookup) -> None:
        self._settings, self._reader, self._agents = settings, reader, agents

    async def read(self, request: web.Request, model: type[A]) -> tuple[A, NewRun]:
        """Return the body of a request to the agent of its path, and the run to start for it.

        Raises UnknownAgentError, and HttpError for an unusable body or idempotency key.
        """
        user_id, agent_id = user_of(request), request.match_info["agent_id"]
        await self._reader.call(self._agents.find, user_id, agent_id)
        rules = RequestRules((), accepts_unused=True)
        given = await read_json(request, model, self._settings, rules)
        fields = given.model_dump(mode="json", exclude_unset=True, include=set(LettaRequest.model_fields))
        body = orjson.dumps({**fields, "agent_id": agent_id})
        return given, NewRun(user_id, agent_id, body, key_of(request), unused=rules.unused)

"""The routes of agents: those of the operator's files, read-only, and those that clients make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from aiohttp import web
from pydantic import ValidationError

from batchray.agents import Clients, build_agent
from batchray.config import Agent
from batchray.errors import ConfigError, UnknownAgentError
from batchray.schema import AgentState, CreateAgent, Model, UpdateAgent, new_id
from batchray.schema.base import WireModel
from batchray.schema.validation_text import first_problem
from batchray.server.agent_catalog import AgentCatalog
from batchray.server.auth import user_of
from batchray.server.errors import HttpError
from batchray.server.pagination import Page, paged
from batchray.server.routing import Answer, NoQuery, Route
from batchray.server.scheduler import Service
from batchray.server.upload import read_json

_PATH = "/v1/agents/{agent_id}"
# What is kept of what a client gives: all that an agent is made of or shows.  Not `secrets`: no code here reads them.
_KEPT = {
    *("name", "description", "system", "memory_blocks", "tools", "tool_ids", "tags", "metadata", "timezone"),
    *("model", "model_settings", "llm_config", "context_window_limit", "message_buffer_autoclear"),
    *("include_base_tools", "tool_rules"),
}
# A change of the one is also one of the other, which says the same in another way.
_SAME = {"tool_ids": "tools", "llm_config": "model", "model": "llm_config"}


class AgentsQuery(Page):
    """A page of agents: of one name, with a text in their names, with any or with all of some tags."""

    name: str | None = None
    query_text: str | None = None
    tags: tuple[str, ...] = ()
    match_all_tags: bool = False

    def wants(self, agent: AgentState) -> bool:
        """Tell whether an agent is one of those that are asked for."""
        matches = (
            set(self.tags) <= set(agent.tags) if self.match_all_tags else not set(self.tags).isdisjoint(agent.tags)
        )
        is_named = self.name in (None, agent.name) and (self.query_text or "").lower() in agent.name.lower()
        return is_named and (matches or not self.tags)


class Deleted(WireModel):
    """That an agent is gone."""

    message: str


class Agents:
    """The endpoints that make, show, change and delete agents."""

    def __init__(self, service: Service, agents: AgentCatalog) -> None:
        self._service, self._fleet = service, agents
        self._reader, self._store = service.reader, service.store

    def routes(self) -> list[Route]:
        """Return the routes, with slashes where Letta has them."""
        made = (400, 404, 408, 413, 415, 422)
        return [
            Route(
                "POST",
                "/v1/agents/",
                self.create,
                "Create an agent",
                body=CreateAgent,
                answer=AgentState,
                errors=made,
                tag="agents",
            ),
            Route("GET", "/v1/agents/", self.index, "List agents", AgentsQuery, None, AgentState, True, tag="agents"),
            Route("GET", _PATH, self.retrieve, "Retrieve an agent", answer=AgentState, errors=(404,), tag="agents"),
            Route(
                "PATCH",
                _PATH,
                self.update,
                "Update an agent",
                body=UpdateAgent,
                answer=AgentState,
                errors=(*made, 403),
                tag="agents",
            ),
            Route("DELETE", _PATH, self.delete, "Delete an agent", answer=Deleted, errors=(403, 404), tag="agents"),
            Route(
                "PATCH",
                f"{_PATH}/reset-messages",
                self.reset,
                "Forget an agent's conversation",
                answer=AgentState,
                errors=(404,),
                tag="agents",
            ),
            Route("GET", "/v1/models/", self.models, "List models", answer=Model, is_list=True, tag="models"),
        ]

    async def create(self, request: web.Request, query: NoQuery) -> Answer:
        """Make an agent of a configured model and configured tools."""
        given = await read_json(request, CreateAgent, self._service.settings)
        agent_id = new_id("agent")
        spec = self._checked(agent_id, {"name": agent_id, **_kept(given)})
        stored = await self._store.call(self._store.create_agent, agent_id, user_of(request), spec)
        return self._fleet.state(stored, {})

    async def index(self, request: web.Request, query: AgentsQuery) -> Answer:
        """List the operator's agents and the user's own."""
        user_id = user_of(request)

        def page(query: AgentsQuery) -> list[AgentState]:
            ids = [*self._fleet.ids, *self._reader.agent_ids(user_id)]
            ids = ids if query.order == "asc" else ids[::-1]
            start = _position(ids, query.after) + 1 if query.after else 0
            end = _position(ids, query.before) if query.before else None
            return list(islice(filter(query.wants, self._states(user_id, ids[start:end])), query.limit))

        return await self._service.read(paged, query, page)

    async def retrieve(self, request: web.Request, query: NoQuery) -> Answer:
        """Return an agent."""
        return await self._service.read(self._state, user_of(request), request.match_info["agent_id"])

    async def update(self, request: web.Request, query: NoQuery) -> Answer:
        """Change an agent; jobs that named it before keep what it was."""
        user_id, agent_id = user_of(request), request.match_info["agent_id"]
        self._refuse_configured(agent_id, "changed")
        given = await read_json(request, UpdateAgent, self._service.settings)
        stored = await self._service.read(self._reader.agent, agent_id, user_id)
        if stored is None:
            raise _unknown(agent_id)
        changes = {name: value for name, value in _kept(given).items() if value is not None}  # null: as it was
        replaced = {_SAME.get(name) for name in changes} - changes.keys()
        before = {name: value for name, value in stored.spec["given"].items() if name not in replaced}
        spec = self._checked(agent_id, {**before, **changes})
        await self._store.call(self._store.update_agent, agent_id, user_id, spec)
        return await self._service.read(self._state, user_id, agent_id)

    async def delete(self, request: web.Request, query: NoQuery) -> Answer:
        """Delete an agent; jobs that named it keep what it was."""
        agent_id = request.match_info["agent_id"]
        self._refuse_configured(agent_id, "deleted")
        user_id = user_of(request)
        if not await self._store.call(self._store.delete_agent, agent_id, user_id):
            raise _unknown(agent_id)
        await self._store.call(self._store.forget, user_id, agent_id, with_memory=True)
        return Deleted(message=f"Agent id={agent_id} successfully deleted")

    async def reset(self, request: web.Request, query: NoQuery) -> Answer:
        """Forget what was said to a stateful agent, and which of its tool calls wait; its memory stays."""
        user_id, agent_id = user_of(request), request.match_info["agent_id"]
        await self._service.read(self._service.agent, user_id, agent_id)
        await self._store.call(self._store.forget, user_id, agent_id)
        return await self._service.read(self._state, user_id, agent_id)

    async def models(self, request: web.Request, query: NoQuery) -> Answer:
        """List the models that agents may be made of."""
        return self._fleet.models()

    def _states(self, user_id: str, ids: Iterable[str]) -> Iterator[AgentState]:
        for agent_id in ids:
            try:
                yield self._state(user_id, agent_id)
            except UnknownAgentError:  # deleted a moment ago
                continue

    def _state(self, user_id: str, agent_id: str) -> AgentState:
        if agent_id in self._fleet.ids:
            return self._fleet.configured_state(
                agent_id, self._memory(user_id, self._service.agents.agents[agent_id].agent)
            )
        stored = self._reader.agent(agent_id, user_id)
        if stored is None:
            raise _unknown(agent_id)
        return self._fleet.state(stored, self._memory(user_id, Agent.model_validate(stored.spec["agent"])))

    def _memory(self, user_id: str, agent: Agent) -> dict[str, str]:
        return self._reader.memory(user_id, agent.id) if agent.stateful and agent.memory_blocks else {}

    def _checked(self, agent_id: str, given: dict[str, Any]) -> dict[str, Any]:
        """Return what the store keeps of an agent, proven to be one that runs.  Raises HttpError 400, 404 or 422."""
        try:
            agent = self._fleet.agent(agent_id, given)
            build_agent(self._service.agents.bind(agent), Clients())
        except ValidationError as error:
            raise HttpError(422, first_problem(error, Agent)) from None
        except ConfigError as error:
            raise HttpError(400, error.reason) from None
        return {"given": given, "agent": agent.model_dump(mode="json", exclude_defaults=True)}

    def _refuse_configured(self, agent_id: str, what: str) -> None:
        if agent_id in self._fleet.ids:
            raise HttpError(403, f"agent {agent_id} is configured by the operator and cannot be {what}")


def _kept(given: UpdateAgent) -> dict[str, Any]:
    return given.model_dump(exclude_unset=True, include=_KEPT & type(given).model_fields.keys())


def _position(ids: list[str], agent_id: str) -> int:
    try:
        return ids.index(agent_id)
    except ValueError:
        raise HttpError(400, f"Agent with ID {agent_id} not found") from None


def _unknown(agent_id: str) -> UnknownAgentError:
    return UnknownAgentError(f"Agent with ID {agent_id} not found")

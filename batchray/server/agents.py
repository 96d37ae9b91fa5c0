"""The routes of agents: those of the operator's files, read-only, and those that clients make."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from pydantic import ValidationError

from batchray.config import Agent, first_sentence
from batchray.errors import ConfigError, UnknownAgentError
from batchray.schema import AgentState, CreateAgent, Model, UpdateAgent, new_id
from batchray.schema.base import WireModel
from batchray.server.auth import user_of
from batchray.server.errors import HttpError
from batchray.server.fleet import Fleet
from batchray.server.pages import Page, paged
from batchray.server.routing import Answer, NoQuery, Route
from batchray.server.service import Service
from batchray.server.upload import read_json

_PATH = "/v1/agents/{agent_id}"


class AgentsQuery(Page):
    """A page of agents, of one name or of all."""

    name: str | None = None


class Deleted(WireModel):
    """That an agent is gone."""

    message: str


class Agents:
    """The endpoints that make, show, change and delete agents."""

    def __init__(self, service: Service, fleet: Fleet) -> None:
        self._service, self._fleet = service, fleet
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
            Route("GET", "/v1/models/", self.models, "List models", answer=Model, is_list=True, tag="models"),
        ]

    async def create(self, request: web.Request, query: NoQuery) -> Answer:
        """Make an agent of a configured model and configured tools."""
        given = await read_json(request, CreateAgent, self._service.settings)
        agent_id = new_id("agent")
        spec = self._checked(agent_id, {"name": agent_id, **given.model_dump(exclude_unset=True)})
        stored = await self._store.call(self._store.create_agent, agent_id, user_of(request), spec)
        return self._fleet.state(stored)

    async def index(self, request: web.Request, query: AgentsQuery) -> Answer:
        """List the operator's agents and the user's own."""
        user_id = user_of(request)

        def page(query: AgentsQuery) -> list[AgentState]:
            ids = [*self._fleet.ids, *self._reader.agent_ids(user_id)]
            ids = ids if query.order == "asc" else ids[::-1]
            start = _position(ids, query.after) + 1 if query.after else 0
            end = _position(ids, query.before) if query.before else None
            if query.name is None:
                return [self._state(user_id, agent_id) for agent_id in ids[start:end][: query.limit]]
            states = (self._state(user_id, agent_id) for agent_id in ids[start:end])
            return [state for state in states if state.name == query.name][: query.limit]

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
        changes = {name: value for name, value in given.model_dump(exclude_unset=True).items() if value is not None}
        spec = self._checked(agent_id, {**stored.spec["given"], **changes})
        await self._store.call(self._store.update_agent, agent_id, user_id, spec)
        return await self._service.read(self._state, user_id, agent_id)

    async def delete(self, request: web.Request, query: NoQuery) -> Answer:
        """Delete an agent; jobs that named it keep what it was."""
        agent_id = request.match_info["agent_id"]
        self._refuse_configured(agent_id, "deleted")
        if not await self._store.call(self._store.delete_agent, agent_id, user_of(request)):
            raise _unknown(agent_id)
        return Deleted(message=f"Agent id={agent_id} successfully deleted")

    async def models(self, request: web.Request, query: NoQuery) -> Answer:
        """List the models that agents may be made of."""
        return self._fleet.models()

    def _state(self, user_id: str, agent_id: str) -> AgentState:
        if agent_id in self._fleet.ids:
            return self._fleet.configured_state(agent_id)
        stored = self._reader.agent(agent_id, user_id)
        if stored is None:
            raise _unknown(agent_id)
        return self._fleet.state(stored)

    def _checked(self, agent_id: str, given: dict[str, Any]) -> dict[str, Any]:
        """Return what the store keeps of an agent, proven to be one that runs.  Raises HttpError 400, 404 or 422."""
        try:
            agent = self._fleet.agent(agent_id, given)
            self._service.fleet.bind(agent)
        except ValidationError as error:
            raise HttpError(422, first_sentence(error, Agent)) from None
        except ConfigError as error:
            raise HttpError(400, error.reason) from None
        return {"given": given, "agent": agent.model_dump(mode="json", exclude_defaults=True)}

    def _refuse_configured(self, agent_id: str, what: str) -> None:
        if agent_id in self._fleet.ids:
            raise HttpError(403, f"agent {agent_id} is configured by the operator and cannot be {what}")


def _position(ids: list[str], agent_id: str) -> int:
    try:
        return ids.index(agent_id)
    except ValueError:
        raise HttpError(400, f"Agent with ID {agent_id} not found") from None


def _unknown(agent_id: str) -> UnknownAgentError:
    return UnknownAgentError(f"Agent with ID {agent_id} not found")

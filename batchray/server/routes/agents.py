"""The routes of agents: the operator's, which are read-only here, and those that clients create."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from itertools import islice
from typing import Any, ClassVar

from aiohttp import web
from pydantic import ValidationError

from batchray.agents import Clients, build_agent
from batchray.batch.rules import RequestRules
from batchray.config import Agent, MemoryBlock, ServerSettings
from batchray.errors import ConfigError, UnknownAgentError
from batchray.schema import AgentState, CreateAgent, UpdateAgent, new_id
from batchray.schema.base import WireModel
from batchray.schema.validation_text import first_problem
from batchray.server.agent_catalog import AgentCatalog, AgentLookup, without_idle_rules
from batchray.server.agent_options import handle_of, is_same_model, settings_of, settings_of_agent
from batchray.server.agent_queries import AgentQuery, AgentsQuery
from batchray.server.agent_states import AgentStates
from batchray.server.auth import user_of
from batchray.server.block_shapes import new_block, new_run_block, run_blocks
from batchray.server.errors import HttpError
from batchray.server.pagination import paged, slice_of
from batchray.server.routing import NoQuery, ResponseBody, Route, with_warning
from batchray.server.storage import ServerStorage
from batchray.server.upload import read_json
from batchray.store import StoredAgent

_PATH = "/v1/agents/{agent_id}"
# The fields of a client's agent that are stored: all that it uses or shows.  The model's settings are `settings`.
_STORED_FIELDS = {
    *("name", "description", "system", "tools", "tool_ids", "tags", "metadata", "timezone", "hidden", "project_id"),
    *("model", "llm_config", "context_window_limit", "message_buffer_autoclear", "include_base_tools", "tool_rules"),
}
# Two fields for the same property: setting the first one replaces the second.
_REPLACES = {"tool_ids": "tools", "llm_config": "model", "model": "llm_config"}


class Deleted(WireModel):
    """Confirms that something was deleted."""

    message: str


class ResetMessages(WireModel):
    """The body of PATCH /v1/agents/{id}/reset-messages.

    No messages are added, because the system prompt goes with every request.
    """

    without_effect: ClassVar[Set[str]] = frozenset({"add_default_initial_messages"})

    add_default_initial_messages: bool = False


class AgentRoutes:
    """The endpoints that create, show, update and delete agents."""

    def __init__(
        self, settings: ServerSettings, storage: ServerStorage, agents: AgentLookup, catalog: AgentCatalog
    ) -> None:
        self._settings, self._agents, self._catalog = settings, agents, catalog
        self._reader, self._store = storage.reader, storage.store
        self._states = AgentStates(catalog, agents, storage.reader)

    def routes(self) -> list[Route]:
        """Return the routes, with trailing slashes where Letta has them."""
        body_errors = (400, 404, 408, 413, 415, 422)
        route = partial(Route, response=AgentState, tag="agents")
        return [
            route(
                "POST",
                "/v1/agents/",
                self.create,
                "create_agent",
                "Create an agent",
                body=CreateAgent,
                has_strict_body=True,
                errors=body_errors,
            ),
            Route(
                "GET",
                "/v1/agents/",
                self.index,
                "list_agents",
                "List agents",
                AgentsQuery,
                response=list[AgentState],
                tag="agents",
            ),
            route("GET", _PATH, self.retrieve, "retrieve_agent", "Retrieve an agent", AgentQuery, errors=(404,)),
            route(
                "PATCH",
                _PATH,
                self.update,
                "update_agent",
                "Update an agent",
                body=UpdateAgent,
                has_strict_body=True,
                errors=(*body_errors, 403),
            ),
            Route(
                "DELETE",
                _PATH,
                self.delete,
                "delete_agent",
                "Delete an agent",
                response=Deleted,
                errors=(403, 404),
                tag="agents",
            ),
            route(
                "PATCH",
                f"{_PATH}/reset-messages",
                self.reset,
                "reset_agent_messages",
                "Delete the conversation of an agent",
                body=ResetMessages,
                has_strict_body=True,
                is_body_optional=True,
                errors=(404,),
            ),
        ]

    async def create(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Create an agent from a configured model and configured tools."""
        rules = RequestRules((), accepts_unused=True)
        given = await read_json(request, CreateAgent, self._settings, rules)
        agent_id, user_id = new_id("agent"), user_of(request)
        block_ids = given.block_ids or ()
        new_blocks = [new_block(block) for block in given.memory_blocks or ()]
        blocks = [new_run_block(block) for block in new_blocks]
        blocks += run_blocks(await self._reader.call(self._states.own_blocks, user_id, agent_id, block_ids))
        settings = settings_of(given.model_dump(exclude_unset=True))
        fields = {"name": agent_id, **_stored_fields(given), "settings": settings.values}
        spec = self._validated_spec(agent_id, fields, blocks)
        await self._store.agents.create(agent_id, user_id, spec, new_blocks, block_ids)
        state = await self._reader.call(self._states.agent, user_id, agent_id)
        needless = self._catalog.without_effect(fields)
        return with_warning(state, {*rules.unused, *settings.replaced, *_replaced_model(given), *needless})

    async def index(self, request: web.Request, query: AgentsQuery) -> ResponseBody:
        """List the operator's agents and the user's own."""
        user_id = user_of(request)

        def page(query: AgentsQuery) -> list[AgentState]:
            listed = self._states.listed(user_id, query.name)
            matching = {agent.id for agent in listed if query.matches(agent)}
            ids = query.sort(listed)
            wanted = (each for each in ids[slice_of(ids, query, "Agent with ID")] if each in matching)
            return list(islice(self._states.agents(user_id, wanted), query.limit))

        return await self._reader.call(paged, query.with_order(), page)

    async def retrieve(self, request: web.Request, query: AgentQuery) -> ResponseBody:
        """Return an agent."""
        return await self._reader.call(self._states.agent, user_of(request), request.match_info["agent_id"])

    async def update(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Update an agent; existing jobs keep the settings that it had before."""
        user_id, agent_id = user_of(request), request.match_info["agent_id"]
        self._refuse_configured(agent_id, "changed")
        rules = RequestRules((), accepts_unused=True)
        given = await read_json(request, UpdateAgent, self._settings, rules)
        changes, settings = _stored_fields(given), settings_of(given.model_dump(exclude_unset=True))
        state = await self.change(
            user_id, agent_id, lambda before: updated(before.spec, changes, settings.values), given.block_ids
        )
        needless = self._catalog.without_effect(changes)
        return with_warning(state, {*rules.unused, *settings.replaced, *_replaced_model(given), *needless})

    async def change(
        self,
        user_id: str,
        agent_id: str,
        changed: Callable[[StoredAgent], dict[str, Any]],
        block_ids: Sequence[str] | None = None,
    ) -> AgentState:
        """Replace the fields that a client has given for an agent, and with `block_ids` its blocks; return the agent.

        `changed` is called again if another request has changed the agent meanwhile.  Raises HttpError 403 for an
        operator's agent, and as `create` does.
        """
        self._refuse_configured(agent_id, "changed")
        while True:
            stored = await self._reader.call(self._states.stored, user_id, agent_id)
            blocks = await self._reader.call(self._states.own_blocks, user_id, agent_id, block_ids)
            spec = self._validated_spec(agent_id, changed(stored), run_blocks(blocks))
            if await self._store.agents.update(stored, spec, block_ids):
                return await self._reader.call(self._states.agent, user_id, agent_id)

    async def delete(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Delete an agent; existing jobs keep its settings."""
        agent_id = request.match_info["agent_id"]
        self._refuse_configured(agent_id, "deleted")
        user_id = user_of(request)
        if not await self._store.agents.delete(agent_id, user_id):
            raise _unknown(agent_id)
        await self._store.conversations.delete(user_id, agent_id, with_memory=True)
        return Deleted(message=f"Agent id={agent_id} successfully deleted")

    async def reset(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Delete the conversation and the pending tool calls of a stateful agent; its memory blocks stay."""
        user_id, agent_id = user_of(request), request.match_info["agent_id"]
        await self._reader.call(self._agents.find, user_id, agent_id)
        rules = RequestRules((), accepts_unused=True)
        if request.can_read_body:
            await read_json(request, ResetMessages, self._settings, rules)
        await self._store.conversations.delete(user_id, agent_id)
        return with_warning(await self._reader.call(self._states.agent, user_id, agent_id), rules.unused)

    def _validated_spec(self, agent_id: str, given: dict[str, Any], blocks: Sequence[MemoryBlock]) -> dict[str, Any]:
        """Return the spec to store for an agent, after building it once.  Raises HttpError 400, 404 or 422."""
        try:
            agent = self._catalog.agent(agent_id, given, blocks)
            build_agent(self._agents.configured.bind(without_idle_rules(agent)), Clients())
        except ValidationError as error:
            raise HttpError(422, first_problem(error, Agent)) from None
        except ConfigError as error:
            raise HttpError(400, error.reason) from None
        settings = agent.model_dump(mode="json", exclude={"memory_blocks"}, exclude_defaults=True)
        return {"given": given, "agent": settings}

    def _refuse_configured(self, agent_id: str, action: str) -> None:
        if agent_id in self._catalog.ids:
            raise HttpError(403, f"agent {agent_id} is configured by the operator and cannot be {action}")


def updated(spec: Mapping[str, Any], changes: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a stored agent after a change.  Null changes nothing."""
    agent = Agent.model_validate(spec["agent"])
    # An agent of an older version, whose default was another, stays as it is.
    given = {"message_buffer_autoclear": not agent.stateful, "settings": settings_of_agent(agent), **spec["given"]}
    changes = {name: value for name, value in changes.items() if value is not None}
    replaced = {_REPLACES.get(name) for name in changes} - changes.keys()
    unchanged = {name: value for name, value in given.items() if name not in replaced}
    return {**unchanged, **changes, "settings": {**given["settings"], **settings}}


def _replaced_model(given: UpdateAgent) -> list[str]:
    """Return the paths in a body of a model that its `model` replaces by another one."""
    handle = handle_of(given.llm_config.model_dump()) if given.llm_config else None
    return ["llm_config.model"] if handle and given.model and not is_same_model(handle, given.model) else []


def _stored_fields(given: UpdateAgent) -> dict[str, Any]:
    return given.model_dump(exclude_unset=True, include=_STORED_FIELDS & type(given).model_fields.keys())


def _unknown(agent_id: str) -> UnknownAgentError:
    return UnknownAgentError(f"Agent with ID {agent_id} not found")

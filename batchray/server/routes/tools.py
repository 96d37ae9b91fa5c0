"""The routes of tools: which there are, which an agent has, and one tool called without a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, Protocol

import orjson
from aiohttp import web
from pydantic import Field

from batchray.batch.rules import RequestRules
from batchray.config import ServerSettings
from batchray.schema import AgentState, Tool
from batchray.schema.base import WHOLE, OpenModel, WireModel
from batchray.server.agent_catalog import AgentLookup
from batchray.server.agent_states import AgentStates
from batchray.server.auth import user_of
from batchray.server.clients import ClientWatch, has_left
from batchray.server.errors import HttpError
from batchray.server.pagination import Page, paged, slice_of
from batchray.server.routes.agents import updated
from batchray.server.routing import NoQuery, ResponseBody, Route
from batchray.server.single_runs import NewRun, SingleRuns
from batchray.server.tool_catalog import ToolCatalog
from batchray.server.tool_runs import ToolExecutionResult, execution_result, tool_agent
from batchray.server.upload import read_json
from batchray.store import StoredAgent

_TOOL = "/v1/tools/{tool_id}"
_OF_AGENT = "/v1/agents/{agent_id}/tools"
_REFUSAL = "the operator configures the tools, in the agents file: a client cannot make, change or delete one"
_APPROVAL = "requires_approval"
# Reciprocal rank fusion, as Letta's server ranks; here of one ranking.
_RANK_OFFSET = 60

Change = Callable[[StoredAgent], dict[str, Any]]


class AgentChanger(Protocol):
    """Changes what a client has given for an agent; see `AgentRoutes.change`."""

    async def __call__(self, user_id: str, agent_id: str, changed: Change) -> AgentState:
        """Change an agent and return it."""
        ...


class ToolsQuery(Page):
    """Query of tools: a page, filtered by names, ids, types and a text."""

    name: str | None = None
    names: tuple[str, ...] = ()
    tool_ids: tuple[str, ...] = ()
    search: str | None = None
    tool_types: tuple[str, ...] = ()
    exclude_tool_types: tuple[str, ...] = ()
    return_only_letta_tools: bool = False

    def matches(self, tool: Tool) -> bool:
        """Return whether a tool passes the filters."""
        has_name = self.name in (None, tool.name) and (not self.names or tool.name in self.names)
        is_wanted = has_name and (not self.tool_ids or tool.id in self.tool_ids)
        is_letta = tool.tool_type != "custom" or not self.return_only_letta_tools
        has_text = (self.search or "").lower() in f"{tool.name} {tool.description}".lower()
        return is_wanted and is_letta and has_text and _has_type(tool, self.tool_types, self.exclude_tool_types)


class SearchTools(OpenModel):
    """The body of POST /v1/tools/search.  Tools are found by words of their names and descriptions."""

    query: str | None = None
    search_mode: Literal["fts", "hybrid"] = "hybrid"
    tool_types: list[str] | None = None
    tags: list[str] | None = None
    limit: Annotated[int, Field(ge=1, le=100), WHOLE] = 50


class ToolSearchResult(WireModel):
    """A tool that was found; the best has rank 1."""

    tool: Tool
    combined_score: float
    fts_rank: int | None = None
    vector_rank: int | None = None
    embedded_text: str | None = None


class ApprovalQuery(WireModel):
    """The query of an approval's setting, which Letta's older clients send instead of a body."""

    requires_approval: bool | None = None


class SetApproval(OpenModel):
    """The body that sets whether an agent's calls of a tool wait for the caller."""

    requires_approval: bool


class CallTool(OpenModel):
    """The body of POST /v1/agents/{id}/tools/{name}/run: the tool's arguments."""

    args: dict[str, Any] = Field(default_factory=dict)


class ToolRoutes:
    """The endpoints of tools, and of those that agents have."""

    def __init__(
        self,
        settings: ServerSettings,
        states: AgentStates,
        agents: AgentLookup,
        tools: ToolCatalog,
        change: AgentChanger,
        runs: SingleRuns,
        clients: ClientWatch,
    ) -> None:
        self._settings, self._states, self._agents, self._change = settings, states, agents, change
        self._runs, self._clients, self._tools = runs, clients, tools

    def routes(self) -> list[Route]:
        """Return the routes, with trailing slashes where Letta has them."""
        listed = partial(Route, "GET", tag="tools", response=list[Tool])
        of_agent = partial(Route, "PATCH", tag="tools", response=AgentState, errors=(400, 403, 404))
        refused = partial(Route, endpoint=self.refuse, response=Tool, errors=(403, 404), tag="tools")
        body = (403, 404, 408, 413, 415)
        return [
            listed("/v1/tools/", self.index, "list_tools", "List tools", ToolsQuery),
            Route(
                "POST",
                "/v1/tools/search",
                self.search,
                "search_tools",
                "Find tools by words",
                body=SearchTools,
                response=list[ToolSearchResult],
                errors=(408, 413, 415),
                tag="tools",
            ),
            Route(
                "GET",
                _TOOL,
                self.retrieve,
                "retrieve_tool",
                "Retrieve a tool",
                response=Tool,
                errors=(404,),
                tag="tools",
            ),
            refused("POST", "/v1/tools/", operation_id="create_tool", summary="Refused: tools are the operator's"),
            refused("PUT", "/v1/tools/", operation_id="upsert_tool", summary="Refused: tools are the operator's"),
            refused("PATCH", _TOOL, operation_id="update_tool", summary="Refused: tools are the operator's"),
            refused("DELETE", _TOOL, operation_id="delete_tool", summary="Refused: tools are the operator's"),
            listed(_OF_AGENT, self.of_agent, "list_agent_tools", "List an agent's tools", Page, errors=(404,)),
            of_agent(f"{_OF_AGENT}/attach/{{tool_id}}", self.attach, "attach_agent_tool", "Give a tool to an agent"),
            of_agent(f"{_OF_AGENT}/detach/{{tool_id}}", self.detach, "detach_agent_tool", "Take a tool from an agent"),
            of_agent(
                f"{_OF_AGENT}/approval/{{tool_name}}",
                self.set_approval,
                "update_agent_tool_approval",
                "Set whether an agent's calls of a tool wait for the caller",
                ApprovalQuery,
                body=SetApproval,
                errors=(400, *body),
            ),
            Route(
                "POST",
                f"{_OF_AGENT}/{{tool_name}}/run",
                self.run,
                "run_agent_tool",
                "Call a tool of an agent, without a model",
                body=CallTool,
                response=ToolExecutionResult,
                errors=(*body, 507),
                tag="tools",
            ),
        ]

    async def index(self, request: web.Request, query: ToolsQuery) -> ResponseBody:
        """List the operator's tools, and those that edit memory blocks."""
        return paged(query, partial(_page, self._tools.all()))

    async def retrieve(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Return a tool."""
        return self._tools.get(request.match_info["tool_id"])

    async def refuse(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Refuse to make, change or delete a tool."""
        if "tool_id" in request.match_info:
            self._tools.get(request.match_info["tool_id"])
        raise HttpError(403, _REFUSAL)

    async def search(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Find tools that have words of a query in their name or description; without a query, all."""
        given = await read_json(request, SearchTools, self._settings, RequestRules(()))
        words = (given.query or "").lower().split()
        scores: list[tuple[int, Tool]] = []
        for tool in self._tools.all():
            text = f"{tool.name} {tool.description}".lower()
            scores.append((sum(word in text for word in words), tool))
        found = [tool for score, tool in sorted(scores, key=lambda scored: -scored[0]) if score or not words]
        kept = [tool for tool in found if _has_type(tool, given.tool_types or ()) and not given.tags]
        return [
            ToolSearchResult(tool=tool, combined_score=1 / (_RANK_OFFSET + rank), fts_rank=rank)
            for rank, tool in enumerate(kept[: given.limit], start=1)
        ]

    async def of_agent(self, request: web.Request, query: Page) -> ResponseBody:
        """List the tools of an agent."""
        agent = await self._states.read(self._states.agent, user_of(request), request.match_info["agent_id"])
        return paged(query, partial(_page, agent.tools))

    async def attach(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Give a tool to an agent, which may have it already; batches that exist run without it."""
        name = self._tools.name_of(request.match_info["tool_id"])

        def changed(given: Mapping[str, Any]) -> dict[str, Any]:
            edits_memory = {"include_base_tools": True} if self._tools.is_of_memory(name) else {}
            return {**given, "tools": list(dict.fromkeys([*self._tools.wanted(given), name])), **edits_memory}

        return await self._changed(request, changed)

    async def detach(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Take a tool from an agent, with its rules; batches that exist run with it."""
        name = self._tools.name_of(request.match_info["tool_id"])
        user_id, agent_id = user_of(request), request.match_info["agent_id"]
        if self._tools.is_of_memory(name) and await self._states.read(self._states.has_tool, user_id, agent_id, name):
            raise HttpError(403, f"{name} comes with the memory blocks that an agent can edit; set these to read_only")

        def changed(given: Mapping[str, Any]) -> dict[str, Any]:
            tools = [each for each in self._tools.wanted(given) if each != name]
            return {
                **given,
                "tools": tools,
                "tool_rules": [rule for rule in _rules(given) if rule.get("tool_name") != name],
            }

        return await self._changed(request, changed)

    async def set_approval(self, request: web.Request, query: ApprovalQuery) -> ResponseBody:
        """Set whether an agent's calls of a tool wait for the caller; batches that exist keep the earlier setting."""
        name = request.match_info["tool_name"]
        is_required = query.requires_approval
        if request.can_read_body:
            is_required = (await read_json(request, SetApproval, self._settings, RequestRules(()))).requires_approval
        if is_required is None:
            raise HttpError(422, "requires_approval is missing; give it in the body")
        await self._states.read(self._check_tool, user_of(request), request.match_info["agent_id"], name)

        def changed(given: Mapping[str, Any]) -> dict[str, Any]:
            rule = {"type": _APPROVAL, "tool_name": name}
            others = [each for each in _rules(given) if (each.get("type"), each.get("tool_name")) != (_APPROVAL, name)]
            return {**given, "tool_rules": [*others, rule] if is_required else others}

        return await self._changed(request, changed)

    async def run(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Call a tool of an agent as its runs do: on the same executor, with the same limits."""
        user_id, agent_id, name = user_of(request), request.match_info["agent_id"], request.match_info["tool_name"]
        given = await read_json(request, CallTool, self._settings, RequestRules(()))
        await self._states.read(self._check_tool, user_id, agent_id, name)
        bound = await self._states.read(tool_agent, self._agents, user_id, agent_id, name, given.args)
        body = orjson.dumps({"agent_id": agent_id, "input": f"A client calls the tool {name}."})
        job = await self._runs.start(NewRun(user_id, agent_id, body, agent=bound), partial(has_left, request))
        _, result = await self._clients.while_connected(request, self._runs.result_of(job))
        state = await self._states.read(self._states.agent, user_id, agent_id)
        return execution_result(result, state)

    def _check_tool(self, user_id: str, agent_id: str, name: str) -> None:
        if not self._states.has_tool(user_id, agent_id, name):
            raise HttpError(404, f"agent {agent_id!r} has no tool {name[:128]!r}")

    async def _changed(
        self, request: web.Request, changed: Callable[[Mapping[str, Any]], dict[str, Any]]
    ) -> AgentState:
        def change(stored: StoredAgent) -> dict[str, Any]:
            given = changed(updated(stored.spec, {}, {}))
            return {key: value for key, value in given.items() if key != "tool_ids"}

        return await self._change(user_of(request), request.match_info["agent_id"], change)


def _page(tools: Sequence[Tool], query: Page) -> list[Tool]:
    """Return the tools of a page; they have no time of creation, so the first one counts as the oldest."""
    by_id = {tool.id: tool for tool in (tools if query.order == "asc" else tools[::-1])}
    between = [by_id[each] for each in [*by_id][slice_of([*by_id], query, "Tool with id")]]
    found = filter(query.matches, between) if isinstance(query, ToolsQuery) else between
    return list(found)[: query.limit]


def _has_type(tool: Tool, wanted: Sequence[str], excluded: Sequence[str] = ()) -> bool:
    return (not wanted or tool.tool_type in wanted) and tool.tool_type not in excluded


def _rules(given: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(given.get("tool_rules") or ())

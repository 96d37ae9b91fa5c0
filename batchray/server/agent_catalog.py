"""Converts agents between Letta's shape and ours, and checks what clients request against the operator's agents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any, NamedTuple

from batchray.agents.build import protocol_of
from batchray.agents.memory import MEMORY_TOOLS
from batchray.batch.rules import KnownAgent
from batchray.config import Agent, AgentSet, BoundAgent, MemoryBlock, function_name
from batchray.errors import UnknownAgentError
from batchray.schema import AgentState, Block, LLMConfig, Memory, Model, StopReason
from batchray.server.agent_options import handle_of, options_of, settings_of_agent, shown_settings
from batchray.server.block_shapes import run_blocks, settings_block_id
from batchray.server.errors import HttpError
from batchray.server.tool_catalog import ToolCatalog
from batchray.store import LastRun, StoredAgent, StoredBlock, ThreadedStore
from batchray.views.results import parse_time

# Letta's clients require a number, and the configuration has none.
_CONTEXT_WINDOW = 128_000
# Letta's names of tool rules: a call of the tool ends the run; it waits for the caller's approval; the run continues
# after it, as after a call of any tool here.
_TERMINAL_RULE, _APPROVAL_RULE, _CONTINUE_RULE = "exit_loop", "requires_approval", "continue_loop"
_OFFLINE = ("offline/rules", "offline/scripted")
# Letta's strict clients accept a fixed list of endpoint types.
_ENDPOINT_TYPES = {"openai": "openai", "responses": "openai", "anthropic": "anthropic", "offline": "openai"}


class KeptState(NamedTuple):
    """State that an agent keeps for a user: its memory blocks, and the ids of its messages."""

    blocks: Sequence[Block] = ()
    message_ids: Sequence[str] = ()
    last_run: LastRun | None = None


class SettingsBlock(NamedTuple):
    """The place of a memory block in the agents file."""

    agent_id: str
    block: MemoryBlock


class AgentCatalog:
    """The operator's agents, models and tools, from which clients create their own agents."""

    def __init__(self, configured: AgentSet) -> None:
        self._configured = configured
        self.tools = ToolCatalog(configured)
        self.ids = tuple(configured.agents)
        self.settings_blocks = {
            settings_block_id(bound.agent.id, position): SettingsBlock(bound.agent.id, block)
            for bound in configured.agents.values()
            for position, block in enumerate(bound.agent.memory_blocks)
        }
        """The memory blocks of the operator's agents, by id."""

    def agent(self, agent_id: str, given: Mapping[str, Any], blocks: Sequence[MemoryBlock] = ()) -> Agent:
        """Return the agent that a client describes in Letta's fields, with these memory blocks.

        `given` has all settings of the model under `settings`, see `agent_options`.
        Raises ValidationError, ConfigError, and HttpError 404 for an unknown model or tool, 422 for a setting that the
        provider does not have.
        """
        handle = _handle(given)
        if handle.partition("/")[0] not in self._configured.providers:
            known = ", ".join(model.handle or "" for model in self.models())
            raise HttpError(404, f"NOT_FOUND: Handle {handle} not found, must be one of [{known}]")
        agent = Agent.model_validate(
            {
                "id": agent_id,
                "model": handle,
                "system": given.get("system"),
                "memory_blocks": _writable(blocks, given),
                # Letta's default: the buffer of messages is not cleared, so the agent remembers.
                "stateful": not given.get("message_buffer_autoclear"),
                "requires_approval": _ruled(given, _APPROVAL_RULE),
                "terminal_tools": [name for name in _ruled(given, _TERMINAL_RULE) if not self.tools.is_needless(name)],
                "tools": self.tools.functions(self.tools.wanted(given)),
            }
        )
        if not (settings := given.get("settings")):
            return agent
        bound = self._configured.bind(agent)
        base_url = bound.access.base_url if bound.access else None
        return agent.model_copy(update=options_of(settings, protocol_of(bound) or "offline", base_url))

    def without_effect(self, given: Mapping[str, Any]) -> list[str]:
        """Return the paths in a body of Letta's base tools that agents here do not need."""
        names = [f"tools.{name}" for name in given.get("tools") or () if self.tools.is_needless(name)]
        ruled = [*_ruled(given, _TERMINAL_RULE), *_ruled(given, _CONTINUE_RULE)]
        return [*names, *(f"tool_rules.{name}" for name in ruled if self.tools.is_needless(name))]

    def is_stateful(self, agent_id: str) -> bool:
        """Whether an operator's agent remembers."""
        return self._configured.agents[agent_id].agent.stateful

    def models(self) -> list[Model]:
        """Return the models of the operator's agents, and the built-in offline ones."""
        handles = [bound.agent.model for bound in self._configured.agents.values() if bound.agent.model]
        return [self._model(handle) for handle in dict.fromkeys([*handles, *_OFFLINE])]

    def configured_state(self, agent_id: str, kept: KeptState) -> AgentState:
        """Return an operator's agent as a client sees it, with the state that it keeps for that client."""
        agent = self._configured.agents[agent_id].agent
        return self._state(agent, {"name": agent_id, "system": agent.system}, kept)

    def state(self, stored: StoredAgent, kept: KeptState) -> AgentState:
        """Return a client's agent as the client sees it."""
        state = self._state(Agent.model_validate(stored.spec["agent"]), stored.spec["given"], kept)
        times = {"created_at": stored.created_at, "updated_at": stored.updated_at}
        users = {"created_by_id": stored.user_id, "last_updated_by_id": stored.user_id}
        return AgentState.model_validate({**state.model_dump(), **times, **users})

    def _state(self, agent: Agent, given: Mapping[str, Any], kept: KeptState) -> AgentState:
        model = self._model(agent.model or "offline/function")
        shown = ("description", "metadata", "timezone", "hidden", "project_id")
        settings = given["settings"] if "settings" in given else settings_of_agent(agent)
        config = {name: value for name, value in settings.items() if name not in ("thinking", "enable_thinking")}
        return AgentState(
            id=agent.id,
            name=given.get("name") or agent.id,
            system=given.get("system") or "",
            model=agent.model,
            llm_config=LLMConfig(
                model=model.model,
                model_endpoint_type=model.model_endpoint_type,
                context_window=given.get("context_window_limit") or _CONTEXT_WINDOW,
                provider_name=model.provider_name,
                handle=agent.model,
                **config,
                **({} if agent.enable_thinking is None else {"enable_reasoner": agent.enable_thinking}),
            ),
            model_settings=shown_settings(settings, model.model_endpoint_type) if settings else None,
            response_format=settings.get("response_format"),
            blocks=list(kept.blocks),
            memory=Memory(blocks=list(kept.blocks)),
            tools=[self.tools.shown(name) for name in self.tools.names_of(agent, given)],
            sources=[],
            tags=list(given.get("tags") or ()),
            message_ids=list(kept.message_ids),
            message_buffer_autoclear=not agent.stateful,
            last_run_completion=parse_time(kept.last_run.finished_at) if kept.last_run else None,
            last_run_duration_ms=kept.last_run.duration_ns // 1_000_000 if kept.last_run else None,
            last_stop_reason=StopReason(kept.last_run.stop_reason) if kept.last_run else None,
            tool_rules=[
                *({"type": _TERMINAL_RULE, "tool_name": name} for name in agent.terminal_tools),
                *({"type": _APPROVAL_RULE, "tool_name": name} for name in agent.requires_approval),
                *({"type": _CONTINUE_RULE, "tool_name": name} for name in _ruled(given, _CONTINUE_RULE)),
            ],
            **_given(given, shown),
        )

    def _model(self, handle: str) -> Model:
        provider_name, _, name = handle.partition("/")
        provider = self._configured.providers.get(provider_name)
        protocol = provider.protocol if provider else "offline"
        return Model(
            name=name,
            model=name,
            handle=handle,
            context_window=_CONTEXT_WINDOW,
            max_context_window=_CONTEXT_WINDOW,
            model_endpoint_type=_ENDPOINT_TYPES[protocol],
            provider_type=_ENDPOINT_TYPES[protocol],
            provider_name=provider_name,
            display_name=name,
        )


class AgentLookup:
    """Finds agents by id: the operator's, which all users share, and those that clients created."""

    def __init__(self, configured: AgentSet, reader: ThreadedStore) -> None:
        self.configured, self._reader = configured, reader

    async def ids(self, user_id: str) -> set[str]:
        """Return the ids of the agents that a user may ask."""
        return {*self.configured.agents, *await self._reader.agents.ids(user_id)}

    async def creation_times(self, user_id: str) -> dict[str, str | None]:
        """Return the agents that a user may ask by id, with when they were created; None for the operator's."""
        return {**dict.fromkeys(self.configured.agents), **await self._reader.agents.creation_times(user_id)}

    def known(self, user_id: str) -> dict[str, KnownAgent]:
        """Return the agents that a user may ask, with their models and protocols.  Blocks."""
        configured = self.configured.agents.items()
        agents = {agent_id: KnownAgent(bound.agent.model, protocol_of(bound)) for agent_id, bound in configured}
        return agents | dict(self._reader.sync.agents.views(user_id, self._known))

    def _known(self, agent_id: str, spec: Mapping[str, Any]) -> tuple[str, KnownAgent]:
        model = str(spec["agent"].get("model") or "")
        provider = self.configured.providers.get(model.partition("/")[0])
        return agent_id, KnownAgent(model or None, provider.protocol if provider else None, spec["given"].get("name"))

    def find(self, user_id: str, agent_id: str) -> BoundAgent:
        """Return an agent that a user may ask.  Blocks.  Raises UnknownAgentError."""
        if agent_id in self.configured.agents:
            return self.configured.agents[agent_id]
        stored = self._reader.sync.agents.find(agent_id, user_id)
        if stored is None:
            raise UnknownAgentError(f"Agent with ID {agent_id} not found")
        return self._bind(stored, self._reader.sync.blocks.of_agent(agent_id))

    def snapshot(self, agent_ids: Set[str]) -> dict[str, Any]:
        """Return the settings of agents for a job to keep.  Blocks.  Raises UnknownAgentError if one was deleted."""
        ids = agent_ids - self.configured.agents.keys()
        stored, blocks = map(self._reader.sync.agents.find_of_any_user, ids), self._reader.sync.blocks.of_agents(ids)
        bound = {agent.id: self._bind(agent, blocks.get(agent.id, ())) for agent in stored if agent is not None}
        known = replace(self.configured, agents={**self.configured.agents, **bound})
        if missing := agent_ids - known.agents.keys():
            raise UnknownAgentError(f"Agent with ID {min(missing)} not found")
        return known.snapshot(agent_ids)

    def snapshot_of(self, bound: BoundAgent) -> dict[str, Any]:
        """Return the settings of one agent, whatever is stored under its id."""
        return replace(self.configured, agents={bound.agent.id: bound}).snapshot({bound.agent.id})

    def _bind(self, stored: StoredAgent, blocks: Sequence[StoredBlock]) -> BoundAgent:
        memory_blocks = _writable(run_blocks(blocks), stored.spec["given"])
        agent = Agent.model_validate({**stored.spec["agent"], "memory_blocks": memory_blocks})
        return self.configured.bind(without_idle_rules(agent))


def without_idle_rules(agent: Agent) -> Agent:
    """Return an agent without rules for memory tools, if it has no block that a model can edit now.

    An agent whose rules name a tool that it does not have cannot be built.  The rules stay stored, and hold again with
    the next such block.
    """
    own = {(function_name(tool) or "").replace(":", ".").rpartition(".")[2] for tool in agent.tool_functions}
    if any(not block.read_only for block in agent.memory_blocks):
        return agent
    idle = MEMORY_TOOLS - own
    rules = ("requires_approval", "terminal_tools")
    return agent.model_copy(
        update={rule: tuple(name for name in getattr(agent, rule) if name not in idle) for rule in rules}
    )


def _given(fields: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: fields[name] for name in names if fields.get(name) is not None}


def _writable(blocks: Sequence[MemoryBlock], given: Mapping[str, Any]) -> Sequence[MemoryBlock]:
    """Return the memory blocks.  They are read-only without the base tools, which are the ones that edit them."""
    if given.get("include_base_tools") is False:
        return [block.model_copy(update={"read_only": True}) for block in blocks]
    return blocks


def _ruled(given: Mapping[str, Any], kind: str) -> list[str]:
    """Return the tools that have a rule of this kind."""
    rules = given.get("tool_rules") or ()
    return list(
        dict.fromkeys(str(rule["tool_name"]) for rule in rules if rule.get("type") == kind and "tool_name" in rule)
    )


def _handle(given: Mapping[str, Any]) -> str:
    handle = given.get("model") or handle_of(given.get("llm_config") or {})
    if not handle:
        raise HttpError(400, "INVALID_ARGUMENT: Must specify either model or llm_config in request")
    return str(handle)

"""Agents and their memory blocks as clients see them: read from the store, with the operator's settings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from batchray.config import Agent
from batchray.errors import UnknownAgentError
from batchray.schema import AgentState, Block
from batchray.server.agent_catalog import AgentCatalog, AgentLookup, KeptState
from batchray.server.block_shapes import shown_block, shown_settings_blocks
from batchray.server.errors import HttpError
from batchray.store import LastRun, StoredAgent, StoredBlock, ThreadedStore


class ListedAgent(NamedTuple):
    """The parts of an agent by which lists are filtered and sorted."""

    id: str
    name: str
    tags: tuple[str, ...] = ()
    project_id: str | None = None
    created_by_id: str | None = None
    is_hidden: bool = False
    last_run: LastRun | None = None


class AgentStates:
    """Reads the states of agents and blocks.  Methods block."""

    def __init__(self, catalog: AgentCatalog, agents: AgentLookup, reader: ThreadedStore) -> None:
        self._catalog, self._agents, self._store = catalog, agents, reader.sync
        self.read = reader.call
        """Runs a method on a thread."""

    def agent(self, user_id: str, agent_id: str) -> AgentState:
        """Return an agent.  Raises UnknownAgentError."""
        if agent_id in self._catalog.ids:
            agent = self._agents.configured.agents[agent_id].agent
            return self._catalog.configured_state(agent_id, self._kept(user_id, agent))
        stored = self.stored(user_id, agent_id)
        return self._catalog.state(stored, self._kept(user_id, Agent.model_validate(stored.spec["agent"])))

    def _kept(self, user_id: str, agent: Agent) -> KeptState:
        blocks = self.blocks(user_id, agent.id)
        last_run = self._store.agents.last_runs(user_id, agent.id).get(agent.id)
        places = self._store.conversations.places(user_id, agent.id) if agent.stateful else ()
        return KeptState(blocks, [each for place in places for each in place.message_ids], last_run)

    def listed(self, user_id: str, name: str | None = None) -> list[ListedAgent]:
        """Return all agents that a user may ask, as far as lists need them: the operator's, then their own.

        If `name` is given, the settings of the user's agents with other names are not read; these count as hidden.
        """
        last = self._store.agents.last_runs(user_id)

        def view(agent_id: str, spec: Mapping[str, Any]) -> ListedAgent:
            given = spec["given"]
            return ListedAgent(
                agent_id,
                given.get("name") or agent_id,
                tuple(given.get("tags") or ()),
                given.get("project_id"),
                user_id,
                bool(given.get("hidden")),
                last.get(agent_id),
            )

        of_operator = [ListedAgent(each, each, last_run=last.get(each)) for each in self._catalog.ids]
        own = self._store.agents.views(user_id, view, name)
        if name is not None:
            named = {agent.id: agent for agent in own}
            ids = self._store.agents.ids(user_id)
            own = [named.get(each) or ListedAgent(each, "", is_hidden=True, last_run=last.get(each)) for each in ids]
        return [*of_operator, *own]

    def agents(self, user_id: str, ids: Iterable[str]) -> Iterator[AgentState]:
        """Yield the agents of these ids that exist."""
        for agent_id in ids:
            try:
                yield self.agent(user_id, agent_id)
            except UnknownAgentError:  # deleted a moment ago
                continue

    def stored(self, user_id: str, agent_id: str) -> StoredAgent:
        """Return a client's agent as it is stored.  Raises UnknownAgentError."""
        stored = self._store.agents.find(agent_id, user_id)
        if stored is None:
            raise UnknownAgentError(f"Agent with ID {agent_id} not found")
        return stored

    def has_tool(self, user_id: str, agent_id: str, name: str) -> bool:
        """Return whether an agent's model may call a tool.  Raises UnknownAgentError."""
        agent = self._agents.find(user_id, agent_id).agent
        if self._catalog.tools.is_of_memory(name):
            return any(not block.read_only for block in agent.memory_blocks)
        return name in self._catalog.tools.names_of(agent, {})

    def blocks(self, user_id: str, agent_id: str) -> list[Block]:
        """Return the memory blocks of an agent that exists, in their order in the prompt."""
        if agent_id not in self._catalog.ids:
            return [shown_block(block) for block in self._store.blocks.of_agent(agent_id)]
        agent = self._agents.configured.agents[agent_id].agent
        keeps_memory = agent.stateful and agent.memory_blocks
        return shown_settings_blocks(agent, self._store.conversations.memory(user_id, agent_id) if keeps_memory else {})

    def blocks_of(self, user_id: str, agent_id: str) -> list[Block]:
        """Return the memory blocks of an agent.  Raises UnknownAgentError."""
        if agent_id not in self._catalog.ids:
            self.stored(user_id, agent_id)
        return self.blocks(user_id, agent_id)

    def block(self, user_id: str, block_id: str) -> Block:
        """Return a block, of the user or of an operator's agent.  Raises UnknownBlockError."""
        if (place := self._catalog.settings_blocks.get(block_id)) is None:
            return shown_block(self._store.blocks.find(block_id, user_id))
        return next(block for block in self.blocks(user_id, place.agent_id) if block.id == block_id)

    def own_block(self, user_id: str, block_id: str) -> StoredBlock:
        """Return a block that the user may attach.  Raises UnknownBlockError, and HttpError 403 for an operator's."""
        if (place := self._catalog.settings_blocks.get(block_id)) is not None:
            raise HttpError(403, f"block {block_id} belongs to agent {place.agent_id!r} of the operator")
        return self._store.blocks.find(block_id, user_id)

    def own_blocks(self, user_id: str, agent_id: str, block_ids: Sequence[str] | None) -> list[StoredBlock]:
        """Return the blocks of these ids; None means those of the agent.  Raises as `own_block` does."""
        if block_ids is None:
            return self._store.blocks.of_agent(agent_id)
        return [self.own_block(user_id, block_id) for block_id in dict.fromkeys(block_ids)]

    def block_of(self, user_id: str, agent_id: str, label: str) -> Block:
        """Return the block of an agent that has this label.  Raises UnknownAgentError, and HttpError 404."""
        blocks = {block.label: block for block in self.blocks_of(user_id, agent_id)}
        if label not in blocks:
            known = ", ".join(str(each) for each in blocks) or "none"
            raise HttpError(404, f"agent {agent_id!r} has no block of the label {label[:128]!r}; it has: {known}")
        return blocks[label]

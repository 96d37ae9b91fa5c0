"""The tools that agents made over HTTP may have: the operator's, and those that edit memory blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from batchray.agents.memory import memory_tools
from batchray.agents.tools import FunctionTool, load_tools
from batchray.config import Agent, AgentSet, MemoryBlock, function_name, tool_function, tool_to_data
from batchray.errors import ConfigError
from batchray.schema import Tool
from batchray.server.block_shapes import derived_uuid
from batchray.server.errors import HttpError

# The timeout does not matter: each agent sets its own, and only names and schemas are read here.
_TIMEOUT_S = 1.0

# Letta's base tools that examples give each agent, and that agents here do not need: they answer in text, have their
# whole conversation before them, and edit blocks with `memory_insert` and `memory_replace`.
_NEEDLESS = frozenset(
    {
        *("send_message", "conversation_search", "core_memory_append", "core_memory_replace"),
        *("memory", "memory_apply_patch", "memory_finish_edits", "memory_rethink"),
    }
)


class ToolCatalog:
    """Tools by name and id.

    The operator configures tools as functions: those of the agents in the agents file, and those under its key `tools`.
    Memory tools are there wherever a model can edit a block, whether an agent's tools name them or not.
    """

    def __init__(self, configured: AgentSet) -> None:
        given = [*configured.tools, *(tool for bound in configured.agents.values() for tool in bound.agent.tools)]
        self._tools: dict[str, FunctionTool] = {}
        self._functions: dict[str, str] = {}
        self._entries: dict[str, Any] = {}
        for entry in given:
            function = function_name(tool_function(entry))
            if function is None or function in self._functions.values():
                continue
            [tool] = load_tools([entry], _TIMEOUT_S, configured.import_paths).values()
            if tool.name in self._tools:
                raise ConfigError(f"two tools are named {tool.name!r}: {self._functions[tool.name]} and {function}")
            self._tools[tool.name], self._functions[tool.name] = tool, function
            self._entries[tool.name] = tool_to_data(entry)
        memory = memory_tools([MemoryBlock(label="any")], _TIMEOUT_S)
        self._memory = {name: tool for name, tool in memory.items() if name not in self._tools}
        self._by_id = {tool_id(name): name for name in [*self._memory, *self._tools]}

    def all(self) -> list[Tool]:
        """Return all tools as clients see them; those of memory come first."""
        return [self.shown(name) for name in self._by_id.values()]

    def get(self, wanted_id: str) -> Tool:
        """Return the tool of an id.  Raises HttpError 404."""
        return self.shown(self.name_of(wanted_id))

    def shown(self, name: str) -> Tool:
        """Return a tool as clients see it."""
        tool = self._tools.get(name) or self._memory[name]
        spec = tool.spec
        return Tool(
            id=tool_id(name),
            name=name,
            description=spec.description,
            tool_type="letta_memory_core" if name in self._memory else "custom",
            source_type="python",
            json_schema={"name": name, "description": spec.description, "parameters": dict(spec.parameters)},
            tags=["idempotent"] if tool.idempotent else [],
        )

    def is_of_memory(self, name: str) -> bool:
        """Whether a tool edits memory blocks."""
        return name in self._memory

    def is_needless(self, name: str) -> bool:
        """Whether a tool is one of Letta's that agents here do not need; the operator may have one of that name."""
        return name in _NEEDLESS and name not in self._tools

    def wanted(self, given: Mapping[str, Any]) -> list[str]:
        """Return the names of the tools that a client gives an agent, without those that it does not need.

        Raises HttpError 404 for an unknown one.
        """
        given_names = [name for name in given.get("tools") or () if not self.is_needless(name)]
        names = [*given_names, *map(self.name_of, given.get("tool_ids") or ())]
        for name in names:
            if name not in self._tools and name not in self._memory:
                known = ", ".join([*self._tools]) or "none"
                raise HttpError(404, f"NOT_FOUND: Tool {name} not found; the operator has configured: {known}")
        return list(dict.fromkeys(names))

    def functions(self, names: Iterable[str]) -> list[Any]:
        """Return the functions of tools, as JSON that `Agent.tools` takes; memory tools have none."""
        return [self._entries[name] for name in names if name in self._entries]

    def names_of(self, agent: Agent, given: Mapping[str, Any]) -> list[str]:
        """Return the names of an agent's tools, with the memory tools that it was given by name or id."""
        by_function = {function: name for name, function in self._functions.items()}
        functions = map(function_name, agent.tool_functions)
        own = [by_function[function] for function in functions if function in by_function]
        ids = given.get("tool_ids") or ()
        return [*own, *(name for name in self._memory if name in (given.get("tools") or ()) or tool_id(name) in ids)]

    def name_of(self, wanted_id: str) -> str:
        """Return the name of the tool of an id.  Raises HttpError 404."""
        if wanted_id not in self._by_id:
            raise HttpError(404, f"NOT_FOUND: Tool with id {wanted_id} not found")
        return self._by_id[wanted_id]


def tool_id(name: str) -> str:
    """Return a tool's id, derived from its name, so that all servers agree on it."""
    return f"tool-{derived_uuid(name)}"

"""The tools of one run: the agent's own, the memory tools, and the caller's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from batchray.agents.memory import RunMemory
from batchray.agents.tools import FunctionTool
from batchray.config import Agent
from batchray.errors import ConfigError
from batchray.models import ToolSpec
from batchray.schema import ClientTool, ToolCall


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The tools that a model may call.

    Calls to tools in `waiting` wait for the caller, who runs those in `client_side`.  A success of one in `terminal`
    ends the run.
    """

    tools: Mapping[str, FunctionTool] = field(default_factory=dict)
    specs: tuple[ToolSpec, ...] = ()
    waiting: Set[str] = frozenset()
    terminal: Set[str] = frozenset()
    client_side: Set[str] = frozenset()

    @classmethod
    def of(cls, agent: Agent, tools: Mapping[str, FunctionTool]) -> Toolbox:
        """Return an agent's tools.  Raises ConfigError if its settings name one that it does not have."""
        for option, names in (("requires_approval", agent.requires_approval), ("terminal_tools", agent.terminal_tools)):
            if unknown := set(names) - tools.keys():
                known = ", ".join(tools) or "none"
                raise ConfigError(f"{option} names {min(unknown)!r}, which is not a tool of the agent; it has: {known}")
        if agent.requires_tool and not tools:
            raise ConfigError("requires_tool needs tools")
        specs = tuple(tool.spec for tool in tools.values())
        return cls(tools, specs, frozenset(agent.requires_approval), frozenset(agent.terminal_tools))

    def with_memory(self, memory: RunMemory, unbound_tools: Mapping[str, FunctionTool]) -> Toolbox:
        """Return these tools with the memory tools bound to this run's memory."""
        return replace(self, tools={**self.tools, **memory.tools(unbound_tools)})

    def with_client_tools(self, given: Sequence[ClientTool]) -> Toolbox:
        """Return these tools and the caller's; of two with one name, the caller's wins."""
        client_side = {tool.name: _spec(tool) for tool in given}
        own = tuple(spec for spec in self.specs if spec.name not in client_side)
        return replace(
            self,
            specs=(*own, *client_side.values()),
            waiting=self.waiting | client_side.keys(),
            client_side=frozenset(client_side),
        )

    def is_idempotent(self, name: str) -> bool:
        """Whether a call of this tool may be repeated without harm."""
        tool = self.tools.get(name)
        return tool is not None and tool.idempotent

    def are_idempotent(self, calls: Iterable[ToolCall]) -> bool:
        """Whether all these calls may be repeated without harm."""
        return all(self.is_idempotent(call.name) for call in calls)

    @property
    def names(self) -> str:
        """The tools' names as text, for a model that called an unknown one."""
        return ", ".join(spec.name for spec in self.specs) or "none"


def _spec(tool: ClientTool) -> ToolSpec:
    return ToolSpec(tool.name, tool.description or "", tool.parameters or {"type": "object", "properties": {}})

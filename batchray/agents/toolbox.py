"""The tools of one run: the agent's own, those that edit its memory, and those on the caller's side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from batchray.agents.memory import RunMemory
from batchray.agents.tools import FunctionTool
from batchray.config import Agent
from batchray.errors import ConfigError
from batchray.models import ToolSpec
from batchray.schema import ClientTool


@dataclass(frozen=True, slots=True)
class Toolbox:
    """What a model may call.  Calls to tools in `waiting` wait for the caller, who runs those in `foreign` himself."""

    tools: Mapping[str, FunctionTool] = field(default_factory=dict)
    specs: tuple[ToolSpec, ...] = ()
    waiting: Set[str] = frozenset()
    terminal: Set[str] = frozenset()
    foreign: Set[str] = frozenset()

    @classmethod
    def of(cls, agent: Agent, tools: Mapping[str, FunctionTool]) -> Toolbox:
        """Return an agent's tools.  Raises ConfigError where its settings name one that it has not."""
        for option, names in (("requires_approval", agent.requires_approval), ("terminal_tools", agent.terminal_tools)):
            if unknown := set(names) - tools.keys():
                known = ", ".join(tools) or "none"
                raise ConfigError(f"{option} names {min(unknown)!r}, which is no tool of the agent; it has: {known}")
        if agent.requires_tool and not tools:
            raise ConfigError("requires_tool needs tools")
        specs = tuple(tool.spec for tool in tools.values())
        return cls(tools, specs, frozenset(agent.requires_approval), frozenset(agent.terminal_tools))

    def with_memory(self, memory: RunMemory, made: Mapping[str, FunctionTool]) -> Toolbox:
        """Return these tools, and those that edit the memory of this run."""
        return replace(self, tools={**self.tools, **memory.tools(made)})

    def with_client_tools(self, given: Sequence[ClientTool]) -> Toolbox:
        """Return these tools, and those of the caller; where both have one of a name, the caller's counts."""
        foreign = {tool.name: _spec(tool) for tool in given}
        own = tuple(spec for spec in self.specs if spec.name not in foreign)
        return replace(
            self,
            specs=(*own, *foreign.values()),
            waiting=self.waiting | foreign.keys(),
            foreign=frozenset(foreign),
        )

    @property
    def names(self) -> str:
        """What a model that asked for something else may call."""
        return ", ".join(spec.name for spec in self.specs) or "none"


def _spec(tool: ClientTool) -> ToolSpec:
    return ToolSpec(tool.name, tool.description or "", tool.parameters or {"type": "object", "properties": {}})

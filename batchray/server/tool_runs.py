"""One call of a tool without a model: a run of the agent with a script that asks for just this call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import orjson
from pydantic import Field

from batchray.config import Agent, BoundAgent
from batchray.schema import AgentState
from batchray.schema.base import WireModel
from batchray.server.agent_catalog import AgentLookup
from batchray.store import StoredResult

# The settings of an agent that the call of one of its tools depends on.
_KEPT = ("id", "tools", "memory_blocks", "tool_timeout_s", "deadline_s", "placement", "num_cpus", "num_gpus")


class ToolExecutionResult(WireModel):
    """The result of one call of a tool, and the agent after it."""

    status: Literal["success", "error"]
    func_return: str | None = None
    stdout: list[str] = Field(default_factory=list)
    stderr: list[str] = Field(default_factory=list)
    agent_state: AgentState | None = None
    sandbox_config_fingerprint: str | None = None


def tool_agent(agents: AgentLookup, user_id: str, agent_id: str, name: str, args: Mapping[str, Any]) -> BoundAgent:
    """Return the agent, with a script instead of its model that calls a tool once.  Blocks."""
    agent = agents.find(user_id, agent_id).agent
    kept = {field: getattr(agent, field) for field in _KEPT}
    turn = {"tool_calls": [{"name": name, "arguments": dict(args)}]}
    scripted = Agent(**kept, model="offline/scripted", script=(turn,), terminal_tools=(name,), max_steps=1)
    return agents.configured.bind(scripted)


def execution_result(result: StoredResult, state: AgentState) -> ToolExecutionResult:
    """Return a run's result as that of its one tool call."""
    returns = [each for message in orjson.loads(result.messages) for each in message.get("tool_returns") or ()]
    if not returns:
        reason = result.error["message"] if result.error else "the tool was not called"
        return ToolExecutionResult(status="error", stderr=[reason], agent_state=state)
    last = returns[-1]
    return ToolExecutionResult(
        status=last["status"],
        func_return=last.get("func_response"),
        stdout=last.get("stdout") or [],
        stderr=last.get("stderr") or [],
        agent_state=state,
    )

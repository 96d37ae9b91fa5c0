"""Stored requests with their answers as conversations, and the tools that their models had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter

from batchray.agents.base import input_messages
from batchray.agents.memory import memory_tools
from batchray.agents.toolbox import Toolbox
from batchray.agents.tools import TOOL_SPECS, load_tools
from batchray.config.agents import MemoryBlock
from batchray.errors import ConfigError
from batchray.models import ToolSpec
from batchray.schema import AgentRequest, Message
from batchray.store import JobRecord, StoredResult

_MESSAGES = TypeAdapter(list[Message])
_NO_TIME = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A request's own messages, and those of its run.  `system` is the prompt without the agent's memory."""

    request: AgentRequest
    system: str | None
    inputs: Sequence[Message]
    outputs: Sequence[Message]
    tools: Sequence[ToolSpec]


class ConversationReader:
    """Reads the conversations of a job.  `agents` is its snapshot of its agents.

    The description of a tool is in its code, which is imported here.  With `needs_tools` a tool that cannot be imported
    is an error, else it is left out.
    """

    def __init__(self, job: JobRecord, agents: Mapping[str, Any], *, needs_tools: bool) -> None:
        self._job, self._agents, self._needs_tools = job, agents, needs_tools
        self._specs: dict[str, Sequence[ToolSpec]] = {}

    def of(self, stored: StoredResult) -> Conversation:
        """Return the conversation of a result.  Raises ConfigError for a tool that cannot be imported."""
        request = AgentRequest.model_validate_json(stored.request)
        settings = self._agents.get(stored.agent_id, {}).get("agent", {})
        asked = request.override_system
        tools = Toolbox(specs=tuple(self._tools(stored.agent_id))).with_client_tools(request.client_tools or ())
        return Conversation(
            request,
            settings.get("system") if asked is None else asked,
            input_messages(self._job.id, stored.index, request, _NO_TIME),
            [_without_output(message) for message in _MESSAGES.validate_json(stored.messages)],
            tools.specs,
        )

    def _tools(self, agent_id: str) -> Sequence[ToolSpec]:
        if (found := self._specs.get(agent_id)) is None:
            found = self._specs[agent_id] = self._load(agent_id)
        return found

    def _load(self, agent_id: str) -> Sequence[ToolSpec]:
        kept = self._agents.get(agent_id)
        if kept is None:
            return ()
        settings = kept["agent"]
        timeout_s = settings.get("tool_timeout_s", 0.0)
        blocks = [MemoryBlock.model_validate(each) for each in settings.get("memory_blocks", ())]
        specs = [tool.spec for tool in memory_tools(blocks, timeout_s).values()]
        specs += [ToolSpec(**spec) for spec in kept.get(TOOL_SPECS, ())]
        entries = [each["function"] if isinstance(each, dict) else each for each in settings.get("tools", ())]
        try:
            if None in entries and TOOL_SPECS not in kept:  # a job of an older version
                raise ConfigError("a tool is a function that cannot be found by name")
            tools = load_tools([name for name in entries if name is not None], timeout_s, kept["import_paths"])
        except ConfigError as error:
            if self._needs_tools:
                raise ConfigError(f"agent {agent_id!r}: {error.reason}; its code describes the tools") from None
            return specs
        return [*(tool.spec for tool in tools.values()), *specs]


def _without_output(message: Message) -> Message:
    """Return a message without what the code of a function agent has written."""
    if message.role != "assistant" or not message.tool_returns:
        return message
    return message.model_copy(update={"tool_returns": []})

"""Messages of a conversation as batchray stores them: Letta's internal `Message`.

Source: Letta server 0.16.8, `Message`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from batchray.schema.base import OpenModel, UtcDatetime, WireModel
from batchray.schema.content import (
    ContentPart,
    TextContent,
)
from batchray.schema.requests import ApprovalReturn

MessageRole = Literal["assistant", "user", "tool", "function", "system", "approval", "summary"]
"""Who a message is from.  batchray emits neither `function` nor `summary`."""


class ToolCallFunction(WireModel):
    """The function that a tool call names.  `arguments` is JSON text."""

    name: str
    arguments: str


class ToolCall(WireModel):
    """A tool call that a model made."""

    id: str
    type: Literal["function"] = "function"
    function: ToolCallFunction

    @classmethod
    def of(cls, id: str, name: str, arguments: str) -> ToolCall:
        """Return the call of tool `name`; `arguments` is JSON text."""
        return cls(id=id, function=ToolCallFunction(name=name, arguments=arguments))

    @property
    def name(self) -> str:
        """The tool's name."""
        return self.function.name

    @property
    def arguments(self) -> str:
        """The arguments, as the JSON text that the model wrote."""
        return self.function.arguments


class MessageToolReturn(WireModel):
    """The result of one tool call, inside a `Message`.  `func_response` is text."""

    tool_call_id: str | None = None
    status: Literal["success", "error"]
    stdout: list[str] | None = None
    stderr: list[str] | None = None
    func_response: str | None = None


class Message(OpenModel):
    """A message of an agent's conversation: Letta's internal Message (in its SDK `InternalMessage`).

    `created_at` is required, because it becomes the public `date`.  `provider_items` is a further field that only
    replies have whose provider wants them back as they came; it is written only if it is set.
    """

    id: str
    role: MessageRole
    agent_id: str | None = None
    model: str | None = None
    content: list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    step_id: str | None = None
    run_id: str | None = None
    otid: str | None = None
    tool_returns: list[MessageToolReturn] | None = Field(default_factory=list)
    group_id: str | None = None
    sender_id: str | None = None
    batch_item_id: str | None = None
    conversation_id: str | None = None
    is_err: bool | None = None
    approval_request_id: str | None = None
    approve: bool | None = None
    denial_reason: str | None = None
    approvals: list[ApprovalReturn | MessageToolReturn] | None = Field(default_factory=list)
    created_at: UtcDatetime
    updated_at: UtcDatetime | None = None
    created_by_id: str | None = None
    last_updated_by_id: str | None = None

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.content or () if isinstance(part, TextContent))

    @property
    def provider_items(self) -> list[dict[str, Any]]:
        """The reply in the JSON of its provider's protocol, call ids as in `tool_calls`; empty if that is not kept."""
        return (self.model_extra or {}).get("provider_items") or []

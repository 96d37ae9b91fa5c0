"""Messages as Letta's clients see them: the union `LettaMessage`.

Source: Letta server 0.16.8, and its recorded answers.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from batchray.schema.base import UtcSecond, WireModel
from batchray.schema.content import (
    Content,
    TextContent,
)
from batchray.schema.jobs import StopReason
from batchray.schema.requests import Approval, ToolReturn


class LettaMessageBase(WireModel):
    """Fields that the LettaMessages of a conversation share.  `seq_id` counts within a stored stream."""

    id: str
    date: UtcSecond
    name: str | None = None
    message_type: str
    otid: str | None = None
    sender_id: str | None = None
    step_id: str | None = None
    is_err: bool | None = None
    seq_id: int | None = None
    run_id: str | None = None


class SystemMessage(LettaMessageBase):
    """A system message."""

    message_type: Literal["system_message"] = "system_message"
    content: str


class UserMessage(LettaMessageBase):
    """A message from the user: text, or parts."""

    message_type: Literal["user_message"] = "user_message"
    content: Content


class AssistantMessage(LettaMessageBase):
    """Text from the agent."""

    message_type: Literal["assistant_message"] = "assistant_message"
    content: str | list[TextContent]


class ReasoningMessage(LettaMessageBase):
    """The model's reasoning."""

    message_type: Literal["reasoning_message"] = "reasoning_message"
    source: Literal["reasoner_model", "non_reasoner_model"] = "non_reasoner_model"
    reasoning: str
    signature: str | None = None


class HiddenReasoningMessage(LettaMessageBase):
    """Reasoning that took place but is not shown."""

    message_type: Literal["hidden_reasoning_message"] = "hidden_reasoning_message"
    state: Literal["redacted", "omitted"]
    hidden_reasoning: str | None = None


class LettaToolCall(WireModel):
    """A tool call in a LettaMessage.  Fields are None only in the deltas of a token stream."""

    name: str | None = None
    arguments: str | None = None
    tool_call_id: str | None = None


class ToolCallMessage(LettaMessageBase):
    """The tool calls of one step.  `tool_call` is deprecated: the first of `tool_calls`."""

    message_type: Literal["tool_call_message"] = "tool_call_message"
    tool_call: LettaToolCall
    tool_calls: list[LettaToolCall] | LettaToolCall | None = None


class ToolReturnMessage(LettaMessageBase):
    """Tool returns.  The fields other than `tool_returns` are deprecated: they repeat its first entry."""

    message_type: Literal["tool_return_message"] = "tool_return_message"
    tool_return: str
    status: Literal["success", "error"]
    tool_call_id: str
    stdout: list[str] | None = None
    stderr: list[str] | None = None
    tool_returns: list[ToolReturn] | None = None


class ApprovalRequestMessage(LettaMessageBase):
    """Tool calls that wait for the caller.  `tool_call` is deprecated: the first of `tool_calls`."""

    message_type: Literal["approval_request_message"] = "approval_request_message"
    tool_call: LettaToolCall
    tool_calls: list[LettaToolCall] | LettaToolCall | None = None


class ApprovalResponseMessage(LettaMessageBase):
    """The caller's answers to tool calls.  The fields other than `approvals` are deprecated."""

    message_type: Literal["approval_response_message"] = "approval_response_message"
    approvals: list[Approval] | None = None
    approve: bool | None = None
    approval_request_id: str | None = None
    reason: str | None = None


class CompactionStats(WireModel):
    """The effect of a compaction of the conversation, in tokens and messages."""

    trigger: str
    context_tokens_before: int | None = None
    context_tokens_after: int | None = None
    context_window: int
    messages_count_before: int
    messages_count_after: int


class SummaryMessage(LettaMessageBase):
    """A summary that replaces older messages.  Not emitted by batchray; older clients cannot read it."""

    message_type: Literal["summary_message"] = "summary_message"
    summary: str
    compaction_stats: CompactionStats | None = None


class EventMessage(LettaMessageBase):
    """An event in the conversation.  Not emitted by batchray; older clients cannot read it."""

    message_type: Literal["event_message"] = "event_message"
    event_type: Literal["compaction"]
    event_data: dict[str, Any]


class Ping(LettaMessageBase):
    """A keep-alive in a stream."""

    message_type: Literal["ping"] = "ping"


class StopReasonMessage(WireModel):
    """Why the agent stopped, in a stream or a LettaResponse."""

    message_type: Literal["stop_reason"] = "stop_reason"
    stop_reason: StopReason


class UsageStatistics(WireModel):
    """The tokens used by a run, in a stream or a LettaResponse."""

    message_type: Literal["usage_statistics"] = "usage_statistics"
    completion_tokens: int = 0
    prompt_tokens: int = 0
    total_tokens: int = 0
    step_count: int = 0
    run_ids: list[str] | None = None
    cached_input_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    context_tokens: int | None = None


class ErrorMessage(WireModel):
    """The error that ended a stream."""

    message_type: Literal["error_message"] = "error_message"
    run_id: str | None = None
    error_type: str
    message: str
    detail: str | None = None
    seq_id: int | None = None


LettaMessage = Annotated[
    SystemMessage
    | UserMessage
    | AssistantMessage
    | ReasoningMessage
    | HiddenReasoningMessage
    | ToolCallMessage
    | ToolReturnMessage
    | ApprovalRequestMessage
    | ApprovalResponseMessage
    | SummaryMessage
    | EventMessage
    | Ping
    | StopReasonMessage
    | UsageStatistics
    | ErrorMessage,
    Field(discriminator="message_type"),
]
"""A message as Letta's clients see it, identified by `message_type`.  The last four occur in streams only."""

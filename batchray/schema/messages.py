"""Messages as they come back: Letta's internal `Message`, its public LettaMessages, and the way from one to the other.

Source: Letta server 0.16.8, `Message` and `to_letta_messages`, and its recorded answers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import groupby
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field

from batchray.schema.base import UtcDatetime, UtcSecond, WireModel
from batchray.schema.content import (
    Content,
    ContentPart,
    OmittedReasoningContent,
    ReasoningContent,
    RedactedReasoningContent,
    SummarizedReasoningContent,
    TextContent,
)
from batchray.schema.ids import MAX_OTIDS_PER_MESSAGE, otid
from batchray.schema.jobs import StopReason
from batchray.schema.requests import Approval, ApprovalReturn, MessageType, ToolReturn

MessageRole = Literal["assistant", "user", "tool", "function", "system", "approval", "summary"]
"""Who a message is from.  batchray emits neither `function` nor `summary`."""


class ToolCallFunction(WireModel):
    """The function that a tool call names.  `arguments` is JSON text."""

    name: str
    arguments: str


class ToolCall(WireModel):
    """A tool call, as a model asked for it."""

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
    """What one tool call gave back, inside a `Message`.  `func_response` is plain text."""

    tool_call_id: str | None = None
    status: Literal["success", "error"]
    stdout: list[str] | None = None
    stderr: list[str] | None = None
    func_response: str | None = None


class Message(WireModel):
    """A message of an agent's conversation: Letta's internal Message (in its SDK `InternalMessage`).

    `created_at` is required, because the public `date` is made of it.
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


class LettaMessageBase(WireModel):
    """What the LettaMessages of a conversation have in common.  `seq_id` counts within a stored stream."""

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
    """What the agent said."""

    message_type: Literal["assistant_message"] = "assistant_message"
    content: str | list[TextContent]


class ReasoningMessage(LettaMessageBase):
    """What the model thought."""

    message_type: Literal["reasoning_message"] = "reasoning_message"
    source: Literal["reasoner_model", "non_reasoner_model"] = "non_reasoner_model"
    reasoning: str
    signature: str | None = None


class HiddenReasoningMessage(LettaMessageBase):
    """That the model thought, where its thoughts are not given."""

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
    """What tools gave back.  The fields beside `tool_returns` are deprecated: those of its first entry."""

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
    """The caller's answers to tool calls.  The fields beside `approvals` are deprecated."""

    message_type: Literal["approval_response_message"] = "approval_response_message"
    approvals: list[Approval] | None = None
    approve: bool | None = None
    approval_request_id: str | None = None
    reason: str | None = None


class CompactionStats(WireModel):
    """What a compaction of the conversation did, in tokens and messages."""

    trigger: str
    context_tokens_before: int | None = None
    context_tokens_after: int | None = None
    context_window: int
    messages_count_before: int
    messages_count_after: int


class SummaryMessage(LettaMessageBase):
    """The summary that took the place of older messages.  Not emitted by batchray; older clients cannot read it."""

    message_type: Literal["summary_message"] = "summary_message"
    summary: str
    compaction_stats: CompactionStats | None = None


class EventMessage(LettaMessageBase):
    """Something that happened to the conversation.  Not emitted by batchray; older clients cannot read it."""

    message_type: Literal["event_message"] = "event_message"
    event_type: Literal["compaction"]
    event_data: dict[str, Any]


class Ping(LettaMessageBase):
    """A sign of life in a stream."""

    message_type: Literal["ping"] = "ping"


class StopReasonMessage(WireModel):
    """Why the agent stopped, in a stream or a LettaResponse."""

    message_type: Literal["stop_reason"] = "stop_reason"
    stop_reason: StopReason


class UsageStatistics(WireModel):
    """What a run cost, in a stream or a LettaResponse."""

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
    """Why a stream broke off."""

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
"""A message as Letta's clients see it, told apart by `message_type`.  The last four occur in streams only."""

_Draft = tuple[type[LettaMessageBase], dict[str, Any]]


def letta_messages(
    message: Message, assistant_message_tool: str | None = None, spoken_kwarg: str = "message"
) -> list[LettaMessage]:
    """Return `message` as clients see it: none, one or several LettaMessages that share its id.

    Parts keep their order, adjacent texts are one message, and tool calls come last.  Text is taken as it is: the JSON
    envelopes of older Letta agents are not unwrapped.  A call to `assistant_message_tool` becomes
    an assistant message with the text of its argument `spoken_kwarg`; tool returns stay.
    """
    common = {
        "id": message.id,
        "date": message.created_at,
        "name": message.name,
        "sender_id": message.sender_id,
        "step_id": message.step_id,
        "is_err": message.is_err,
        "run_id": message.run_id,
    }
    drafts = enumerate(_drafts(message, assistant_message_tool, spoken_kwarg))
    return [kind(**common, otid=_otid(message, k), **fields) for k, (kind, fields) in drafts]  # type: ignore[misc]


def of_types(messages: Iterable[LettaMessage], include: Collection[MessageType] | None) -> list[LettaMessage]:
    """Return the messages that a request's `include_return_message_types` asks for; None asks for all."""
    if include is None:
        return list(messages)
    return [message for message in messages if message.message_type in include]


def _otid(message: Message, k: int) -> str | None:
    if k == 0 and message.otid is not None:
        return message.otid  # the caller's own, for an input message
    return otid(message.id, k) if k < MAX_OTIDS_PER_MESSAGE else None


def _drafts(message: Message, tool_name: str | None, tool_kwarg: str) -> Iterator[_Draft]:
    match message.role:
        case "assistant":
            yield from _content_drafts(message)
            yield from _call_drafts(message.tool_calls or (), tool_name, tool_kwarg)
        case "approval" if message.tool_calls:
            yield from _content_drafts(message)
            yield ApprovalRequestMessage, _calls_fields(message.tool_calls)
        case "approval":
            yield ApprovalResponseMessage, _approval_fields(message)
        case "tool" | "function":
            if message.tool_returns:
                yield ToolReturnMessage, _return_fields(message.tool_returns)
        case "user":
            yield UserMessage, {"content": _plain(message.content or [])}
        case "system":
            yield SystemMessage, {"content": message.text}
        case "summary":
            yield SummaryMessage, {"summary": message.text}


def _plain(content: list[ContentPart]) -> Content:
    return content[0].text if len(content) == 1 and isinstance(content[0], TextContent) else content


def _content_drafts(message: Message) -> Iterator[_Draft]:
    for kind, parts in groupby(message.content or (), key=type):
        if kind is not TextContent:
            yield from filter(None, map(_reasoning_draft, parts))
        elif text := "".join(part.text for part in parts if isinstance(part, TextContent)):
            yield AssistantMessage, {"content": text}


def _reasoning_draft(part: ContentPart) -> _Draft | None:
    match part:
        case ReasoningContent():
            source = "reasoner_model" if part.is_native else "non_reasoner_model"
            return ReasoningMessage, {"source": source, "reasoning": part.reasoning, "signature": part.signature}
        case SummarizedReasoningContent():
            text = "\n\n".join(paragraph.text for paragraph in part.summary)
            fields = {"source": "reasoner_model", "reasoning": text, "signature": part.encrypted_content}
            return ReasoningMessage, fields
        case RedactedReasoningContent():
            return HiddenReasoningMessage, {"state": "redacted", "hidden_reasoning": part.data}
        case OmittedReasoningContent():
            return HiddenReasoningMessage, {"state": "omitted"}
        case _:
            return None  # tool parts repeat `tool_calls`, and no LettaMessage of an agent shows an image


def _call_drafts(calls: Iterable[ToolCall], tool_name: str | None, tool_kwarg: str) -> Iterator[_Draft]:
    spoken = ((_spoken(call, tool_kwarg) if call.name == tool_name else None, call) for call in calls)
    for is_spoken, group in groupby(spoken, key=lambda pair: pair[0] is not None):
        if is_spoken:
            yield from ((AssistantMessage, {"content": text}) for text, _ in group)
        else:
            yield ToolCallMessage, _calls_fields([call for _, call in group])


def is_spoken(call: ToolCall, kwarg: str) -> bool:
    """Whether the argument `kwarg` of a call is there and is text."""
    return _spoken(call, kwarg) is not None


def _spoken(call: ToolCall, kwarg: str) -> str | None:
    try:
        arguments = orjson.loads(call.arguments)
    except orjson.JSONDecodeError:
        return None  # what cannot be read stays a tool call
    text = arguments.get(kwarg) if isinstance(arguments, dict) else None
    return text if isinstance(text, str) else None


def _calls_fields(calls: list[ToolCall]) -> dict[str, Any]:
    views = [LettaToolCall(name=call.name, arguments=call.arguments, tool_call_id=call.id) for call in calls]
    return {"tool_call": views[0], "tool_calls": views}


def _return_fields(returns: list[MessageToolReturn]) -> dict[str, Any]:
    views = [_tool_return(returned) for returned in returns]
    return {**views[0].model_dump(exclude={"type"}), "tool_returns": views}


def _tool_return(returned: MessageToolReturn) -> ToolReturn:
    return ToolReturn(
        tool_return=returned.func_response or "",
        status=returned.status,
        tool_call_id=returned.tool_call_id or "",
        stdout=returned.stdout,
        stderr=returned.stderr,
    )


def _approval_fields(message: Message) -> dict[str, Any]:
    answers = message.approvals or ()
    return {
        "approvals": [_tool_return(one) if isinstance(one, MessageToolReturn) else one for one in answers],
        "approve": message.approve,
        "approval_request_id": message.approval_request_id,
        "reason": message.denial_reason,
    }

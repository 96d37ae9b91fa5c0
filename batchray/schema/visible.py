"""Conversion of stored messages to the LettaMessages that a request's caller sees.

Source: Letta server 0.16.8, `to_letta_messages`, and its recorded answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby
from typing import Any

import orjson
from pydantic import BaseModel

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
from batchray.schema.letta_messages import (
    ApprovalRequestMessage,
    ApprovalResponseMessage,
    AssistantMessage,
    HiddenReasoningMessage,
    LettaMessage,
    LettaMessageBase,
    LettaToolCall,
    ReasoningMessage,
    SummaryMessage,
    SystemMessage,
    ToolCallMessage,
    ToolReturnMessage,
    UserMessage,
)
from batchray.schema.messages import Message, MessageToolReturn, ToolCall
from batchray.schema.requests import LettaRequest, ToolReturn

_Draft = tuple[type[LettaMessageBase], dict[str, Any], dict[str, Any]]
"""A LettaMessage to be made: its kind, the fields that all kinds have, and those of the kind."""


def visible_messages(messages: Iterable[Message], request: LettaRequest) -> list[LettaMessage]:
    """Return messages as LettaMessages of the types that the request asks for.

    If the request names a tool whose calls become assistant messages, the returns of those calls are left out.
    """
    return [_built(draft) for draft in _visible_drafts(messages, request)]


def visible_json(messages: Iterable[Message], request: LettaRequest) -> list[dict[str, Any]]:
    """Return the visible messages as `model_dump(mode="json")` writes them, in a quarter of the time of the models."""
    return [_dumped(draft) for draft in _visible_drafts(messages, request)]


def _visible_drafts(messages: Iterable[Message], request: LettaRequest) -> Iterator[_Draft]:
    tool_name, kwarg = request.assistant_message_tool, request.assistant_message_tool_kwarg
    include = request.include_return_message_types
    if tool_name is not None:
        messages = _without_said(tool_name, kwarg, list(messages))
    for message in messages:
        for draft in _whole_drafts(message, tool_name, kwarg):
            if include is None or layout(draft[0])["message_type"] in include:
                yield draft


def _without_said(tool_name: str, kwarg: str, messages: Sequence[Message]) -> Iterator[Message]:
    """Return messages without the returns of calls that become assistant messages."""
    # By step too: some models number the calls of each step from the start again.
    said = {
        (message.step_id, call.id)
        for message in messages
        for call in message.tool_calls or ()
        if call.name == tool_name and has_text_argument(call, kwarg)
    }
    return (_without_returns(message, said) for message in messages)


def _without_returns(message: Message, said: set[tuple[str | None, str]]) -> Message:
    returns = message.tool_returns or []
    kept = [each for each in returns if (message.step_id, each.tool_call_id) not in said]
    return message if len(kept) == len(returns) else message.model_copy(update={"tool_returns": kept})


def letta_messages(
    message: Message, assistant_message_tool: str | None = None, text_kwarg: str = "message"
) -> list[LettaMessage]:
    """Return `message` as clients see it: zero or more LettaMessages that share its id.

    Parts keep their order, adjacent texts become one message, and tool calls come last.  Text is not interpreted: the
    JSON envelopes of older Letta agents are not unwrapped.  A call to `assistant_message_tool` becomes an assistant
    message with the text of its argument `text_kwarg`; its tool return stays.
    """
    return [_built(draft) for draft in _whole_drafts(message, assistant_message_tool, text_kwarg)]


_OwnFields = tuple[type[LettaMessageBase], dict[str, Any]]


def _whole_drafts(message: Message, tool_name: str | None, tool_kwarg: str) -> Iterator[_Draft]:
    common = {
        "id": message.id,
        "date": message.created_at,
        "name": message.name,
        "sender_id": message.sender_id,
        "step_id": message.step_id,
        "is_err": message.is_err,
        "run_id": message.run_id,
    }
    for k, (kind, fields) in enumerate(_drafts(message, tool_name, tool_kwarg)):
        yield kind, {**common, "otid": _otid(message, k)}, fields


def _built(draft: _Draft) -> LettaMessage:
    kind, common, fields = draft
    return kind(**common, **fields)  # type: ignore[return-value]


def _dumped(draft: _Draft) -> dict[str, Any]:
    kind, common, fields = draft
    dumped = {**layout(kind), **common, "date": common["date"].isoformat(timespec="seconds")}
    for name, value in fields.items():
        dumped[name] = _as_json(value)
    return dumped


def _as_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_json(each) for each in value]
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


@cache
def layout(kind: type[LettaMessageBase]) -> dict[str, Any]:
    """Return the fields of a kind of message in their order, with their defaults."""
    return {name: field.default for name, field in kind.model_fields.items()}


def _otid(message: Message, k: int) -> str | None:
    if k == 0 and message.otid is not None:
        return message.otid  # the caller's value, for an input message
    return otid(message.id, k) if k < MAX_OTIDS_PER_MESSAGE else None


def _drafts(message: Message, tool_name: str | None, tool_kwarg: str) -> Iterator[_OwnFields]:
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
            yield UserMessage, {"content": _unwrapped_text(message.content or [])}
        case "system":
            yield SystemMessage, {"content": message.text}
        case "summary":
            yield SummaryMessage, {"summary": message.text}


def _unwrapped_text(content: list[ContentPart]) -> Content:
    return content[0].text if len(content) == 1 and isinstance(content[0], TextContent) else content


def _content_drafts(message: Message) -> Iterator[_OwnFields]:
    for kind, parts in groupby(message.content or (), key=type):
        if kind is not TextContent:
            yield from filter(None, map(_reasoning_draft, parts))
        elif text := "".join(part.text for part in parts if isinstance(part, TextContent)):
            yield AssistantMessage, {"content": text}


def _reasoning_draft(part: ContentPart) -> _OwnFields | None:
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
            return None  # tool parts repeat `tool_calls`, and no LettaMessage from an agent can hold an image


def _call_drafts(calls: Iterable[ToolCall], tool_name: str | None, tool_kwarg: str) -> Iterator[_OwnFields]:
    with_texts = ((_text_argument(call, tool_kwarg) if call.name == tool_name else None, call) for call in calls)
    for has_text, group in groupby(with_texts, key=lambda pair: pair[0] is not None):
        if has_text:
            yield from ((AssistantMessage, {"content": text}) for text, _ in group)
        else:
            yield ToolCallMessage, _calls_fields([call for _, call in group])


def has_text_argument(call: ToolCall, kwarg: str) -> bool:
    """Whether the call has an argument `kwarg` that is text."""
    return _text_argument(call, kwarg) is not None


def _text_argument(call: ToolCall, kwarg: str) -> str | None:
    try:
        arguments = orjson.loads(call.arguments)
    except orjson.JSONDecodeError:
        return None  # an unreadable call stays a tool call
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

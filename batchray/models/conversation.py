"""Reads conversations for the protocols: tool calls, tool results, and parts that a protocol cannot express.

Each protocol lists in its `Capabilities` the parts that it accepts.  All refusals are raised here, with the same words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import orjson

from batchray.errors import ModelAPIError
from batchray.schema import (
    ContentPart,
    ImageContent,
    Message,
    MessageToolReturn,
    ToolCall,
    ToolCallContent,
    ToolReturnContent,
    UrlImage,
)

_USABLE_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_UNUSABLE = re.compile(r"[^a-zA-Z0-9_-]")
DEFAULT_IMAGE_TYPE = "image/png"
"""The assumed type of a stored image without a media type."""


class ToolResult(NamedTuple):
    """The result of one tool call."""

    call_id: str
    text: str
    is_error: bool


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The message parts that a protocol can express, by the part's `type`."""

    protocol: str
    parts: frozenset[str]

    def check(self, message: Message) -> None:
        """Raise ModelAPIError (`unsupported_content`) for a part that cannot be expressed in this message."""
        for part in message.content or ():
            if part.type not in self.parts:
                raise self.refusal(message, f"a part of type {part.type}")
            if not _is_allowed_in(part, message):
                raise self.refusal(message, f"a part of type {part.type} in a message of role {message.role}")
            if isinstance(part, ImageContent) and not isinstance(part.source, UrlImage) and not part.source.data:
                raise self.refusal(message, f"an image by file_id ({part.source.type}) without its data")

    def results(self, message: Message) -> list[ToolResult]:
        """Return the tool results in this message.  Raises ModelAPIError for one that names no call."""
        results = _listed_results(message)
        for part in message.content or ():
            # A part can repeat a result that is listed already.
            if isinstance(part, ToolReturnContent) and all(part.tool_call_id != each.call_id for each in results):
                results.append(ToolResult(part.tool_call_id, part.content, part.is_error))
        if message.role in ("tool", "function") and not results:
            results.append(ToolResult(message.tool_call_id or "", message.text, bool(message.is_err)))
        if not all(result.call_id for result in results):
            raise self.refusal(message, "a tool return without a tool_call_id")
        return results

    def refusal(self, message: Message, what: str) -> ModelAPIError:
        """Return the error for content that the protocol cannot express."""
        reason = f"{message.id}: the {self.protocol} protocol has no place for {what}"
        return ModelAPIError("unsupported_content", reason)


def is_from_model(message: Message) -> bool:
    """Whether the model produced this message; true also for tool calls that wait for an approval."""
    return message.role == "assistant" or (message.role == "approval" and bool(message.tool_calls))


def tool_calls_of(message: Message) -> list[ToolCall]:
    """Return the tool calls of a message, `tool_calls` first; a content part that repeats one is not a second call."""
    calls = list(message.tool_calls or ())
    for part in message.content or ():
        if isinstance(part, ToolCallContent) and all(part.id != call.id for call in calls):
            calls.append(ToolCall.of(part.id, part.name, orjson.dumps(part.input).decode()))
    return calls


def usable_name(name: str) -> str:
    """Return a tool's name as providers accept it.

    A model may call a tool that does not exist by any name; the call goes back with the error, and providers refuse a
    conversation with other characters in a name, or with more than 64.
    """
    return name if _USABLE_NAME.fullmatch(name) else _UNUSABLE.sub("_", name)[:64]


def used_ids(messages: Iterable[Message]) -> set[str]:
    """Return the ids of all tool calls in a conversation."""
    return {call.id for message in messages for call in tool_calls_of(message)}


def _listed_results(message: Message) -> list[ToolResult]:
    listed = [*(message.tool_returns or ()), *(message.approvals or ())]
    return [
        ToolResult(each.tool_call_id or message.tool_call_id or "", each.func_response or "", each.status == "error")
        for each in listed
        if isinstance(each, MessageToolReturn)
    ]


def _is_allowed_in(part: ContentPart, message: Message) -> bool:
    match part.type:
        case "text":
            return True
        case "image":
            return message.role == "user"
        case "tool_return":
            return not is_from_model(message)
        case "tool_call":
            return message.role in ("assistant", "approval")
        case _:  # reasoning of any kind
            return is_from_model(message)

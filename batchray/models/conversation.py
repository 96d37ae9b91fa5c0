"""Conversations as every protocol of chat models sees them: who speaks, calls, results, and what has no place.

A protocol says in its `Capabilities` which parts it takes.  All refusals are made here, so that they read alike.
"""

from __future__ import annotations

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

DEFAULT_IMAGE_TYPE = "image/png"
"""What a stored image without a media type is taken for."""


class ToolResult(NamedTuple):
    """What one tool call gave back."""

    call_id: str
    text: str
    is_error: bool


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Which parts of a message a protocol has a place for, by the `type` of the part."""

    protocol: str
    parts: frozenset[str]

    def check(self, message: Message) -> None:
        """Raise ModelAPIError (`unsupported_content`) for a part that has no place, or none in this message."""
        for part in message.content or ():
            if part.type not in self.parts:
                raise self.refusal(message, f"a part of type {part.type}")
            if not _is_allowed_in(part, message):
                raise self.refusal(message, f"a part of type {part.type} in a message of role {message.role}")
            if isinstance(part, ImageContent) and not isinstance(part.source, UrlImage) and not part.source.data:
                raise self.refusal(message, f"an image by file_id ({part.source.type}) without its data")

    def results(self, message: Message) -> list[ToolResult]:
        """Return what tools gave back in this message.  Raises ModelAPIError for one that names no call."""
        given = [*(message.tool_returns or ()), *(message.approvals or ())]
        results = [
            (each.tool_call_id or message.tool_call_id, each.func_response or "", each.status == "error")
            for each in given
            if isinstance(each, MessageToolReturn)
        ]
        for part in message.content or ():
            if isinstance(part, ToolReturnContent) and all(part.tool_call_id != call_id for call_id, _, _ in results):
                results.append((part.tool_call_id, part.content, part.is_error))
        if message.role in ("tool", "function") and not results:
            results.append((message.tool_call_id, message.text, bool(message.is_err)))
        return [ToolResult(self._checked_id(message, call_id), text, failed) for call_id, text, failed in results]

    def refusal(self, message: Message, what: str) -> ModelAPIError:
        """Return the error that refuses `what` by name."""
        reason = f"{message.id}: the {self.protocol} protocol has no place for {what}"
        return ModelAPIError("unsupported_content", reason)

    def _checked_id(self, message: Message, call_id: str | None) -> str:
        if not call_id:
            raise self.refusal(message, "a tool return without a tool_call_id")
        return call_id


def is_answer(message: Message) -> bool:
    """Whether the model said this, tool calls that wait for an approval included."""
    return message.role == "assistant" or (message.role == "approval" and bool(message.tool_calls))


def calls_of(message: Message) -> list[ToolCall]:
    """Return the tool calls of an answer, those in `tool_calls` first; a part that repeats one is not a second call."""
    calls = list(message.tool_calls or ())
    for part in message.content or ():
        if isinstance(part, ToolCallContent) and all(part.id != call.id for call in calls):
            calls.append(ToolCall.of(part.id, part.name, orjson.dumps(part.input).decode()))
    return calls


def used_ids(messages: Iterable[Message]) -> set[str]:
    """Return the ids of the tool calls so far."""
    return {call.id for message in messages for call in calls_of(message)}


def _is_allowed_in(part: ContentPart, message: Message) -> bool:
    match part.type:
        case "text":
            return True
        case "image":
            return message.role == "user"
        case "tool_return":
            return not is_answer(message)
        case "tool_call":
            return message.role in ("assistant", "approval")
        case _:  # reasoning, in one of its kinds
            return is_answer(message)

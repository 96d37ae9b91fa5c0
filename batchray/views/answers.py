"""The answer of a result as other APIs show it, and the HTTP status of a failure."""

from __future__ import annotations

from typing import NamedTuple

from batchray.schema import (
    ApprovalRequestMessage,
    AssistantMessage,
    LettaMessage,
    LettaToolCall,
    Result,
    StopReason,
    ToolCallMessage,
)
from batchray.schema.letta_messages import LettaMessageBase

# The HTTP statuses of the types of errors, as providers answer with them; those that are not here are 500.
_STATUSES = {
    **dict.fromkeys(("bad_request", "refused", "refusal", "unsupported_content", "context_length_exceeded"), 400),
    **dict.fromkeys(("insufficient_quota", "rate_limited"), 429),
    **dict.fromkeys(("timeout", "deadline_exceeded"), 504),
    "authentication_error": 401,
    "permission_denied": 403,
    **dict.fromkeys(("not_found", "agent_not_found"), 404),
    "conflict": 409,
    "request_too_large": 413,
}
_ASKING = (ToolCallMessage, ApprovalRequestMessage)


class Answer(NamedTuple):
    """The end of a run: its text, and the tool calls that wait for the caller.

    `messages` are those of the last step; `created` is the time of the last one in seconds since 1970, None without
    messages.
    """

    text: str
    calls: tuple[LettaToolCall, ...]
    messages: tuple[LettaMessage, ...]
    created: int | None


def answer_of(result: Result) -> Answer:
    """Return the answer of a request that succeeded."""
    messages = [each for each in result.messages if isinstance(each, LettaMessageBase)]
    if not messages:
        return Answer("", (), (), None)
    last, created = messages[-1], int(messages[-1].date.timestamp())
    step = tuple(each for each in messages if each.step_id == last.step_id) if last.step_id else (last,)
    if result.stop_reason is not StopReason.REQUIRES_APPROVAL:
        return Answer(result.text, (), step, created)
    said = "".join(_text(each) for each in step if isinstance(each, AssistantMessage))
    listed = (each.tool_calls or [each.tool_call] for each in step if isinstance(each, _ASKING))
    calls = tuple(call for calls in listed for call in (calls if isinstance(calls, list) else [calls]))
    return Answer(said, calls, step, created)


def _text(message: AssistantMessage) -> str:
    content = message.content
    return content if isinstance(content, str) else "".join(part.text for part in content)


def status_of_failure(result: Result) -> int:
    """Return the HTTP status that stands for the error of a request that failed."""
    if result.stop_reason is StopReason.INVALID_TOOL_CALL:  # the caller's answer to a tool call
        return 400
    return _STATUSES.get(result.error.type, 500) if result.error else 500

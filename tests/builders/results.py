"""Results of a made-up job, as its views give them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel

from batchray.schema import (
    ApprovalRequestMessage,
    AssistantMessage,
    ErrorInfo,
    ItemStatus,
    LettaToolCall,
    Result,
    StopReason,
    Timing,
    ToolCallMessage,
    Usage,
)

ITEM = "batch_item-1b4e28ba-2fa1-4d3b-a3f5-000000700000"
WHEN = datetime(2026, 1, 2, tzinfo=UTC)
USAGE = Usage(prompt_tokens=7, completion_tokens=5, total_tokens=12, cached_input_tokens=3, reasoning_tokens=2)
CALL = LettaToolCall(name="look", arguments='{"at":"sky"}', tool_call_id="call-1")


def result(**given: Any) -> Result:
    kept: dict[str, Any] = {
        "index": 7,
        "custom_id": "c-7",
        "batch_item_id": ITEM,
        "agent_id": "a",
        "model": "offline/rules",
        "status": ItemStatus.SUCCEEDED,
        "stop_reason": StopReason.END_TURN,
        "messages": [],
        "usage": USAGE,
        "attempts": 1,
        "timing": Timing(queued_ns=1, duration_ns=2),
    }
    return Result(**(kept | given))


def failed(type: str, stop_reason: StopReason = StopReason.LLM_API_ERROR) -> Result:
    error = ErrorInfo(type=type, message="it says why")
    return result(status=ItemStatus.ERRORED, stop_reason=stop_reason, error=error)


def said(text: str, step: int = 2) -> AssistantMessage:
    return AssistantMessage(id=f"message-{step}", step_id=f"step-{step}", date=WHEN, content=text)


def waiting(text: str) -> Result:
    """Return the result of an agent that asked for two tools of the caller after it had run one of its own."""
    own = ToolCallMessage(id="message-1", step_id="step-1", date=WHEN, tool_call=CALL, tool_calls=[CALL])
    other = CALL.model_copy(update={"tool_call_id": "call-2"})
    asked = ApprovalRequestMessage(
        id="message-3", step_id="step-2", date=WHEN, tool_call=CALL, tool_calls=[CALL, other]
    )
    messages = [said("before", 1), own, *([said(text)] if text else []), asked]
    return result(stop_reason=StopReason.REQUIRES_APPROVAL, messages=messages)


def extras(value: Any) -> list[str]:
    """Return the fields of a model, and of those in it, that its type does not have."""
    if isinstance(value, list):
        return [name for each in value for name in extras(each)]
    if not isinstance(value, BaseModel):
        return []
    return [*(value.model_extra or {}), *(name for _, each in value for name in extras(each))]

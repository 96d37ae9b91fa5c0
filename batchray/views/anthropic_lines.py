"""Results as lines of the results file of Anthropic's Message Batches API.

Source: Anthropic's API reference, "Retrieve Message Batch results" and "Messages"; the guide "Errors".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from batchray.schema import (
    HiddenReasoningMessage,
    ItemStatus,
    ReasoningMessage,
    Result,
    StopReason,
)
from batchray.views.answers import Answer, answer_of, status_of_failure

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    504: "timeout_error",
}


def anthropic_line(result: Result) -> bytes:
    """Return the line of a result, without a line break.

    A success has the last step of the run as its message: reasoning that the provider has signed, the text, and the
    tool calls that wait for the caller.  A request without a `custom_id` has its `batch_item_id` instead.
    """
    custom_id = result.batch_item_id if result.custom_id is None else str(result.custom_id)
    return orjson.dumps({"custom_id": custom_id, "result": _result(result)})


def _result(result: Result) -> dict[str, Any]:
    match result.status:
        case ItemStatus.SUCCEEDED:
            return {"type": "succeeded", "message": _message(result)}
        case ItemStatus.ERRORED:
            kind = _KINDS.get(status_of_failure(result), "api_error")
            message = result.error.message if result.error else "The request failed."
            error = {"type": "error", "error": {"type": kind, "message": message}, "request_id": _run_id(result)}
            return {"type": "errored", "error": error}
        case other:
            return {"type": str(other)}


def _run_id(result: Result) -> str:
    return result.batch_item_id.replace("batch_item-", "run-", 1)


def _message(result: Result) -> dict[str, Any]:
    answer, usage = answer_of(result), result.usage
    is_cut = result.stop_reason is StopReason.MAX_STEPS
    cached, written = usage.cached_input_tokens, usage.cache_write_tokens
    return {
        "id": f"msg_{result.batch_item_id.removeprefix('batch_item-').replace('-', '')}",
        "type": "message",
        "role": "assistant",
        "model": result.model or result.agent_id,
        "content": list(_content(answer)),
        "stop_reason": "tool_use" if answer.calls else "max_tokens" if is_cut else "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": max(usage.prompt_tokens - cached - written, 0),
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": cached,
            "output_tokens": usage.completion_tokens,
            "service_tier": "batch",
        },
    }


def _content(answer: Answer) -> Iterator[dict[str, Any]]:
    for each in answer.messages:
        if isinstance(each, ReasoningMessage) and each.signature:
            yield {"type": "thinking", "thinking": each.reasoning, "signature": each.signature}
        elif isinstance(each, HiddenReasoningMessage) and each.hidden_reasoning:
            yield {"type": "redacted_thinking", "data": each.hidden_reasoning}
    if answer.text:
        yield {"type": "text", "text": answer.text}
    for call in answer.calls:
        yield {"type": "tool_use", "id": call.tool_call_id, "name": call.name, "input": _object(call.arguments)}


def _object(arguments: str | None) -> dict[str, Any]:
    """Return the arguments of a call; those that are not a JSON object become one with their text."""
    try:
        found = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        found = None
    return found if isinstance(found, dict) else {"arguments": arguments}

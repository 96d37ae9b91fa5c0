"""Results as lines of the output and error files of OpenAI's Batch API.

Source: OpenAI's API reference, "The request output object" of Batch, "The chat completion object" and "The response
object"; the Batch guide for the lines of requests that have expired.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from batchray.schema import ErrorInfo, ItemStatus, Result, StopReason
from batchray.views.answers import Answer, answer_of, status_of_failure
from batchray.views.export_formats import OPENAI_ENDPOINTS

CHAT_COMPLETIONS, RESPONSES = OPENAI_ENDPOINTS

# The codes of OpenAI's API for types of errors that have another name here.
_CODES = {"agent_not_found": "model_not_found"}
_ENDED = {
    ItemStatus.EXPIRED: (
        "batch_expired",
        "This request could not be executed before the completion window expired.",
    ),
    ItemStatus.CANCELED: ("batch_cancelled", "This request was not completed before the batch was cancelled."),
}


def is_in_error_file(result: Result) -> bool:
    """Return whether the line of a result belongs into the error file: all except those of successes."""
    return result.status is not ItemStatus.SUCCEEDED


def openai_line(result: Result, endpoint: str = CHAT_COMPLETIONS, created_at: int = 0) -> bytes:
    """Return the line of a result, without a line break.

    The body of a success is the object of `endpoint`: the text of the answer, and the tool calls that wait for the
    caller.  `created_at` is the time of an answer without messages, in seconds since 1970.  A request without a
    `custom_id` has its `batch_item_id` instead.
    """
    digits = result.batch_item_id.removeprefix("batch_item-")
    custom_id = result.batch_item_id if result.custom_id is None else str(result.custom_id)
    if result.status in _ENDED:
        return _line(digits, custom_id, error=_ENDED[result.status])
    if result.status is ItemStatus.SUCCEEDED:
        answer = answer_of(result)
        body_of = _response if endpoint == RESPONSES else _chat_completion
        body = body_of(
            result, answer, digits.replace("-", ""), created_at if answer.created is None else answer.created
        )
        return _line(digits, custom_id, body=body)
    error = result.error or ErrorInfo(type=str(result.stop_reason), message="The request failed.")
    if (status := status_of_failure(result)) == 504:
        return _line(digits, custom_id, error=("request_timeout", error.message))
    return _line(digits, custom_id, status, error_body(status, _CODES.get(error.type, error.type), error.message))


def is_openai_line(line: bytes) -> bool:
    """Whether a line is one of an output or error file."""
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return isinstance(found, dict) and found.keys() == {"id", "custom_id", "response", "error"}


def openai_failure(batch_item_id: str, custom_id: str, status: int, code: str, message: str) -> bytes:
    """Return the line of a request that was refused with an HTTP status, such as 404 and `model_not_found`."""
    return _line(batch_item_id.removeprefix("batch_item-"), custom_id, status, error_body(status, code, message))


def error_body(status: int, code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """Return the body of a response with this HTTP status."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _line(
    digits: str,
    custom_id: str,
    status: int = 200,
    body: Mapping[str, Any] | None = None,
    error: tuple[str, str] | None = None,
) -> bytes:
    response = None if body is None else {"status_code": status, "request_id": f"run-{digits}", "body": body}
    return orjson.dumps(
        {
            "id": f"batch_req_{digits.replace('-', '')}",
            "custom_id": custom_id,
            "response": response,
            "error": None if error is None else {"code": error[0], "message": error[1]},
        }
    )


def _chat_completion(result: Result, answer: Answer, digits: str, created: int) -> dict[str, Any]:
    text, calls = answer.text, answer.calls
    message: dict[str, Any] = {"role": "assistant", "content": None if calls and not text else text, "refusal": None}
    if calls:
        message["tool_calls"] = [
            {"id": call.tool_call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    is_cut = result.stop_reason is StopReason.MAX_STEPS
    reason = "tool_calls" if calls else "length" if is_cut else "stop"
    usage = result.usage
    return {
        "id": f"chatcmpl-{digits}",
        "object": "chat.completion",
        "created": created,
        "model": result.model or result.agent_id,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens},
            "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        },
        "service_tier": None,
        "system_fingerprint": None,
    }


def _response(result: Result, answer: Answer, digits: str, created: int) -> dict[str, Any]:
    is_cut = result.stop_reason is StopReason.MAX_STEPS
    usage = result.usage
    return {
        "id": f"resp_{digits}",
        "object": "response",
        "created_at": created,
        "status": "incomplete" if is_cut else "completed",
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "instructions": None,
        "max_output_tokens": None,
        "model": result.model or result.agent_id,
        "output": _output(answer, digits),
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "temperature": None,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "truncation": "disabled",
        "usage": {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": usage.cached_input_tokens,
                "cache_write_tokens": usage.cache_write_tokens,
            },
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.total_tokens,
        },
        "metadata": _texts(result.metadata),
    }


def _output(answer: Answer, digits: str) -> list[dict[str, Any]]:
    text, calls = answer.text, answer.calls
    items: list[dict[str, Any]] = []
    if text or not calls:
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
        head = {"id": f"msg_{digits}", "type": "message", "status": "completed", "role": "assistant"}
        items.append({**head, "content": [part]})
    for position, call in enumerate(calls):
        asked = {"call_id": call.tool_call_id, "name": call.name, "arguments": call.arguments}
        items.append({"id": f"fc_{digits}{position:02x}", "type": "function_call", "status": "completed", **asked})
    return items


def _texts(metadata: Mapping[str, Any] | None) -> dict[str, str]:
    """Return metadata as OpenAI's are: texts."""
    return {
        name: value if isinstance(value, str) else orjson.dumps(value).decode()
        for name, value in (metadata or {}).items()
    }

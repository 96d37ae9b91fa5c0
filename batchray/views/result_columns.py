"""Stored results as columns, the same ones for a frame and a table, without making a `Result` of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from pydantic import TypeAdapter

from batchray.schema import Message, message_options, visible_json
from batchray.schema.plain_answers import plain_answer
from batchray.schema.requests import shows_all_messages
from batchray.store import StoredResult
from batchray.views.results import ResultViews, input_of, model_of, output_of

COLUMNS: Mapping[str, Any] = {
    "custom_id": "string",
    "agent_id": "string",
    "model": "string",
    "status": "string",
    "stop_reason": "string",
    "input": "string",
    "text": "string",
    "error_type": "string",
    "error": "string",
    "traceback": "string",
    "stdout": "string",
    "stderr": "string",
    "prompt_tokens": "Int64",
    "completion_tokens": "Int64",
    "cached_tokens": "Int64",
    "reasoning_tokens": "Int64",
    "cost_usd": "Float64",
    "steps": "Int64",
    "attempts": "Int64",
    "queued_s": "Float64",
    "ttft_s": "Float64",
    "duration_s": "Float64",
    "messages": object,
    "tool_calls": object,
    "metadata": object,
}
"""The type of each column by its name, in pandas.  Objects are plain data for JSON."""

_PAGE = TypeAdapter(list[list[Message]])
_WITH_CALLS = frozenset({"tool_call_message", "approval_request_message"})


def result_columns(views: ResultViews, page: Sequence[StoredResult]) -> list[list[Any]]:
    """Return the indexes of results, and then their values for each of `COLUMNS`.

    They are what `ResultViews.result` shows; `text` and `tool_calls` are of what is in `messages`.
    """
    requests = [orjson.loads(stored.request) for stored in page]
    shown = _shown(page, requests)
    rows = [_row(views, *of_one) for of_one in zip(page, requests, shown, strict=True)]
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(len(COLUMNS) + 1)]


class _Shown(NamedTuple):
    """The columns of a result that come from its messages."""

    messages: list[dict[str, Any]]
    text: str
    model: str | None
    output: Mapping[str, str]
    tool_calls: list[Any]


def _shown(page: Sequence[StoredResult], requests: Sequence[Mapping[str, Any]]) -> list[_Shown]:
    """Return what each result of a page shows; most of them without the models of their messages."""
    plain = [
        plain_answer(stored.messages) if shows_all_messages(request) else None
        for stored, request in zip(page, requests, strict=True)
    ]
    # The messages of all others at once: a call for each result costs a fifth more.
    others = [stored.messages for stored, answer in zip(page, plain, strict=True) if answer is None]
    modelled = iter(_PAGE.validate_json(b"[" + b",".join(others) + b"]"))
    return [
        _of_messages(next(modelled), request, stored.error)
        if answer is None
        else _Shown(answer.shown, answer.text, answer.model, output_of(stored.error, ()), [])
        for stored, request, answer in zip(page, requests, plain, strict=True)
    ]


def _of_messages(messages: list[Message], request: Mapping[str, Any], error: Mapping[str, str] | None) -> _Shown:
    shown = visible_json(messages, message_options(request))
    text = next((each["content"] for each in reversed(shown) if each["message_type"] == "assistant_message"), "")
    calls = [call for each in shown if each["message_type"] in _WITH_CALLS for call in each["tool_calls"]]
    return _Shown(shown, text, model_of(messages), output_of(error, messages), calls)


def _row(views: ResultViews, stored: StoredResult, request: Mapping[str, Any], shown: _Shown) -> tuple[Any, ...]:
    error, usage, output = stored.error or {}, stored.usage, shown.output
    return (
        stored.index,
        stored.custom_id,
        stored.agent_id,
        views.model(stored.agent_id, shown.model),
        stored.status,
        stored.stop_reason,
        _input(input_of(request)),
        shown.text,
        error.get("type"),
        error.get("message"),
        error.get("traceback"),
        output.get("stdout"),
        output.get("stderr"),
        usage.get("prompt_tokens", 0),
        usage.get("completion_tokens", 0),
        usage.get("cached_input_tokens", 0),
        usage.get("reasoning_tokens", 0),
        views.cost_usd(stored.agent_id, usage),
        usage.get("step_count", 0),
        stored.attempts,
        _seconds(stored.queued_ns),
        _seconds(stored.ttft_ns),
        _seconds(stored.duration_ns),
        shown.messages,
        shown.tool_calls,
        request.get("metadata"),
    )


def _input(given: Any) -> str:
    """Return a text, or one message that is a text, as it is; anything else as JSON."""
    match given:
        case str():
            return given
        case [{"role": "user", "content": str(text)}]:
            return text
        case parts:
            return orjson.dumps(parts).decode()


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e9

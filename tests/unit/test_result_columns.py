"""The columns of stored results are those of the results that are made of them, whatever was stored."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import orjson

from batchray.schema import (
    ApprovalRequestMessage,
    LettaRequest,
    Message,
    Result,
    TextContent,
    ToolCallMessage,
    new_id,
    new_job_id,
    visible_json,
)
from batchray.schema.plain_answers import PlainAnswer, plain_answer
from batchray.store import StoredResult
from batchray.views.result_columns import COLUMNS, result_columns
from batchray.views.results import ResultViews

NOW = datetime(2026, 1, 2, 3, 4, 5, 678_901, UTC)
PRICES = {"input": 1.0, "cached_input": 0.5, "output": 2.0}
AGENTS = {
    "priced": {"agent": {"id": "priced", "model": "offline/scripted", "prices": PRICES}},
    "plain": {"agent": {"id": "plain", "model": "offline/scripted"}},
    "function": {"agent": {"id": "function", "run": "m:f"}},
}
TEXT = {"type": "text", "text": "It is 8."}
CALL = {"id": "call_1", "type": "function", "function": {"name": "say", "arguments": '{"message": "hi"}'}}
OTHER_CALL = {"id": "call_2", "type": "function", "function": {"name": "roll", "arguments": "{"}}
RETURN = {"tool_call_id": "call_1", "status": "success", "func_response": "ok", "stdout": ["out\n"], "stderr": None}
WRITTEN = {"status": "success", "stdout": ["a", "b"], "stderr": ["c"]}
WITH_REASONING = [
    {"type": "reasoning", "is_native": True, "reasoning": "hm", "signature": "s"},
    {"type": "reasoning", "is_native": False, "reasoning": "so"},
    {"type": "redacted_reasoning", "data": "xx"},
    {"type": "omitted_reasoning", "signature": "s"},
    {"type": "summarized_reasoning", "id": "r", "summary": [{"index": 0, "text": "a"}, {"index": 1, "text": "b"}]},
    TEXT,
    {"text": " And a part without a type."},
]
ANSWERS = [{"type": "approval", "tool_call_id": "call_1", "approve": False, "reason": "no"}, RETURN]
PICTURE = {"type": "image", "source": {"type": "url", "url": "http://h/i.png"}}


def message(role: str = "assistant", **fields: Any) -> dict[str, Any]:
    """Return a message as it is stored."""
    known = {"id": f"message-1b4e28ba-2fa1-4d3b-a3f5-0000000{len(role)}0300", "role": role, "step_id": "step-1"}
    return {**known, "created_at": "2026-01-02T03:04:05.678901Z", **fields}


TOOL_RUN = [
    message(content=WITH_REASONING, tool_calls=[CALL, OTHER_CALL], model="other/newer"),
    message("tool", tool_returns=[RETURN, {"status": "error"}]),
    message(content=[TEXT, PICTURE, TEXT], created_at="2026-01-02T03:04:05+02:00", name="n", is_err=True),
]
OLD_FORM = message(
    content=[TEXT], tool_calls=None, tool_returns=[], approvals=None, otid="mine", created_at="2026-01-02T03:04:05"
)
MESSAGES: list[list[dict[str, Any]]] = [
    [],
    [message(content=[TEXT])],
    TOOL_RUN,
    [message("approval", content=[TEXT], tool_calls=[CALL])],
    [message("approval", approvals=ANSWERS, approve=True, denial_reason="why", approval_request_id="m")],
    [message("user", content=[TEXT]), message("user", content=[TEXT, PICTURE]), message("function")],
    [message("system", content=[TEXT]), message("summary", content=[TEXT])],
    [message(content=[TEXT], tool_returns=[WRITTEN])],
    [OLD_FORM],
    [message(content=[TEXT], provider_items=[{"type": "message"}], sender_id="s", run_id="run-1")],
    [message(content=[TEXT, TEXT], model="other/newer", created_at="2026-01-02T03:04:05Z", run_id="run-1")],
    [message(content=[{"type": "text", "text": ""}], tool_returns=[], approvals=[])],
]
PLAIN = [MESSAGES[1], *MESSAGES[-2:]]
ERROR = {"type": "ValueError", "message": "no", "traceback": "line", "stdout": "o", "stderr": "e"}
ENDS: list[dict[str, Any]] = [
    {},
    {"status": "errored", "stop_reason": "error", "error": ERROR},
    {"status": "expired", "stop_reason": "error", "error": {"type": "expired", "message": "late"}, "usage": {}},
    {"usage": {"step_count": 2}, "ttft_ns": None},
    {"stop_reason": "requires_approval", "usage": {"prompt_tokens": 9, "total_tokens": 9, "cached_input_tokens": 3}},
]
REQUESTS: list[dict[str, Any]] = [
    {"input": "hi", "custom_id": 5, "metadata": {"row": [1.5, None]}},
    {"input": None, "messages": [{"role": "user", "content": "alone"}], "custom_id": "c"},
    {"messages": [{"role": "user", "content": [TEXT]}, {"type": "approval", "approvals": ANSWERS[:1]}]},
    {"input": [TEXT], "include_return_message_types": ["tool_call_message", "reasoning_message"]},
    {"input": "hi", "include_return_message_types": None, "assistant_message_tool_name": "say"},
    {"input": "hi", "include_return_message_types": [], "use_assistant_message": False},
]


def stored(
    index: int, agent_id: str, messages: list[Any], request: dict[str, Any], end: dict[str, Any]
) -> StoredResult:
    """Return a result as the store reads it back."""
    custom_id = request.get("custom_id")
    fields = {
        "status": "succeeded",
        "stop_reason": "end_turn",
        "error": None,
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "reasoning_tokens": 2},
        "ttft_ns": 1,
        "duration_ns": 2_500_000_000,
        **end,
    }
    return StoredResult(
        seq=index + 1,
        index=index,
        agent_id=agent_id,
        custom_id=None if custom_id is None else str(custom_id),
        request=orjson.dumps({"agent_id": agent_id, **request}),
        attempts=index % 3,
        queued_ns=1_500_000_000,
        messages=orjson.dumps(messages),
        **fields,
    )


def _calls(result: Result) -> list[dict[str, Any]]:
    asked = (each for each in result.messages if isinstance(each, ToolCallMessage | ApprovalRequestMessage))
    listed = (message.tool_calls for message in asked)
    return [call.model_dump(mode="json") for calls in listed if isinstance(calls, list) for call in calls]


def _input(result: Result) -> Any:
    match result.input:
        case str() as text:
            return text
        case [{"role": "user", "content": str(text)}]:
            return text
        case parts:
            return orjson.dumps(parts).decode()


def _of_error(name: str) -> Callable[[Result], Any]:
    return lambda result: getattr(result.error, name, None)


VALUES: Mapping[str, Callable[[Result], Any]] = {
    "custom_id": lambda result: None if result.custom_id is None else str(result.custom_id),
    "agent_id": lambda result: result.agent_id,
    "model": lambda result: result.model,
    "status": lambda result: str(result.status),
    "stop_reason": lambda result: str(result.stop_reason),
    "input": _input,
    "text": lambda result: result.text,
    "error_type": _of_error("type"),
    "error": _of_error("message"),
    "traceback": _of_error("traceback"),
    "stdout": lambda result: result.stdout,
    "stderr": lambda result: result.stderr,
    "prompt_tokens": lambda result: result.usage.prompt_tokens,
    "completion_tokens": lambda result: result.usage.completion_tokens,
    "cached_tokens": lambda result: result.usage.cached_input_tokens,
    "reasoning_tokens": lambda result: result.usage.reasoning_tokens,
    "cost_usd": lambda result: result.cost_usd,
    "steps": lambda result: result.usage.step_count,
    "attempts": lambda result: result.attempts,
    "queued_s": lambda result: result.timing.queued_ns / 1e9,
    "ttft_s": lambda result: None if result.timing.ttft_ns is None else result.timing.ttft_ns / 1e9,
    "duration_s": lambda result: result.timing.duration_ns / 1e9,
    "messages": lambda result: [each.model_dump(mode="json") for each in result.messages],
    "tool_calls": _calls,
    "metadata": lambda result: result.metadata,
}


KINDS = {
    *("system_message", "user_message", "assistant_message", "summary_message"),
    *("reasoning_message", "hidden_reasoning_message", "tool_call_message", "tool_return_message"),
    *("approval_request_message", "approval_response_message"),
}


def test_the_columns_are_those_of_the_results() -> None:
    ends = itertools.cycle(ENDS)
    kinds = [(name, messages, request) for name in AGENTS for messages in MESSAGES for request in REQUESTS]
    page = [stored(index, *kind, next(ends)) for index, kind in enumerate(kinds)]
    job: Any = SimpleNamespace(id=new_job_id())
    views = ResultViews(job, AGENTS, include_input=True)
    results = [views.result(each) for each in page]
    indexes, *columns = result_columns(views, page)
    assert indexes == [result.index for result in results]
    for name, column in zip(COLUMNS, columns, strict=True):
        expected = [VALUES[name](result) for result in results]
        assert orjson.dumps(column) == orjson.dumps(expected), name  # as text too, for the order of keys
        assert column == expected
    shown = [each["message_type"] for messages in columns[list(COLUMNS).index("messages")] for each in messages]
    assert set(shown) == KINDS


def test_the_answer_of_a_model_is_read_without_the_models() -> None:
    answer = Message(id=new_id("message"), role="assistant", content=[TextContent(text="It is 8.")], created_at=NOW)
    read = plain_answer(b"[" + answer.model_dump_json(exclude_none=True).encode() + b"]")
    assert read == PlainAnswer("It is 8.", None, visible_json([answer], LettaRequest(input="")))


def test_messages_of_another_form_are_left_to_the_models() -> None:
    assert [messages for messages in MESSAGES if plain_answer(orjson.dumps(messages)) is not None] == PLAIN


def test_a_page_without_results_has_all_columns() -> None:
    job: Any = SimpleNamespace(id=new_job_id())
    assert result_columns(ResultViews(job), []) == [[]] * (len(COLUMNS) + 1)

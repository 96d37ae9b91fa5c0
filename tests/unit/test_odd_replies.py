"""Chat completions as odd servers send them: a field that a reply does not need never spoils it."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from batchray.errors import InvalidResponseError, ModelAPIError, RequestError
from batchray.models.connection import Connection
from batchray.models.http import HttpTransport
from batchray.models.openai import OpenAIClient
from batchray.models.openai_reply import PartialCompletion
from batchray.models.provider_errors import TransientError
from batchray.models.sse import EventParser
from batchray.models.tool_call_ids import new_tool_call_id
from tests.builders.model_calls import FakeTime, always, call, eager, failure


def chunk(finish_reason: str | None = None, /, choice: dict[str, Any] | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason, **(choice or {})}]}


def events(*chunks: Any) -> bytes:
    return b"".join(b"data: " + (each if isinstance(each, bytes) else orjson.dumps(each)) + b"\n\n" for each in chunks)


STOP = chunk("stop")
TRANSPORT = HttpTransport("local", Connection("local", "http://h", {}))


def read(stream: bytes) -> PartialCompletion:
    """Return the checked reply in a stream, as the client reads it."""
    parser, partial = EventParser(), PartialCompletion(TRANSPORT)
    for event in (*parser.feed(stream), *parser.end()):
        if not partial.is_done:
            partial.add(event)
    partial.check()
    return partial


def said(stream: bytes) -> str:
    return read(stream).reply(call(), new_tool_call_id).text


def read_whole(answer: Any) -> PartialCompletion:
    partial = PartialCompletion(TRANSPORT)
    partial.add_body(answer if isinstance(answer, bytes) else orjson.dumps(answer))
    partial.check()
    return partial


# --- content and reasoning -------------------------------------------------------------------------------------------

THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "let "}, {"type": "text", "text": "me"}]}


@pytest.mark.parametrize(
    ("content", "text", "reasoning"),
    [
        ([THOUGHT, {"type": "text", "text": "yes"}], "yes", "let me"),
        ([{"type": "text", "text": "y"}, "es", {"type": "reference", "reference_ids": [1]}], "yes", ""),
        ({"type": "output_text", "text": "yes"}, "yes", ""),
        ([{"type": "refusal", "refusal": "no"}], "no", ""),
        ([{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "yes"}], "yes", "hm"),
    ],
)
def test_content_may_come_in_parts(content: Any, text: str, reasoning: str) -> None:
    for partial in (
        read(events(chunk(content=content), STOP)),
        read_whole({"choices": [{"message": {"content": content}}]}),
    ):
        reply = partial.reply(call(), new_tool_call_id)
        assert (reply.text, reply.reasoning) == (text, reasoning)


@pytest.mark.parametrize(
    "delta",
    [
        {"reasoning": {"content": "hm"}},
        {"reasoning_content": ["h", {"text": "m"}]},
        {"reasoning": {"summary": [{"text": "hm"}]}, "content": ""},
        {"reasoning": "hm", "reasoning_content": None, "role": ""},
    ],
)
def test_reasoning_may_be_an_object_or_a_list(delta: dict[str, Any]) -> None:
    reply = read(events(chunk(**delta), chunk(content="yes"), STOP)).reply(call(), new_tool_call_id)
    assert (reply.reasoning, reply.text) == ("hm", "yes")


@pytest.mark.parametrize("delta", [{"reasoning": 7}, {"audio": {"id": "a"}}, {"refusal": ""}, {"reasoning": [[[]]]}])
def test_fields_that_a_reply_does_not_need_are_ignored(delta: dict[str, Any]) -> None:
    assert said(events(chunk(**delta), chunk(content="yes"), STOP)) == "yes"


def test_halves_of_a_character_in_two_deltas_are_joined() -> None:
    pair = [b'{"choices": [{"delta": {"content": "\\ud83c"}}]}', b'{"choices": [{"delta": {"content": "\\udf1e"}}]}']
    assert said(events(*pair, STOP)) == "\U0001f31e"
    assert said(events(pair[0], chunk(content="yes"), STOP)) == "\ufffdyes"
    assert said(events(b'{"choices": [{"delta": {"content": "a\xff"}}]}', STOP)) == "a\ufffd"


def test_half_a_character_in_a_tool_call_does_not_break_its_encoding() -> None:
    asked = {"id": "c\ud83c", "function": {"name": "add\ud83c", "arguments": '{"a": "\ud83c"'}}
    odd = json.dumps(chunk(tool_calls=[asked])).encode()
    reply = read(events(odd, chunk("tool_calls"))).reply(call(), new_tool_call_id)
    assert [(each.id, each.name, each.arguments) for each in reply.tool_calls] == [
        ("c\ufffd", "add\ufffd", '{"a": "\ufffd"')
    ]
    reply.tool_calls[0].model_dump_json()


def test_numbers_that_json_does_not_have_are_read() -> None:
    odd = b'{"choices": [{"delta": {"content": "yes"}, "logprobs": [-Infinity, NaN], "x": "a\tb"}]}'
    assert said(events(odd, STOP)) == "yes"
    whole = b'{"choices": [{"message": {"content": "yes"}, "logprobs": NaN}]}'
    assert read_whole(whole).reply(call(), new_tool_call_id).text == "yes"


def test_a_single_tool_call_may_come_without_a_list() -> None:
    asked = {"id": "c1", "function": {"name": "add", "arguments": {"a": 1}}}
    reply = read(events(chunk(tool_calls=asked), chunk("tool_calls"))).reply(call(), new_tool_call_id)
    assert [(each.id, each.arguments) for each in reply.tool_calls] == [("c1", '{"a":1}')]


def test_a_legacy_function_call_is_a_tool_call() -> None:
    deltas = [{"function_call": {"name": "add", "arguments": ""}}, {"function_call": {"arguments": '{"a": 1}'}}]
    reply = read(events(*(chunk(**delta) for delta in deltas), chunk("function_call"))).reply(call(), new_tool_call_id)
    assert [(each.name, each.arguments) for each in reply.tool_calls] == [("add", '{"a": 1}')]


# --- usage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 9.0, "completion_tokens": 2.75}, (9, 2, 11)),
        ({"prompt_tokens": "9", "completion_tokens": "2", "total_tokens": "11"}, (9, 2, 11)),
        ({"prompt_tokens": -1, "completion_tokens": True, "total_tokens": None}, (0, 1, 1)),
        ({"prompt_tokens": 9, "prompt_tokens_details": [], "completion_tokens_details": 3}, (9, 0, 9)),
        ({"prompt_tokens": {}, "completion_tokens": [2], "total_tokens": 1e300}, (0, 0, 0)),
        ("unknown", (0, 0, 0)),
        ([1], (0, 0, 0)),
    ],
)
def test_an_odd_count_does_not_spoil_the_answer(usage: Any, counts: tuple[int, int, int]) -> None:
    used = read(events(chunk(content="yes"), {**STOP, "usage": usage})).usage()
    assert (used.prompt_tokens, used.completion_tokens, used.total_tokens) == counts


def test_the_largest_counts_win() -> None:
    counted = [{**chunk(content="a"), "usage": {"prompt_tokens": 9, "completion_tokens": i}} for i in (1, 2)]
    last = {"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 3, "total_tokens": 0}}
    used = read(events(*counted, STOP, last)).usage()
    assert (used.prompt_tokens, used.completion_tokens, used.total_tokens) == (9, 3, 12)


def test_usage_may_stand_in_the_choice_with_the_cached_tokens_at_its_top_level() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "cached_tokens": 4}
    used = read(events(chunk(content="a"), chunk("stop", choice={"usage": usage}))).usage()
    assert (used.prompt_tokens, used.completion_tokens, used.cached_input_tokens) == (9, 2, 4)


# --- the form of the stream ------------------------------------------------------------------------------------------

YES = chunk(content="yes")


@pytest.mark.parametrize(
    "stream",
    [
        events(YES, STOP, b"[DONE] "),
        events(YES, STOP, b"[done]"),
        events(YES, b" [DONE]"),
        events(YES) + b"data: " + orjson.dumps(STOP),
        events(YES, STOP).replace(b"\n\n", b"\n"),
        events(YES, STOP, b"[DONE]").replace(b"\n\n", b"\n"),
        events({"choices": [{"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}]}),
        events(YES, {"choices": [{"delta": {}, "finish_reason": {"type": "stop", "matched": 2}}]}),
        events(YES, STOP) + b"event: ping\ndata: ping\n\n",
        events(orjson.dumps(YES, option=orjson.OPT_INDENT_2).replace(b"\n", b"\ndata: "), STOP),
    ],
)
def test_the_form_of_a_stream_may_be_loose(stream: bytes) -> None:
    assert said(stream) == "yes"


@pytest.mark.parametrize("stream", [b"", events(YES), events(chunk()), events(chunk(choice={"usage": {}}))])
def test_a_stream_that_closes_in_the_middle_is_a_passing_failure(stream: bytes) -> None:
    with pytest.raises(TransientError) as raised:
        read(stream)
    assert raised.value.type == "stream_truncated"


@pytest.mark.parametrize(("words", "kind"), [("overloaded", TransientError), ("no", InvalidResponseError)])
def test_an_error_event_may_be_plain_text(words: str, kind: type[Exception]) -> None:
    with pytest.raises(kind) as raised:
        read(events(YES) + b"event: error\ndata: " + words.encode() + b"\n\n")
    assert any(words in str(each) for each in raised.value.args)


def test_malformed_data_is_quoted_within_bounds() -> None:
    with pytest.raises(InvalidResponseError) as raised:
        read(events(b'{"choices": oops ' + b"x" * 5000 + b"}"))
    assert '{"choices": oops xxx' in raised.value.message
    assert len(raised.value.message) < 400


JSON_ANSWER = orjson.dumps({"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]})


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (events(YES, STOP), "text/plain"),
        (events(YES, STOP), "application/json"),
        (b"\n: waiting\n\n" + events(YES, STOP), "application/octet-stream"),
        (events(YES) + b"data: " + orjson.dumps(STOP), "text/event-stream"),
        (b"\xef\xbb\xbf" + JSON_ANSWER, "application/json"),
        (b" \n" + JSON_ANSWER, "text/event-stream"),
        (JSON_ANSWER, "text/html"),
    ],
)
async def test_an_answer_is_read_whatever_its_label(body: bytes, content_type: str) -> None:
    async with always(body, content_type) as address:
        client = OpenAIClient(address, **eager())
        try:
            assert (await client.ask(call())).text == "yes"
        finally:
            await client.close()


@pytest.mark.parametrize(
    ("body", "content_type", "kind", "type"),
    [
        (b"", "text/event-stream", ModelAPIError, "empty_response"),
        (b" \n", "application/json", ModelAPIError, "empty_response"),
        (b"<html>starting</html>", "text/event-stream", ModelAPIError, "wrong_content_type"),
        (b"no upstream", "text/plain", ModelAPIError, "wrong_content_type"),
        (b"data: ", "text/event-stream", ModelAPIError, "stream_truncated"),
        (JSON_ANSWER[:-9], "application/json", ModelAPIError, "stream_truncated"),
        (events(YES) + b'data: {"choices": [{"del', "text/event-stream", ModelAPIError, "stream_truncated"),
        (b'[{"error": {"code": 503, "message": "busy"}}]', "application/json", ModelAPIError, "server_error"),
        (b'{"detail": "no such thing"}', "application/json", InvalidResponseError, "stream_error"),
        (b'{"x": 1}', "application/json", ModelAPIError, "no_choices"),
        (events(b"[DONE]"), "text/event-stream", ModelAPIError, "no_choices"),
    ],
)
async def test_bodies_that_are_no_answer(body: bytes, content_type: str, kind: type[RequestError], type: str) -> None:
    time = FakeTime()
    async with always(body, content_type) as address:
        client = OpenAIClient(address, **eager(), clock=time.clock, sleep=time.sleep)
        try:
            error = await failure(client.ask(call()), kind)
        finally:
            await client.close()
    assert (error.type, len(time.slept)) == (type, 2 if kind is ModelAPIError else 0)


# --- errors inside an answer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        {"error": {"message": "Worker is gone", "code": 502}},
        {"error": {"message": "slow down", "type": "RateLimitError"}},
        {"error": {"message": "x", "status": "RESOURCE_EXHAUSTED"}},
        {"error": "the engine is overloaded"},
        {"object": "error", "message": "queue is full", "type": "ServiceUnavailableError"},
        {"error_message": "busy", "error_code": 503},
        {"detail": "upstream timed out"},
        {"choices": None, "base_resp": {"status_code": 1002, "status_msg": "rate limit"}},
        [{"error": {"code": 503, "message": "busy"}}],
        chunk(choice={"error": {"code": 502, "message": "gone"}}, content="a"),
        chunk("error", choice={"error": {"code": 502, "message": "gone"}}),
        chunk("error"),
    ],
)
def test_a_passing_error_inside_an_answer_may_be_tried_again(error: Any) -> None:
    with pytest.raises(TransientError):
        read(events(chunk(content="Sun"), error))


@pytest.mark.parametrize(
    ("error", "kind", "type", "words"),
    [
        ({"error": {"message": "quota exceeded"}}, InvalidResponseError, "stream_error", "quota exceeded"),
        ({"error": "model crashed"}, InvalidResponseError, "stream_error", "model crashed"),
        (
            {"error": {"code": 400, "type": "E", "message": "prompt is longer than 8"}},
            ModelAPIError,
            "context_length_exceeded",
            "longer than 8",
        ),
        (
            {"error": {"message": "over", "type": "budget_exceeded", "code": 429}},
            ModelAPIError,
            "budget_exceeded",
            "over",
        ),
        (
            {"detail": [{"loc": ["body", "n"], "msg": "no integer"}]},
            InvalidResponseError,
            "stream_error",
            "body.n: no integer",
        ),
        (
            {"error": {"code": 400, "message": "failed", "metadata": {"raw": "no such image"}}},
            InvalidResponseError,
            "stream_error",
            "failed: no such image",
        ),
    ],
)
def test_a_lasting_error_inside_an_answer_has_the_providers_words(
    error: Any, kind: type[RequestError], type: str, words: str
) -> None:
    with pytest.raises(kind) as raised:
        read(events(chunk(content="Sun"), error))
    assert (raised.value.type, words in raised.value.message) == (type, True)

"""The OpenAI client.  Behaviour common to all clients is tested in test_model_conformance."""

from __future__ import annotations

import asyncio
import itertools
import logging
import pickle
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import aiohttp
import aiohttp.web
import orjson
import pytest

from batchray.errors import (
    ConfigError,
    DeadlineExceededError,
    InvalidResponseError,
    ModelAPIError,
    RequestError,
)
from batchray.models import CallTimeouts, RetryPolicy, ToolSpec, make_client
from batchray.models.openai import OpenAIClient
from batchray.models.openai_request import request_body
from batchray.schema import (
    Base64Image,
    ImageContent,
    LettaImage,
    Message,
    MessageToolReturn,
    ReasoningContent,
    ToolCall,
    ToolCallContent,
    ToolReturnContent,
    UrlImage,
)
from tests.builders.model_calls import KEY, PATIENT, FakeTime, HeldTime, always, call, eager, failure, message
from tests.polling import wait_until
from tests.provider_server import ProviderServer, run_in_thread


@pytest.fixture
async def server() -> AsyncIterator[ProviderServer]:
    async with ProviderServer() as server:
        yield server


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
async def client(server: ProviderServer, time: FakeTime) -> AsyncIterator[OpenAIClient]:
    """A client whose waits take no time; its connections and timeouts are real."""
    async with opened(server.base_url, clock=time.clock, sleep=time.sleep) as client:
        yield client


@asynccontextmanager
async def opened(base_url: str, api_key: str | None = KEY, **settings: Any) -> AsyncIterator[OpenAIClient]:
    client = OpenAIClient(base_url, api_key, **{**eager(), **settings})
    try:
        yield client
    finally:
        await client.close()


# --- answers ---------------------------------------------------------------------------------------------------------


async def test_a_streamed_reply_is_returned_whole(client: OpenAIClient, server: ProviderServer) -> None:
    reply = await client.ask(call("hi [[cached:3]]"))
    assert reply.text == "tok0 tok1 tok2 tok3 tok4 "
    assert (reply.finish_reason, reply.usage.completion_tokens, reply.usage.cached_input_tokens) == ("stop", 5, 3)
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 5
    assert server.calls[0].authorization == f"Bearer {KEY}"


async def test_reasoning_is_kept_apart_and_counted(client: OpenAIClient) -> None:
    reply = await client.ask(call("[[reasoning:let me see]][[say:it is so]]"))
    assert (reply.reasoning, reply.text, reply.usage.reasoning_tokens) == ("let me see", "it is so", 3)


@pytest.mark.parametrize("variant", ["", "[[lateids]]", "[[crlf]]", "[[json]]", "[[nodone]]", "[[gap:0.001]]"])
async def test_parallel_tool_calls_are_assembled_from_their_pieces(client: OpenAIClient, variant: str) -> None:
    text = f'[[tool:calculate {{"expression": "1 + 1"}}]][[tool:look_up {{"key": "a"}}]][[tool:now]]{variant}'
    reply = await client.ask(call(text))
    assert [(each.id, each.name, each.arguments) for each in reply.tool_calls] == [
        ("call_1_0", "calculate", '{"expression": "1 + 1"}'),
        ("call_1_1", "look_up", '{"key": "a"}'),
        ("call_1_2", "now", "{}"),
    ]
    assert reply.finish_reason == "tool_calls"


@pytest.mark.parametrize(("variant", "kept"), [("[[noids]]", []), ("[[sameids]]", ["call_same"])])
async def test_missing_and_duplicate_tool_call_ids_are_replaced(
    server: ProviderServer, variant: str, kept: list[str]
) -> None:
    fresh = (f"call_{i:024x}" for i in itertools.count())
    async with opened(server.base_url, ids=lambda: next(fresh)) as client:
        reply = await client.ask(call("[[tool:a {}]][[tool:b {}]]" + variant))
    new = [f"call_{i:024x}" for i in range(2 - len(kept))]
    assert [each.id for each in reply.tool_calls] == [*kept, *new]


async def test_a_servers_own_id_is_kept_even_if_it_repeats_an_earlier_one(client: OpenAIClient) -> None:
    earlier = message("assistant", tool_calls=[ToolCall.of("call_same", "a", "{}")])
    reply = await client.ask(call(messages=[message("user", "[[tool:a {}]][[sameids]]"), earlier]))
    assert [each.id for each in reply.tool_calls] == ["call_same"]


async def test_a_made_up_id_has_the_form_that_mistral_accepts(client: OpenAIClient) -> None:
    reply = await client.ask(call("[[tool:a {}]][[tool:a {}]][[noids]]"))
    first, second = (each.id for each in reply.tool_calls)
    assert first != second
    assert all(re.fullmatch("[a-zA-Z0-9]{9}", each) for each in (first, second))


async def test_the_first_token_is_the_first_delta_with_content(server: ProviderServer) -> None:
    ticks = itertools.count(1000)
    async with opened(server.base_url, clock=lambda: float(next(ticks))) as client:
        plain = await client.ask(call())
        whole = await client.ask(call("[[json]]"))
    assert plain.first_token_ns is not None
    assert plain.first_token_ns % 1_000_000_000 == 0
    assert whole.first_token_ns is None


async def test_an_unstreamed_reply_is_accepted(client: OpenAIClient) -> None:
    reply = await client.ask(call("[[json]][[reasoning:hm]][[say:a b]]"))
    assert (reply.text, reply.reasoning, reply.usage.completion_tokens) == ("a b", "hm", 3)
    unstreamed = await client.ask(call(body={"stream": False}))
    assert unstreamed.text == "tok0 tok1 tok2 tok3 tok4 "


async def test_a_reply_cut_at_its_limit_has_finish_reason_length(client: OpenAIClient) -> None:
    assert (await client.ask(call("[[finish:length]]"))).finish_reason == "length"
    cut = await client.ask(call("[[badargs]][[finish:length]]"))
    assert (cut.finish_reason, list(cut.tool_calls)) == ("length", [])


async def test_a_missing_done_is_accepted_after_a_finish_reason(client: OpenAIClient, time: FakeTime) -> None:
    assert (await client.ask(call("[[nodone]]"))).text == "tok0 tok1 tok2 tok3 tok4 "
    assert time.slept == []


async def test_calls_share_connections(client: OpenAIClient, server: ProviderServer) -> None:
    for variant in ("", "[[nodone]]", "[[json]]", "[[say:a]]"):
        await client.ask(call(variant))
    await failure(client.ask(call("[[status:400]]")), ModelAPIError)
    assert server.n_connections == 1


async def test_many_calls_run_at_once(server: ProviderServer) -> None:
    async with opened(server.base_url) as client:
        waiting = [asyncio.create_task(client.ask(call("[[stall]]"))) for _ in range(150)]
        await wait_until(lambda: server.n_in_flight >= 150)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


# --- requests --------------------------------------------------------------------------------------------------------


async def test_the_body_holds_the_conversation_the_tools_and_the_agents_fields(
    client: OpenAIClient, server: ProviderServer
) -> None:
    tool = ToolSpec("calculate", "Works it out.", {"type": "object", "properties": {}})
    await client.ask(call(system="Be brief.", tools=[tool], body={"temperature": 0.5, "tool_choice": "auto"}))
    assert server.calls[0].body == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "calculate",
                    "description": "Works it out.",
                    "parameters": {"type": "object", "properties": {}},
                },
            }
        ],
        "temperature": 0.5,
        "tool_choice": "auto",
    }


ASKED = [ToolCall.of("call_1", "add", '{"a": 1}'), ToolCall.of("call_2", "add", "{}")]
RETURNS = [
    MessageToolReturn(tool_call_id="call_1", status="success", func_response="2"),
    MessageToolReturn(tool_call_id="call_2", status="error", func_response="no a"),
]
CHAT_CALLS = [
    {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
    {"id": "call_2", "type": "function", "function": {"name": "add", "arguments": "{}"}},
]
CHAT_RETURNS = [
    {"role": "tool", "tool_call_id": "call_1", "content": "2"},
    {"role": "tool", "tool_call_id": "call_2", "content": "no a"},
]
THOUGHT = ReasoningContent(is_native=True, reasoning="hm")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (message("user"), [{"role": "user", "content": ""}]),
        (
            message("user", "a", "b", name="Ann"),
            [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                    "name": "Ann",
                }
            ],
        ),
        (message("user", "a", name="Ann Lee"), [{"role": "user", "content": "a"}]),
        (
            message(
                "user",
                "look",
                ImageContent(source=UrlImage(url="http://h/a.png")),
                ImageContent(source=Base64Image(media_type="image/jpeg", data="QUJD", detail="low")),
                ImageContent(source=LettaImage(file_id="f", media_type="image/gif", data="QUJD")),
            ),
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "look"},
                        {"type": "image_url", "image_url": {"url": "http://h/a.png"}},
                        {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,QUJD", "detail": "low"}},
                        {"type": "image_url", "image_url": {"url": "data:image/gif;base64,QUJD"}},
                    ],
                }
            ],
        ),
        (message("system", "be", " brief"), [{"role": "system", "content": "be brief"}]),
        (message("summary", "earlier"), [{"role": "user", "content": "earlier"}]),
        (message("assistant", THOUGHT, "yes"), [{"role": "assistant", "content": "yes"}]),
        (message("assistant", THOUGHT), [{"role": "assistant", "content": ""}]),
        (
            message("assistant", tool_calls=ASKED),
            [{"role": "assistant", "content": None, "tool_calls": CHAT_CALLS}],
        ),
        (
            message("assistant", "so", ToolCallContent(id="call_9", name="add", input={"a": 1})),
            [
                {
                    "role": "assistant",
                    "content": "so",
                    "tool_calls": [
                        {"id": "call_9", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
                    ],
                }
            ],
        ),
        (message("approval", tool_calls=ASKED), [{"role": "assistant", "content": None, "tool_calls": CHAT_CALLS}]),
        (message("approval", approvals=RETURNS), CHAT_RETURNS),
        (message("tool", "2", "no a", tool_returns=RETURNS, tool_call_id="call_1"), CHAT_RETURNS),
        (message("tool", "2", tool_call_id="call_1"), CHAT_RETURNS[:1]),
        (message("function", "2", tool_call_id="call_1"), CHAT_RETURNS[:1]),
        (message("user", ToolReturnContent(tool_call_id="call_1", content="2", is_error=False)), CHAT_RETURNS[:1]),
    ],
)
def test_each_kind_of_message_is_sent_in_the_protocols_form(given: Message, expected: list[dict[str, Any]]) -> None:
    assert request_body(call(messages=[given]))["messages"] == expected


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (message("user", ImageContent(source=LettaImage(file_id="file-1"))), "file_id"),
        (message("assistant", ImageContent(source=UrlImage(url="http://h/a.png"))), "image"),
        (message("user", ToolCallContent(id="call_1", name="add", input={})), "tool_call"),
        (message("tool", "2"), "tool_call_id"),
        (message("user", "\ud800"), "JSON"),
    ],
)
async def test_content_that_the_protocol_cannot_express_is_refused_by_name(
    client: OpenAIClient, server: ProviderServer, given: Message, named: str
) -> None:
    error = await failure(client.ask(call(messages=[given])), ModelAPIError)
    assert error.type == "unsupported_content"
    assert named in error.message
    assert server.calls == []


# --- faults that pass ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        "[[status:408 x2]]",
        "[[status:409 x2]]",
        "[[error:429 x2]]",
        "[[error:server_error x2]]",
        "[[error:500 x2]][[json]]",
    ],
)
async def test_a_transient_failure_is_retried_with_a_new_reply(
    client: OpenAIClient, server: ProviderServer, time: FakeTime, fault: str
) -> None:
    assert (await client.ask(call(fault))).text == "tok0 tok1 tok2 tok3 tok4 "
    assert server.n_calls == 3
    assert sum(time.slept) < 10


@pytest.mark.parametrize(
    ("fault", "type", "said"),
    [
        ("[[status:408]]", "timeout", "status 408 after 3 attempts: asked for status 408"),
        ("[[status:409]]", "conflict", "status 409 after 3 attempts"),
        ("[[429:message=slow down]]", "rate_limited", "status 429 after 3 attempts: slow down"),
        ("[[status:500]]", "server_error", "status 500 after 3 attempts"),
        ("[[reset]]", "connection_error", "connection error after 3 attempts"),
        ("[[error:503]]", "server_error", "status 503 after 3 attempts: broke off with 503"),
    ],
)
async def test_the_error_after_the_last_retry_has_the_providers_message(
    client: OpenAIClient, server: ProviderServer, fault: str, type: str, said: str
) -> None:
    error = await failure(client.ask(call(fault)), ModelAPIError)
    assert error.type == type
    assert error.message.startswith(f"local: {said}")
    assert server.n_calls == 3


async def test_the_limit_of_an_attempt_is_not_extended_by_bytes(server: ProviderServer, time: FakeTime) -> None:
    limits = CallTimeouts(connect_s=2, idle_s=2, call_s=0.1)
    async with opened(server.base_url, timeouts=limits, clock=time.clock, sleep=time.sleep) as client:
        error = await failure(client.ask(call("[[gap:0.02]][[tokens:100]]")), ModelAPIError)
    assert error.type == "timeout"
    assert "no whole answer within 0.1 s" in error.message


async def test_no_retries_means_one_attempt(server: ProviderServer) -> None:
    async with opened(server.base_url, retry=RetryPolicy(max_retries=0)) as client:
        error = await failure(client.ask(call("[[status:500]]")), ModelAPIError)
    assert "after 1 attempt:" in error.message
    assert server.n_calls == 1


async def test_a_retry_is_logged_without_text_and_key(client: OpenAIClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        await client.ask(call("a secret question [[status:500 message={key} x1]]"))
    logged = [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]
    assert len(logged) == 1
    assert "provider local: status 500; retry 1 of 2 in" in logged[0]
    assert KEY not in caplog.text
    assert "secret" not in caplog.text


# --- waits and deadlines ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "wait_s"), [("retry-after=7", 7.0), ("retry-after=1.25", 1.25), ("retry-after-ms=2500", 2.5)]
)
@pytest.mark.parametrize("status", [429, 503])
async def test_a_retry_after_is_obeyed_exactly(
    client: OpenAIClient, time: FakeTime, status: int, header: str, wait_s: float
) -> None:
    await client.ask(call(f"[[{status}:{header} x1]]"))
    assert time.slept == [pytest.approx(wait_s)]


async def test_a_retry_after_date_is_obeyed(server: ProviderServer, time: FakeTime) -> None:
    before = datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC).timestamp()
    date = "Sun,_06_Nov_1994_08:49:47_GMT"
    async with opened(server.base_url, clock=time.clock, sleep=time.sleep, wall_clock=lambda: before) as client:
        await client.ask(call(f"[[429:retry-after={date} x1]]"))
    assert time.slept == [10.0]


async def test_no_call_starts_while_a_call_waits_for_a_retry_after(server: ProviderServer) -> None:
    time = HeldTime()
    async with opened(server.base_url, clock=time.clock, sleep=time.sleep) as client:
        told = asyncio.create_task(client.ask(call("told [[429:retry-after=1 x1]]")))
        await wait_until(lambda: time.slept)
        others = [asyncio.create_task(client.ask(call(f"other {i}"))) for i in range(20)]
        await wait_until(lambda: len(time.slept) == 2)  # one sleep for all of them
        assert server.n_calls == 1
        time.release()
        await asyncio.gather(told, *others)
    assert server.n_calls == 22


async def test_a_wait_that_the_provider_asks_for_moves_the_deadline(
    client: OpenAIClient, server: ProviderServer, time: FakeTime
) -> None:
    reply = await client.ask(call("[[429:retry-after=60 x3]]", deadline=time.now + 30))
    assert (reply.finish_reason, server.n_calls) == ("stop", 4)
    assert time.now >= 1180


async def test_a_backoff_past_the_deadline_fails_at_once(server: ProviderServer, time: FakeTime) -> None:
    patient = RetryPolicy(max_retries=5, base_s=1000, cap_s=1000)
    async with opened(server.base_url, retry=patient, clock=time.clock, sleep=time.sleep) as client:
        error = await failure(client.ask(call("[[status:500]]", deadline=time.now + 1)), ModelAPIError)
    assert error.type == "server_error"
    assert "status 500 at attempt 1" in error.message
    assert time.slept == []


@pytest.mark.parametrize("text", ["[[stall:start]]", "[[stall]]", "[[gap:0.02]][[tokens:1000]]"])
async def test_the_deadline_cuts_an_answer_short(server: ProviderServer, text: str) -> None:
    async with opened(server.base_url) as client:
        deadline = asyncio.get_running_loop().time() + 0.15
        error = await failure(client.ask(call(text, deadline=deadline)), DeadlineExceededError)
    assert error.type == "deadline_exceeded"
    assert server.n_calls <= 1


async def test_a_call_past_its_deadline_is_not_sent(
    client: OpenAIClient, server: ProviderServer, time: FakeTime
) -> None:
    error = await failure(client.ask(call(deadline=time.now)), DeadlineExceededError)
    assert (error.type, server.n_calls) == ("deadline_exceeded", 0)


# --- faults that stay ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("directive", "type"),
    [
        ("400:", "bad_request"),
        ("401:", "authentication_error"),
        ("402:", "insufficient_quota"),
        ("403:", "permission_denied"),
        ("404:", "not_found"),
        ("413:", "request_too_large"),
        ("418:", "refused"),
        ("422:", "bad_request"),
        ("307:location=http://127.0.0.1:9/", "refused"),
        ("400:code=context_length_exceeded", "context_length_exceeded"),
        ("400:message=This model's maximum context length is 8 tokens", "context_length_exceeded"),
        ("429:code=insufficient_quota", "insufficient_quota"),
        ("error:context_length_exceeded", "context_length_exceeded"),
    ],
)
async def test_a_permanent_refusal_is_not_retried(
    client: OpenAIClient, server: ProviderServer, directive: str, type: str
) -> None:
    error = await failure(client.ask(call(f"[[{directive}]]")), ModelAPIError)
    assert (error.type, server.n_calls) == (type, 1)
    assert error.message.startswith("local: ")


@pytest.mark.parametrize(
    ("directive", "kind", "type"),
    [
        ("longline:5000000", InvalidResponseError, "malformed_stream"),
        ("error:content_filter", InvalidResponseError, "stream_error"),
        ("tool: {}", InvalidResponseError, "malformed_stream"),
    ],
)
async def test_a_malformed_reply_is_not_retried(
    client: OpenAIClient, server: ProviderServer, directive: str, kind: type[RequestError], type: str
) -> None:
    error = await failure(client.ask(call(f"[[{directive}]]")), kind)
    assert (error.type, server.n_calls) == (type, 1)


# --- odd answers, as odd servers give them ---------------------------------------------------------------------------


@asynccontextmanager
async def answering(body: bytes, content_type: str = "text/event-stream") -> AsyncIterator[OpenAIClient]:
    """A client of a server that gives this body to every call."""
    async with always(body, content_type) as address, opened(address) as client:
        yield client


def events(*chunks: Any) -> bytes:
    return b"".join(b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in chunks)


def choice(finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


@pytest.mark.parametrize(
    "pieces",
    [
        # One index for all of them; no index at all; an object for arguments; an id in each piece.
        [{"index": 0, "id": "a", "function": {"name": "f"}}, {"index": 0, "id": "b", "function": {"name": "g"}}],
        [{"id": "a", "function": {"name": "f"}}, {"id": "b", "function": {"name": "g"}}],
        [{"index": 0, "id": "a", "function": {"name": "f", "arguments": {}}}, {"id": "b", "function": {"name": "g"}}],
        [
            {"index": 0, "id": "a", "function": {"name": "f", "arguments": "{"}},
            {"index": 0, "id": "other", "function": {"arguments": "}"}},
            {"index": 3, "id": "b", "function": {"name": "g"}},
        ],
    ],
)
async def test_unusual_tool_call_deltas_are_understood(pieces: list[dict[str, Any]]) -> None:
    deltas = [choice(tool_calls=[piece]) for piece in pieces]
    async with answering(events(*deltas, choice("tool_calls"))) as client:
        reply = await client.ask(call())
    assert [(each.id, each.name, each.arguments) for each in reply.tool_calls] == [("a", "f", "{}"), ("b", "g", "{}")]


async def test_other_choices_empty_events_and_unknown_fields_are_ignored() -> None:
    other = {"choices": [{"index": 1, "delta": {"content": "no"}, "finish_reason": "stop"}]}
    stream = events({"x": 1}, choice(content="yes"), other) + b"data:\n\n" + events(choice("stop", refusal="!"))
    async with answering(stream) as client:
        assert (await client.ask(call())).text == "yes!"


@pytest.mark.parametrize(
    "chunk",
    [
        [],
        1,
        None,
        {"choices": 1},
        {"choices": [1]},
        {"choices": [{"delta": 1}]},
        choice(content=1),
        choice(tool_calls=1),
        choice(tool_calls=[1]),
        choice(tool_calls=[{"index": [], "function": {}}]),
        choice(tool_calls=[{"index": 0, "function": {"name": 1}}]),
        {"choices": [{"delta": {}, "finish_reason": 1}]},
    ],
)
async def test_json_of_the_wrong_shape_is_a_malformed_reply(chunk: Any) -> None:
    async with answering(events(chunk, choice("stop"))) as client:
        error = await failure(client.ask(call()), InvalidResponseError)
    assert error.type == "malformed_stream"


@pytest.mark.parametrize("body", [b"[]", b"{ }}", b'{"choices": [{}]}', b'{"choices": [{"message": {"content": 1}}]}'])
async def test_an_unstreamed_reply_of_the_wrong_shape_is_malformed(body: bytes) -> None:
    async with answering(body, "application/json") as client:
        error = await failure(client.ask(call()), InvalidResponseError)
    assert error.type == "malformed_response"


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403, 500])
@pytest.mark.parametrize("echo", ["{key}", "{masked}", "Bearer {key}", "x" * 290 + " {key}", "{key}" * 9])
async def test_a_key_in_a_providers_error_is_masked(
    client: OpenAIClient, server: ProviderServer, status: int, echo: str
) -> None:
    error = await failure(client.ask(call(f"[[status:{status} message=Incorrect API key: {echo}]]")), ModelAPIError)
    assert "Incorrect API key" in error.message
    assert KEY[:8] not in error.message
    assert len(error.message) < 400
    assert KEY.encode() not in pickle.dumps(error)


async def test_short_keys_and_keys_in_headers_are_masked(server: ProviderServer) -> None:
    headers = {"X-Api-Key": "hunter2", "X-Team": "blue"}
    async with opened(server.base_url, "letmein", headers=headers) as client:
        error = await failure(client.ask(call("[[400:message=letmein hunter2 blue]]")), ModelAPIError)
    assert error.message == "local: status 400: *** *** blue"
    assert server.calls[0].headers["x-api-key"] == "hunter2"


async def test_no_key_is_in_the_clients_repr(server: ProviderServer) -> None:
    async with opened(server.base_url, headers={"X-Api-Key": "hunter2"}) as client:
        await client.ask(call())
        assert repr(client) == f"OpenAIClient(HttpTransport('local', '{server.base_url}'))"


async def test_without_a_key_no_authorization_is_sent(server: ProviderServer) -> None:
    async with opened(server.base_url, None) as client:
        await client.ask(call())
    assert server.calls[0].authorization == ""


@pytest.mark.parametrize(
    ("base_url", "key"),
    [
        ("ftp://h/v1", KEY),
        ("http:///v1", KEY),
        (f"http://user:{KEY}@h/v1", None),
        ("http://h/v1", f"{KEY}\r\nX: y"),
    ],
)
def test_an_unusable_address_or_key_is_refused_without_showing_it(base_url: str, key: str | None) -> None:
    with pytest.raises(ConfigError) as raised:
        OpenAIClient(base_url, key, name="local")
    assert "'local'" in str(raised.value)
    assert KEY not in str(raised.value)


async def test_a_huge_error_body_is_not_read_whole(client: OpenAIClient) -> None:
    error = await failure(client.ask(call("[[400:fill=3000000 message=too much]]")), ModelAPIError)
    assert (error.type, len(error.message) < 400) == ("bad_request", True)


# --- the client's end, and the server's other ways in ----------------------------------------------------------------


async def test_closing_fails_calls_in_progress_and_later_calls(server: ProviderServer) -> None:
    async with opened(server.base_url) as client:
        waiting = asyncio.create_task(client.ask(call("[[stall]]")))
        await wait_until(lambda: server.calls)
        await client.close()
        assert (await failure(waiting, ModelAPIError)).type == "client_closed"
        assert (await failure(client.ask(call()), ModelAPIError)).type == "client_closed"
    assert server.n_calls == 1


async def test_closing_fails_a_call_that_waits_for_its_retry(server: ProviderServer) -> None:
    is_waiting = asyncio.Event()

    async def sleep(seconds: float) -> None:
        is_waiting.set()
        await asyncio.Event().wait()

    async with opened(server.base_url, sleep=sleep) as client:
        waiting = asyncio.create_task(client.ask(call("[[429:retry-after=60]]")))
        await is_waiting.wait()
        await client.close()
        assert (await failure(waiting, ModelAPIError)).type == "client_closed"


async def test_a_cancelled_call_ends_at_once(server: ProviderServer) -> None:
    async with opened(server.base_url) as client:
        waiting = asyncio.create_task(client.ask(call("[[stall]]")))
        await wait_until(lambda: server.calls)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


def test_a_server_in_a_thread_serves_a_client_made_by_name() -> None:
    async def ask(base_url: str) -> str:
        client = make_client("local", "openai", base_url + "/", KEY, timeouts=PATIENT, retry=RetryPolicy(1))
        try:
            return (await client.ask(call("[[say:a b]]"))).text
        finally:
            await client.close()

    with run_in_thread() as server:
        assert asyncio.run(ask(server.base_url)) == "a b"
        assert [each.text for each in server.calls] == ["[[say:a b]]"]


async def test_the_ledger_can_be_read_over_http(client: OpenAIClient, server: ProviderServer) -> None:
    await client.ask(call("one"))
    address = server.base_url.removesuffix("/v1") + "/ledger"
    async with aiohttp.ClientSession() as session:
        async with session.get(address) as response:
            ledger = await response.json()
        async with session.delete(address) as response:
            assert response.status == 200
    assert (ledger["n_calls"], ledger["calls"][0]["text"], server.calls) == (1, "one", [])

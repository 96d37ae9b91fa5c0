"""The Anthropic client.  Behaviour common to all clients is tested in test_model_conformance."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from batchray.agents import Run, ToolLoop
from batchray.agents.tools import load_tools
from batchray.config import Agent
from batchray.errors import ConfigError, InvalidResponseError, ModelAPIError
from batchray.models import ModelCall, ModelReply, ToolSpec, make_client
from batchray.models.anthropic import BASE_URL, AnthropicClient
from batchray.models.anthropic_models import MAX_TOKENS
from batchray.models.anthropic_reply import PartialMessage
from batchray.models.anthropic_request import request_body
from batchray.models.connection import Connection
from batchray.models.http import HttpTransport
from batchray.models.responses_request import request_body as responses_body
from batchray.models.sse import Event
from batchray.schema import (
    AgentRequest,
    Message,
    MessageToolReturn,
    OmittedReasoningContent,
    ReasoningContent,
    RedactedReasoningContent,
    TextContent,
    ToolCall,
    ToolReturnContent,
    Usage,
    new_id,
)
from tests.builders.model_calls import KEY, FakeTime, always, call, eager, failure, message
from tests.provider_messages import signature
from tests.provider_server import ProviderServer

EPHEMERAL = {"type": "ephemeral"}
ADD = ToolSpec("add", "Adds.", {"type": "object", "properties": {}})
LOOK = ToolSpec("look", "Looks.", {"type": "object", "properties": {}})


@pytest.fixture
async def server() -> AsyncIterator[ProviderServer]:
    async with ProviderServer() as server:
        yield server


@pytest.fixture
async def client(server: ProviderServer) -> AsyncIterator[AnthropicClient]:
    async with opened(server.root_url) as client:
        yield client


@asynccontextmanager
async def opened(base_url: str, api_key: str | None = KEY, **settings: Any) -> AsyncIterator[AnthropicClient]:
    client = AnthropicClient(base_url, api_key, **{**eager(), **settings})
    try:
        yield client
    finally:
        await client.close()


# --- replies ---------------------------------------------------------------------------------------------------------


async def test_a_streamed_reply_is_returned_whole(client: AnthropicClient, server: ProviderServer) -> None:
    reply = await client.ask(call())
    assert (reply.text, reply.finish_reason) == ("tok0 tok1 tok2 tok3 tok4 ", "stop")
    headers = server.calls[0].headers
    assert (headers["x-api-key"], headers["anthropic-version"]) == (KEY, "2023-06-01")
    assert "authorization" not in headers


@pytest.mark.parametrize("variant", ["", "[[json]]"])
async def test_prompt_tokens_include_cache_reads_and_writes(client: AnthropicClient, variant: str) -> None:
    plain = await client.ask(call(f"[[cached:0]][[written:0]]{variant}"))
    reply = await client.ask(call(f"[[cached:7]][[written:5]]{variant}"))
    assert reply.usage == Usage(
        prompt_tokens=plain.usage.prompt_tokens,
        completion_tokens=5,
        total_tokens=plain.usage.prompt_tokens + 5,
        cached_input_tokens=7,
        cache_write_tokens=5,
    )


async def test_the_usage_of_a_broken_attempt_is_reported_separately(server: ProviderServer) -> None:
    lost: list[Usage] = []
    async with opened(server.root_url, **{**eager(), "sleep": FakeTime().sleep}) as client:
        reply = await client.ask(call("[[reset:body x2]]", on_wasted_usage=lost.append))
    assert reply.usage.completion_tokens == 5
    assert [usage.prompt_tokens for usage in lost] == [reply.usage.prompt_tokens] * 2


@pytest.mark.parametrize("variant", ["", "[[crlf]]", "[[json]]", "[[nodone]]", "[[gap:0.001]]"])
async def test_parallel_tool_calls_are_assembled_from_their_pieces(client: AnthropicClient, variant: str) -> None:
    text = f'[[tool:calculate {{"expression":"1 + 1"}}]][[tool:look_up {{"key":"a"}}]][[tool:now]]{variant}'
    reply = await client.ask(call(text))
    assert [(each.id, each.name, each.arguments) for each in reply.tool_calls] == [
        ("call_1_0", "calculate", '{"expression":"1 + 1"}'),
        ("call_1_1", "look_up", '{"key":"a"}'),
        ("call_1_2", "now", "{}"),
    ]
    assert reply.finish_reason == "tool_calls"


@pytest.mark.parametrize("variant", ["", "[[json]]"])
async def test_thinking_is_kept_with_its_signature_and_counted(client: AnthropicClient, variant: str) -> None:
    reply = await client.ask(call(f"[[reasoning:let me see]][[redacted:QUJD]][[say:it is so]]{variant}"))
    assert reply.content == [
        ReasoningContent(is_native=True, reasoning="let me see", signature=signature("let me see")),
        RedactedReasoningContent(data="QUJD"),
        TextContent(text="it is so"),
    ]
    assert reply.usage.reasoning_tokens == 3


async def test_omitted_thinking_becomes_a_part(client: AnthropicClient) -> None:
    reply = await client.ask(call("[[reasoning:let me see]][[omitted]][[say:it is so]]"))
    assert reply.content == [OmittedReasoningContent(signature=signature("")), TextContent(text="it is so")]


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "context_length"),
    ],
)
async def test_a_stop_reason_becomes_a_finish_reason(
    client: AnthropicClient, stop_reason: str, finish_reason: str
) -> None:
    assert (await client.ask(call(f"[[finish:{stop_reason}]]"))).finish_reason == finish_reason


async def test_an_unknown_stop_reason_is_an_error(client: AnthropicClient) -> None:
    error = await failure(client.ask(call("[[finish:one_of_tomorrow]]")), InvalidResponseError)
    assert error.type == "unknown_finish_reason"
    assert "'one_of_tomorrow'" in error.message


async def test_a_refusal_has_the_providers_explanation(client: AnthropicClient) -> None:
    error = await failure(client.ask(call("[[finish:refusal]]")), InvalidResponseError)
    assert (error.type, error.message) == ("refusal", "local: the model refused to answer: it was asked for")


@pytest.mark.parametrize("details", [None, 1, {}, {"explanation": 1}])
async def test_a_refusal_needs_no_explanation(details: Any) -> None:
    end = {"type": "message_delta", "delta": {"stop_reason": "refusal", "stop_details": details}}
    assert (await failure(answered(events(end)), InvalidResponseError)).type == "refusal"


async def test_a_paused_turn_is_continued(client: AnthropicClient, server: ProviderServer) -> None:
    reply = await client.ask(call("[[pause]][[reasoning:let me look]][[say:found]]"))
    first, second = (each.body["messages"] for each in server.calls)
    assert second[:-1] == first
    assert second[-1]["role"] == "assistant"
    assert second[-1]["content"] == [
        {"type": "thinking", "thinking": "let me look", "signature": signature("let me look")},
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "a"}},
        {
            "type": "web_search_tool_result",
            "tool_use_id": "srvtoolu_1",
            "content": [{"type": "web_search_result", "title": "A", "url": "http://h/a", "encrypted_content": "QUJD"}],
        },
    ]
    assert (reply.text, reply.finish_reason) == ("found", "stop")
    assert reply.usage.reasoning_tokens == 6  # of both answers


async def test_a_turn_is_given_up_after_many_pauses(client: AnthropicClient, server: ProviderServer) -> None:
    error = await failure(client.ask(call("[[finish:pause_turn]]")), InvalidResponseError)
    assert (error.type, server.n_calls) == ("turn_paused", 17)


async def test_a_reply_after_tools_may_be_empty(client: AnthropicClient) -> None:
    asked = message("assistant", tool_calls=[ToolCall.of("call_1", "add", "{}")])
    returned = message("tool", tool_returns=[MessageToolReturn(tool_call_id="call_1", status="success")])
    reply = await client.ask(call(messages=[message("user", "[[nochoices]]"), asked, returned]))
    assert (reply.content, reply.finish_reason) == ([], "stop")


async def test_the_first_token_may_be_of_any_kind(server: ProviderServer) -> None:
    ticks = itertools.count(1000)
    async with opened(server.root_url, clock=lambda: float(next(ticks))) as client:
        for text in ("hi", "[[tool:add {}]]", "[[redacted:QUJD]]", "[[reasoning:hm]]"):
            assert (await client.ask(call(text))).first_token_ns is not None
        assert (await client.ask(call("[[json]]"))).first_token_ns is None


# --- requests --------------------------------------------------------------------------------------------------------


def body(*messages: Message, **fields: Any) -> dict[str, Any]:
    return request_body(ModelCall(**{"model": "m", "messages": messages, **fields}))


def test_the_body_holds_the_agents_fields_and_a_limit() -> None:
    assert body(message("user", "hi"), body={"temperature": 0.5}) == {
        "model": "m",
        "max_tokens": MAX_TOKENS,
        "stream": True,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "temperature": 0.5,
    }
    given = body(message("user", "hi"), body={"max_tokens": 9, "stream": False, "model": "other", "messages": []})
    assert (given["max_tokens"], given["stream"], given["model"], len(given["messages"])) == (9, False, "m", 1)


def test_consecutive_messages_of_one_role_are_joined_with_results_first() -> None:
    turns = body(
        message("user", "a"),
        message("summary", "b"),
        message("assistant", "c"),
        message("approval", tool_calls=[ToolCall.of("1", "add", '{"a": 1}'), ToolCall.of("2", "add", "")]),
        message("approval", approvals=[MessageToolReturn(tool_call_id="1", status="success", func_response="3")]),
        message("user", "d", ToolReturnContent(tool_call_id="2", content="", is_error=True)),
    )["messages"]
    assert turns == [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "c"},
                {"type": "tool_use", "id": "1", "name": "add", "input": {"a": 1}},
                {"type": "tool_use", "id": "2", "name": "add", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": "3"},
                {"type": "tool_result", "tool_use_id": "2", "is_error": True},
                {"type": "text", "text": "d"},
            ],
        },
    ]


def test_system_messages_follow_the_agents_prompt_and_empty_texts_are_left_out() -> None:
    given = body(message("system", "One."), message("user", "", "a"), message("user", " "), message("system", "Two."))
    assert given["system"] == [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}]
    assert given["messages"] == [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    own = body(message("system", "One."), system="Zero.", body={"cache_control": None, "system": "Other."})
    assert [block["text"] for block in own["system"]] == ["Zero.", "One."]
    assert body(message("user", "a"), body={"system": "Other."})["system"] == "Other."


def test_the_providers_own_tools_come_first() -> None:
    search = {"type": "web_search_20250305", "name": "web_search"}
    fields: dict[str, Any] = {"tools": [ADD], "body": {"tools": [search]}, "system": "s"}
    assert [tool["name"] for tool in body(message("user", "a"), **fields)["tools"]] == ["web_search", "add"]
    assert body(message("user", "a"), body={"tools": [search]})["tools"] == [search]


def marks(given: dict[str, Any]) -> dict[str, list[Any]]:
    """Return the cache mark, or None, of each tool, system block and content block, by position."""
    blocks = [block for turn in given["messages"] for block in turn["content"]]
    places = {"system": given.get("system", []), "tools": given.get("tools", []), "messages": blocks}
    return {place: [each.get("cache_control") for each in found] for place, found in places.items()}


def test_the_shared_prefix_and_a_continued_conversation_are_marked_for_the_cache() -> None:
    asked = [message("system", "of this request"), message("user", "a", "b")]
    assert marks(body(*asked, system="s", tools=[ADD, LOOK])) == {
        "system": [EPHEMERAL, None],  # the cache's order is tools, system, messages: one mark holds both
        "tools": [None, None],
        "messages": [None, EPHEMERAL],
    }
    assert marks(body(*asked, tools=[ADD, LOOK])) == {
        "system": [None],
        "tools": [None, EPHEMERAL],
        "messages": [None, EPHEMERAL],
    }
    assert marks(body(*asked, system="s"))["messages"] == [None, None]  # nothing follows it


def test_thinking_blocks_are_not_marked() -> None:
    thought = message("assistant", RedactedReasoningContent(data="QUJD"))
    assert marks(body(message("user", "a"), thought, tools=[ADD]))["messages"] == [None, None]


@pytest.mark.parametrize(("given", "sent"), [(None, {}), (EPHEMERAL, {"cache_control": EPHEMERAL})])
def test_an_agent_can_switch_cache_marks_off_or_set_its_own(given: Any, sent: dict[str, Any]) -> None:
    made = body(message("user", "a"), system="s", tools=[ADD], body={"cache_control": given})
    assert marks(made) == {"system": [None], "tools": [None], "messages": [None]}
    assert {name: made[name] for name in made.keys() & {"cache_control"}} == sent


# --- whole runs ------------------------------------------------------------------------------------------------------


def double(n: int) -> int:
    """Double a number."""
    return 2 * n


@pytest.mark.parametrize(
    "thought", ["", "[[reasoning:let me see]]", "[[reasoning:hm]][[omitted]]", "[[redacted:QUJD]]"]
)
async def test_a_run_with_tools_returns_thinking_unchanged(
    client: AnthropicClient, server: ProviderServer, thought: str
) -> None:
    # The server refuses a conversation whose results are missing or whose thinking has changed.
    text = f'{thought}[[tool:double {{"n": 2}}]][[tool:double {{"n": 3}}]][[say:done]]'
    run = Run(new_id("job"), 0, AgentRequest(agent_id="a", input=text))
    loop = ToolLoop(Agent(id="a", model="local/m", tools=(double,)), client, load_tools([double], 5))
    assert await loop.run(run) == "end_turn"
    assert [each.func_response for each in run.messages[1].tool_returns or ()] == ["4", "6"]
    assert (run.messages[-1].text, run.usage.step_count) == ("done", 2)
    assert "unsupported" not in str(server.calls)


# --- unusual replies -------------------------------------------------------------------------------------------------


def events(*given: Any) -> bytes:
    return b"".join(b"data: " + orjson.dumps(each) + b"\n\n" for each in given)


def started(index: Any, **block: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def grown(index: Any, **delta: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": delta}


def ended(reason: Any = "end_turn", **usage: Any) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage}


async def answered(stream: bytes, content_type: str = "text/event-stream") -> ModelReply:
    async with always(stream, content_type) as address, opened(address) as client:
        return await client.ask(call())


async def test_thinking_between_texts_keeps_its_position() -> None:
    stream = [
        started(0, type="text", text=""),
        grown(0, type="text_delta", text="a"),
        started(1, type="thinking", thinking="", signature=""),
        grown(1, type="thinking_delta", thinking="b"),
        grown(1, type="signature_delta", signature="c"),
        started(2, type="text", text="d"),
    ]
    reply = await answered(events(*stream, ended()))
    thought = ReasoningContent(is_native=True, reasoning="b", signature="c")
    assert reply.content == [TextContent(text="a"), thought, TextContent(text="d")]
    assert reply.text == "ad"


async def test_unknown_events_blocks_and_deltas_are_ignored() -> None:
    stream = [
        {"type": "of_tomorrow"},
        started(0, type="of_tomorrow", text="no"),
        started(1, type="text", text="yes"),
        grown(1, type="citations_delta", citation={}),
    ]
    assert (await answered(b"data:\n\n" + events(*stream, ended()))).text == "yes"


@pytest.mark.parametrize(
    "stream",
    [
        [started(2, type="text", text=""), grown(3, type="text_delta", text="ab")],
        [grown(0, type="text_delta", text="a"), grown(0, type="text_delta", text="b")],
        [started(0, type="text", text="a"), started(0, type="text", text=""), grown(0, type="text_delta", text="b")],
        [started(0, type="thinking"), grown(1, type="text_delta", text="a"), grown(1, type="text_delta", text="b")],
        [started(4, type="text", text="ab"), grown(9, type="of_tomorrow"), {}, {"type": None}],
        [started(None, type="text", text="a"), grown(None, type="text_delta", text="b")],
        [{"type": "message_start"}, started(0, type="text", text="ab"), grown(0, type="text_delta", text=None)],
        [
            started(0, type="text", text="ab"),
            {"type": "message_delta", "usage": {}},
            {"type": "message_delta", "delta": None},
        ],
    ],
)
async def test_a_delta_for_a_block_that_has_not_begun_goes_to_the_open_one(stream: list[Any]) -> None:
    assert (await answered(events(*stream, ended()))).text == "ab"


async def test_arguments_go_to_the_open_call_and_may_come_whole() -> None:
    stream = [
        started(0, type="tool_use", id="a", name="add", input={"n": 1}),
        started(1, type="tool_use", id="b", name="add", input={}),
        grown(7, type="input_json_delta", partial_json='{"n": 2}'),
    ]
    reply = await answered(events(*stream, ended()))
    assert [(each.id, each.arguments) for each in reply.tool_calls] == [("a", '{"n":1}'), ("b", '{"n": 2}')]


@pytest.mark.parametrize(
    "end",
    [
        events(ended(), {"type": "message_stop"}) + b"data: [DONE]\n\n",
        events(ended()) + b"data: [DONE] \n\n",
        b"data: [DONE]\n\n",
        events(ended(None), {"type": "message_stop"}),
        events(ended(""), {"type": "message_stop"}),
        b"event: ping\ndata: ping\n\n" + events(ended()),
    ],
)
async def test_a_stream_may_end_as_other_servers_end_it(end: bytes) -> None:
    reply = await answered(events(started(0, type="text", text="a")) + end)
    assert (reply.text, reply.finish_reason) == ("a", "stop")


@pytest.mark.parametrize(
    ("stream", "type"),
    [
        ([started(0, type="text", text=" "), ended()], "no_content"),
        ([started(0, type="thinking", thinking="hm"), ended()], "no_content"),
        ([started(0, type="text", text="a"), ended("tool_use")], "no_tool_calls"),
        ([started(0, type="text", text="a"), ended("of_tomorrow")], "unknown_finish_reason"),
    ],
)
async def test_an_answer_that_says_nothing_or_ends_in_an_unknown_way_is_an_error(stream: list[Any], type: str) -> None:
    assert (await failure(answered(events(*stream)), InvalidResponseError)).type == type


async def test_blocks_of_the_providers_own_tools_go_back_as_they_came() -> None:
    stream = [
        started(0, type="text", text=""),
        started(1, type="server_tool_use", id="srvtoolu_1", name="web_search", input={}),
        grown(1, type="input_json_delta", partial_json='{"query": "a"}'),
        started(2, type="web_search_tool_result", tool_use_id="srvtoolu_1", content=[{"url": "u"}]),
        started(3, type="text", text="found"),
        grown(3, type="citations_delta", citation={"url": "u"}),
        started(4, type="tool_use", id="", name="add", input={"n": 1}),
    ]
    reply = await answered(events(*stream, ended("tool_use")))
    [asked] = reply.tool_calls
    sent = message("assistant", *reply.content, tool_calls=[asked], provider_items=list(reply.items))
    (turn,) = body(sent)["messages"]
    assert turn["content"] == [
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "a"}},
        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [{"url": "u"}]},
        {"type": "text", "text": "found", "citations": [{"url": "u"}]},
        {"type": "tool_use", "id": asked.id, "name": "add", "input": {"n": 1}},
    ]
    # Kept by another protocol, or with other calls: the parts are sent.
    for fields in (
        {"provider_items": [{"type": "reasoning"}]},
        {"provider_items": list(reply.items), "tool_calls": None},
    ):
        (turn,) = body(message("assistant", "found", **fields))["messages"]
        assert turn["content"] == [{"type": "text", "text": "found"}]
    assert responses_body(ModelCall(model="m", messages=[sent]))["input"][0] == {
        "role": "assistant",
        "content": "found",
    }


async def test_a_reply_that_a_message_can_hold_keeps_no_blocks(client: AnthropicClient) -> None:
    assert (await client.ask(call("[[reasoning:hm]][[tool:add {}]]"))).items == []


def test_citations_of_a_paused_turn_go_back() -> None:
    partial = PartialMessage(HttpTransport("p", Connection("p", "http://h", {})))
    begun = started(0, type="text", text="", citations=[{"url": "a"}])
    for event in (begun, grown(0, type="citations_delta", citation={"url": "b"})):
        partial.add(Event(b"", orjson.dumps(event)))
    assert partial.blocks() == [{"type": "text", "text": "", "citations": [{"url": "a"}, {"url": "b"}]}]


async def test_unsigned_reasoning_can_be_sent_back() -> None:
    reply = await answered(
        events(started(0, type="thinking", thinking="hm"), started(1, type="text", text="a"), ended())
    )
    (turn,) = body(message("assistant", *reply.content))["messages"]
    thought = {"type": "thinking", "thinking": "hm", "signature": ""}
    assert turn["content"] == [thought, {"type": "text", "text": "a"}]


async def test_the_latest_value_of_each_usage_count_wins() -> None:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 1}}}
    end = ended(output_tokens=9, input_tokens=None, cache_read_input_tokens=2)
    usage = (await answered(events(start, started(0, type="text", text="a"), end))).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (7, 9, 16)


async def test_an_unstreamed_answer_may_be_a_plain_text() -> None:
    assert (await answered(b'{"content": "ab", "stop_reason": "end_turn"}', "application/json")).text == "ab"


@pytest.mark.parametrize("usage", [1, {"input_tokens": -1}, {"input_tokens": "many"}])
async def test_an_odd_count_does_not_spoil_the_answer(usage: Any) -> None:
    start = {"type": "message_start", "message": {"usage": usage}}
    reply = await answered(events(start, {}, started(0, type="text", text="a"), ended(output_tokens=2.0)))
    assert (reply.text, reply.usage.prompt_tokens, reply.usage.completion_tokens) == ("a", 0, 2)


@pytest.mark.parametrize(
    "event",
    [
        [],
        1,
        None,
        {"type": "message_delta", "delta": {"stop_reason": 1}},
        started([], type="text"),
        started(0),
        {"type": "content_block_start", "index": 0, "content_block": 1},
        grown(7, type="input_json_delta", partial_json="{}"),
        grown(7, type="text_delta", text=1),
        started(0, type="text", text=1),
        started(0, type="thinking", signature=1),
        started(0, type="tool_use", name=1),
    ],
)
async def test_json_of_the_wrong_shape_is_a_malformed_reply(event: Any) -> None:
    text = started(9, type="text", text="a")
    error = await failure(answered(events(text, event, ended())), InvalidResponseError)
    assert error.type == "malformed_stream"


@pytest.mark.parametrize(
    "answer", [b"[]", b"{ }}", b"{}", b'{"content": 1}', b'{"content": [1], "stop_reason": "end_turn"}']
)
async def test_an_unstreamed_reply_of_the_wrong_shape_is_malformed(answer: bytes) -> None:
    error = await failure(answered(answer, "application/json"), InvalidResponseError)
    assert error.type == "malformed_response"


# --- the address, the key, and the provider's own client -------------------------------------------------------------


async def test_a_key_in_a_providers_error_is_masked(client: AnthropicClient) -> None:
    error = await failure(client.ask(call("[[401:message=invalid x-api-key {key} {masked}]]")), ModelAPIError)
    assert error.message == "local: status 401: invalid x-api-key *** ***"
    assert KEY not in repr(client)


async def test_a_client_made_by_name_defaults_to_anthropics_address(server: ProviderServer) -> None:
    made = make_client("anthropic", "anthropic", api_key=KEY)
    assert repr(made) == f"AnthropicClient(HttpTransport('anthropic', '{BASE_URL}'))"
    own = make_client("own", "anthropic", server.root_url + "/")
    assert (await own.ask(call("[[say:a b]]"))).text == "a b"
    assert "x-api-key" not in server.calls[0].headers
    await own.close()


def test_a_key_that_http_cannot_carry_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError) as raised:
        AnthropicClient(api_key=f"{KEY}\r\nX: y", name="local")
    assert KEY not in str(raised.value)

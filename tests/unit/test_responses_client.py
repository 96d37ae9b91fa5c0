"""The client of OpenAI's Responses API.  Behaviour common to all clients is tested in test_model_conformance."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from batchray.agents import Run, ToolLoop
from batchray.agents.checkpoints import Checkpoint
from batchray.agents.tools import load_tools
from batchray.config import Agent
from batchray.errors import InvalidResponseError, ModelAPIError
from batchray.models import ToolSpec, make_client
from batchray.models.responses import ResponsesClient
from batchray.models.responses_request import request_body
from batchray.schema import (
    AgentRequest,
    ApprovalCreate,
    ApprovalReturn,
    Message,
    OmittedReasoningContent,
    ReasoningContent,
    StopReason,
    SummarizedReasoningContent,
    ToolCall,
    ToolReturnContent,
    new_job_id,
)
from batchray.schema.visible import letta_messages
from tests.builders.model_calls import KEY, FakeTime, always, call, eager, failure, message
from tests.provider_server import ProviderServer

ANSWER = "tok0 tok1 tok2 tok3 tok4 "


@pytest.fixture
async def server() -> AsyncIterator[ProviderServer]:
    async with ProviderServer() as server:
        yield server


@pytest.fixture
async def client(server: ProviderServer) -> AsyncIterator[ResponsesClient]:
    async with opened(server.base_url) as client:
        yield client


@asynccontextmanager
async def opened(base_url: str, **settings: Any) -> AsyncIterator[ResponsesClient]:
    time = FakeTime()
    client = ResponsesClient(base_url, KEY, **{**eager(), "clock": time.clock, "sleep": time.sleep, **settings})
    try:
        yield client
    finally:
        await client.close()


# --- answers ---------------------------------------------------------------------------------------------------------

FORMS = ["", "[[json]]", "[[onlyend]]", "[[emptyend]]", "[[crlf]]", "[[nodone]]", "[[future]]", "[[gap:0.001]]"]


@pytest.mark.parametrize("form", FORMS)
async def test_text_reasoning_and_usage_are_read_in_every_form_of_a_reply(client: ResponsesClient, form: str) -> None:
    reply = await client.ask(call(f"[[reasoning:let me see]][[say:it is so]][[cached:3]]{form}"))
    [thought, *_] = reply.content
    assert isinstance(thought, SummarizedReasoningContent)
    assert [each.text for each in thought.summary] == ["let me see"]
    assert (reply.text, reply.finish_reason) == ("it is so", "stop")
    usage = reply.usage
    assert (usage.cached_input_tokens, usage.completion_tokens, usage.reasoning_tokens) == (3, 6, 3)
    assert usage.total_tokens == usage.prompt_tokens + 6
    assert (reply.first_token_ns is None) == (form == "[[json]]")


@pytest.mark.parametrize("form", FORMS)
async def test_parallel_calls_are_read_in_every_form_of_a_reply(client: ResponsesClient, form: str) -> None:
    reply = await client.ask(call(f'[[tool:look_up {{"key": "a, b"}}]][[tool:now]]{form}'))
    found = [(each.id, each.name, each.arguments) for each in reply.tool_calls]
    assert found == [("call_1_0", "look_up", '{"key": "a, b"}'), ("call_1_1", "now", "{}")]
    assert reply.finish_reason == "tool_calls"


async def test_a_refusal_is_text(client: ResponsesClient) -> None:
    assert (await client.ask(call("[[refuse:I will not]]"))).text == "I will not"


async def test_reasoning_without_a_summary_is_known_to_have_taken_place(client: ResponsesClient) -> None:
    reply = await client.ask(call("[[reasoning:secret]][[omitted]]"))
    assert [type(part) for part in reply.content][:1] == [OmittedReasoningContent]
    assert "secret" not in str(reply.items)


async def test_open_reasoning_of_other_servers_is_shown() -> None:
    thought = {"id": "rs_1", "type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Yes."}]}
    async with answered({"status": "completed", "output": [thought, said]}) as client:
        reply = await client.ask(call())
    assert (reply.reasoning, reply.text, reply.usage.total_tokens) == ("hm", "Yes.", 0)
    told = message("assistant", "Yes.", provider_items=list(reply.items))
    assert request_body(call(messages=[told]))["input"] == [thought, said]


async def test_text_that_came_only_as_deltas_counts() -> None:
    deltas = [{"type": "response.output_text.delta", "delta": word} for word in ("It ", "is.")]
    async with streamed(*deltas, {"type": "response.completed", "response": {"output": []}}) as client:
        assert (await client.ask(call())).text == "It is."


async def test_a_call_that_came_without_its_end_counts() -> None:
    item = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": ""}
    events: list[dict[str, Any]] = [
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.function_call_arguments.done", "output_index": 0, "arguments": '{"a": 1}'},
        {"type": "response.completed", "response": {"status": "completed"}},
    ]
    async with streamed(*events) as client:
        reply = await client.ask(call())
    assert [(each.id, each.arguments) for each in reply.tool_calls] == [("c1", '{"a": 1}')]
    assert [item["arguments"] for item in reply.items] == ['{"a": 1}']


@pytest.mark.parametrize("output", [[], [{"type": "function_call", "call_id": "c1", "name": "add"}]], ids=len)
async def test_arguments_that_came_only_as_deltas_count(output: list[dict[str, Any]]) -> None:
    item = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "add", "arguments": ""}
    pieces = [{"type": "response.function_call_arguments.delta", "delta": each} for each in ('{"a"', ": 1}")]
    async with streamed(
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {**pieces[0], "item_id": "fc_1"},
        {**pieces[1], "output_index": 0},
        {"type": "response.completed", "response": {"output": output}},
    ) as client:
        reply = await client.ask(call())
    assert [(each.id, each.arguments) for each in reply.tool_calls] == [("c1", '{"a": 1}')]
    assert [item["arguments"] for item in reply.items] == ['{"a": 1}']


SAID = {"id": "msg_1", "type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Yes."}]}
ODD_ITEMS = [
    [{**SAID, "content": "Yes."}],
    [{**SAID, "content": ["Y", {"type": "text", "text": "es."}]}],
    [{"role": "assistant", "content": {"text": "Yes."}}],
    [{**SAID, "status": 7, "annotations": None, "phase": {"of": "moon"}}],
    [{**SAID, "content": [{"type": "output_text", "text": "Yes.", "logprobs": [{"logprob": float("nan")}]}]}],
    [{"type": "reasoning", "id": None, "summary": "hm", "content": None}, SAID],
    [{"type": "reasoning", "id": 7, "summary": ["h", {"text": "m"}]}, SAID],
    [{"type": "reasoning", "content": "hm"}, SAID],
    [{"type": "reasoning"}, {"type": "dream"}, {}, SAID],
]


@pytest.mark.parametrize("items", ODD_ITEMS, ids=range(len(ODD_ITEMS)))
async def test_an_invalid_value_of_an_unused_field_does_not_spoil_an_answer(items: list[dict[str, Any]]) -> None:
    body = {"status": "completed", "output": items, "usage": {"input_tokens": -1, "output_tokens": "3"}}
    lines = [{"type": "response.output_item.done", "item": item} for item in items]
    end = {"type": "response.completed", "response": {"usage": {"output_tokens": 3.5, "input_tokens_details": []}}}
    for one in (answered(body), streamed(*lines, end)):
        async with one as client:
            reply = await client.ask(call())
        assert (reply.text, reply.usage.prompt_tokens, reply.usage.completion_tokens) == ("Yes.", 0, 3)
        kept = message("assistant", "Yes.", provider_items=list(reply.items))
        assert Message.model_validate_json(kept.model_dump_json()).provider_items == list(reply.items)
        assert "es." in str(request_body(call(messages=[kept]))["input"])


async def test_halves_of_a_character_become_one_or_are_replaced() -> None:
    half = b'{"type": "message", "content": [{"type": "output_text", "text": "a\\ud83d\\ude00 b\\ud83d c"}]}'
    whole = b'{"status": "completed", "output": [' + half + b', {"type": "dream", "of": "\\ud83d"}]}'
    async with always(whole, "application/json") as url, opened(url) as client:
        reply = await client.ask(call())
    assert reply.text == "a\U0001f600 b\ufffd c"
    assert orjson.loads(orjson.dumps(reply.items)) == list(reply.items)


async def test_a_stream_that_says_only_that_it_is_done_is_whole() -> None:
    done = {"type": "response.output_item.done", "output_index": 0, "item": SAID}
    lines = b"data: " + orjson.dumps(done) + b"\n\ndata: [DONE]\n\n"
    async with always(lines, "text/event-stream") as url, opened(url) as client:
        assert (await client.ask(call())).text == "Yes."


@asynccontextmanager
async def answered(body: dict[str, Any]) -> AsyncIterator[ResponsesClient]:
    """Open a client of a server that gives one whole response."""
    async with always(orjson.dumps(body), "application/json") as url, opened(url) as client:
        yield client


@asynccontextmanager
async def streamed(*events: dict[str, Any]) -> AsyncIterator[ResponsesClient]:
    """Open a client of a server that streams these events."""
    lines = b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events)
    async with always(lines, "text/event-stream") as url, opened(url) as client:
        yield client


# --- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["", "[[json]]"])
async def test_a_reply_cut_at_its_limit_says_so(client: ResponsesClient, form: str) -> None:
    reply = await client.ask(call(f"[[finish:length]]{form}", body={"max_tokens": 5}))
    assert (reply.finish_reason, reply.text, reply.max_tokens) == ("length", ANSWER, 5)
    cut = await client.ask(call(f"[[badargs]][[finish:length]]{form}"))
    assert (cut.finish_reason, list(cut.tool_calls), list(cut.items)) == ("length", [], [])


@pytest.mark.parametrize(
    ("fault", "type"),
    [
        ("[[finish:content_filter]]", "refusal"),
        ("[[finish:max_messages]]", "unknown_finish_reason"),
        ("[[finish:queued]][[json]]", "unknown_finish_reason"),
        ("[[failed:invalid_prompt]]", "stream_error"),
        ("[[error:invalid_image_url]]", "stream_error"),
    ],
)
async def test_an_answer_that_ends_without_success_is_an_error(
    client: ResponsesClient, server: ProviderServer, fault: str, type: str
) -> None:
    error = await failure(client.ask(call(fault)), InvalidResponseError)
    assert (error.type, server.n_calls) == (type, 1)


@pytest.mark.parametrize(
    "fault", ["[[failed:server_error x2]]", "[[failed:rate_limit_exceeded x2]]", "[[finish:cancelled x2]]"]
)
async def test_a_response_that_failed_for_a_passing_reason_is_asked_for_again(
    client: ResponsesClient, server: ProviderServer, fault: str
) -> None:
    assert (await client.ask(call(fault))).text == ANSWER
    assert server.n_calls == 3


@pytest.mark.parametrize(
    "body",
    [
        {"object": "chat.completion", "choices": []},
        {"status": "completed", "output": "hello"},
        {"status": 1, "output": []},
        {"status": "completed", "output": [1]},
        {"status": "completed", "output": [{"type": "message", "content": [{"type": "output_text", "text": 1}]}]},
    ],
)
async def test_a_body_of_another_shape_is_malformed(body: dict[str, Any]) -> None:
    async with answered(body) as client:
        error = await failure(client.ask(call()), InvalidResponseError)
    assert error.type == "malformed_response"


# --- requests --------------------------------------------------------------------------------------------------------


async def test_a_call_keeps_nothing_on_the_server_and_asks_for_its_reasoning(
    client: ResponsesClient, server: ProviderServer
) -> None:
    tool = ToolSpec("add", "Adds.", {"type": "object", "properties": {}})
    search = {"type": "web_search"}
    await client.ask(call(system="Be brief.", tools=[tool], body={"tools": [search], "temperature": 0.5}))
    assert server.calls[0].authorization == f"Bearer {KEY}"
    assert server.calls[0].body == {
        "model": "m",
        "stream": True,
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "instructions": "Be brief.",
        "input": [{"role": "user", "content": "hi"}],
        "tools": [search, {"type": "function", "name": "add", "strict": False, "description": "Adds.", **PARAMETERS}],
        "temperature": 0.5,
    }


PARAMETERS = {"parameters": {"type": "object", "properties": {}}}
SCHEMA = {"name": "port", "strict": True, "schema": {"type": "object"}}


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"max_tokens": 9}, {"max_output_tokens": 9}),
        ({"max_completion_tokens": 9}, {"max_output_tokens": 9}),
        ({"max_tokens": 9, "max_output_tokens": 7}, {"max_output_tokens": 7}),
        ({"reasoning_effort": "low"}, {"reasoning": {"effort": "low"}}),
        (
            {"reasoning_effort": "low", "reasoning": {"summary": "auto"}},
            {"reasoning": {"effort": "low", "summary": "auto"}},
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": SCHEMA}, "verbosity": "low"},
            {"text": {"format": {"type": "json_schema", **SCHEMA}, "verbosity": "low"}},
        ),
        ({"text": {"format": {"type": "json_schema", **SCHEMA}}},) * 2,
        ({"response_format": {"type": "json_object"}}, {"text": {"format": {"type": "json_object"}}}),
        ({"tool_choice": "required"},) * 2,
        (
            {"tool_choice": {"type": "function", "function": {"name": "add"}}},
            {"tool_choice": {"type": "function", "name": "add"}},
        ),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "add"}}]},
                }
            },
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "add"}],
                }
            },
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "add", **PARAMETERS}}]},
            {"tools": [{"type": "function", "name": "add", **PARAMETERS}]},
        ),
        ({"stream_options": {"include_usage": True}}, {}),
        ({"stream_options": {"include_obfuscation": False}},) * 2,
        ({"stream": False, "stream_options": {"include_obfuscation": False}}, {"stream": False}),
        (
            {"logprobs": True, "top_logprobs": 2},
            {"include": ["reasoning.encrypted_content", "message.output_text.logprobs"], "top_logprobs": 2},
        ),
        ({"include": []}, {"include": None}),
        ({"store": True, "service_tier": "flex", "metadata": {"a": "b"}},) * 2,
        ({"parallel_tool_calls": False}, {}),  # the call has no tools
        ({"seed": 7, "stop": ["x"], "n": 1, "logit_bias": None}, {}),
    ],
)
def test_fields_of_chat_completions_are_sent_in_the_spelling_of_responses(
    given: dict[str, Any], sent: dict[str, Any]
) -> None:
    plain, body = request_body(call()), request_body(call(body=given))
    names = plain.keys() | body.keys()
    assert {name: body.get(name) for name in names if body.get(name) != plain.get(name)} == sent


async def test_a_model_that_cannot_encrypt_is_asked_again_and_then_asked_right(
    client: ResponsesClient, server: ProviderServer
) -> None:
    for _ in range(2):
        assert (await client.ask(call(model="small[[unencrypted]]"))).text == ANSWER
    assert ["include" in each.body and bool(each.body["include"]) for each in server.calls] == [True, False, False]


async def test_reasoning_that_the_model_cannot_decrypt_is_left_out(
    client: ResponsesClient, server: ProviderServer
) -> None:
    foreign = {"id": "rs_1", "type": "reasoning", "summary": [], "encrypted_content": "gAAAA0"}
    asked = {"id": "fc_1", "type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}"}
    said = [
        message("user", "hi"),
        message("assistant", tool_calls=[ToolCall.of("c1", "add", "{}")], provider_items=[foreign, asked]),
        message("user", ToolReturnContent(tool_call_id="c1", content="2", is_error=False)),
    ]
    assert (await client.ask(call(messages=said))).text == ANSWER
    assert [len(each.body["input"]) for each in server.calls] == [4, 3]
    assert server.calls[1].body["input"][1] == {
        "type": "function_call",
        "call_id": "c1",
        "name": "add",
        "arguments": "{}",
    }


async def test_other_refusals_are_not_asked_again(client: ResponsesClient, server: ProviderServer) -> None:
    error = await failure(client.ask(call("[[400:message=Unsupported value: 'temperature'.]]")), ModelAPIError)
    assert (error.type, server.n_calls) == ("bad_request", 1)


async def test_the_address_is_openais_own_by_default() -> None:
    client = make_client("openai", "responses", api_key=KEY)
    assert "https://api.openai.com/v1" in repr(client)
    await client.close()


# --- whole runs: the server refuses reasoning that is missing, changed or out of place -------------------------------


def double(n: int) -> int:
    """Double a number."""
    return 2 * n


ASKS = '[[reasoning:let me see]][[tool:double {"n": 2}]][[tool:double {"n": 3}]]'
THOUGHTS = ["", "[[interleaved]]", "[[interleaved]][[omitted]]", "[[interleaved]][[json]]", "[[search]]"]
KINDS = ["reasoning", "function_call", "function_call"]
MIXED = ["reasoning", "function_call", "reasoning", "function_call"]


def loop_of(client: ResponsesClient, **fields: Any) -> ToolLoop:
    agent = Agent(id="a", model="local/m", tools=(double,), **fields)
    return ToolLoop(agent, client, load_tools([double], 5))


def kinds(body: dict[str, Any]) -> list[str]:
    return [item.get("type") or item["role"] for item in body["input"]]


@pytest.mark.parametrize("form", ["", "[[onlyend]]", "[[emptyend]]", "[[sameids]]"])
@pytest.mark.parametrize("thought", THOUGHTS)
async def test_reasoning_goes_back_in_order_with_its_calls(
    client: ResponsesClient, server: ProviderServer, thought: str, form: str
) -> None:
    run = Run(new_job_id(), 0, AgentRequest(agent_id="a", input=f"{ASKS}{thought}{form}[[say:done]]"))
    assert await loop_of(client).run(run) == "end_turn"
    assert [each.func_response for each in run.messages[1].tool_returns or ()] == ["4", "6"]
    assert (run.messages[-1].text, run.usage.step_count) == ("done", 2)
    asked = MIXED if "interleaved" in thought else KINDS
    asked = asked if "search" not in thought else ["reasoning", "web_search_call", *asked[1:]]
    assert kinds(server.calls[-1].body) == ["user", *asked, "function_call_output", "function_call_output"]


async def test_a_run_that_was_cut_off_continues_with_its_reasoning(
    client: ResponsesClient, server: ProviderServer
) -> None:
    request, job_id = AgentRequest(agent_id="a", input=f"{ASKS}[[interleaved]][[say:done]]"), new_job_id()
    saved: list[bytes] = []
    first = Run(job_id, 0, request, sink=Sink(saved))
    assert await loop_of(client).run(first) == "end_turn"
    for n_saved in range(1, len(saved) + 1):
        again = Run(job_id, 0, request)
        again.restore([Checkpoint.model_validate_json(each) for each in saved[:n_saved]])
        assert await loop_of(client).run(again) == "end_turn"
    sent = [kinds(each.body) for each in server.calls[1:]]
    assert sent == [["user", *MIXED, *["function_call_output"] * 2]] * (1 + len(saved))


class Sink:
    """Keeps the checkpoints of a run."""

    def __init__(self, saved: list[bytes]) -> None:
        self.add = saved.append

    async def flush(self) -> None:
        """Everything is saved at once."""


async def test_a_paused_step_continues_with_its_reasoning(client: ResponsesClient, server: ProviderServer) -> None:
    job_id, loop = new_job_id(), loop_of(client, requires_approval=("double",))
    first = Run(job_id, 0, AgentRequest(agent_id="a", input=f"{ASKS}[[interleaved]][[omitted]][[say:done]]"))
    assert await loop.run(first) is StopReason.REQUIRES_APPROVAL
    answers = [ApprovalReturn(tool_call_id=each, approve=True) for each in first.pending]
    asked = message("user", first.request.input)
    request = AgentRequest(agent_id="a", messages=[ApprovalCreate(approvals=answers)])
    second = Run(job_id, 1, request, history=[asked, *stored(first.messages)])
    assert await loop.run(second) is StopReason.END_TURN
    assert kinds(server.calls[-1].body) == ["user", *MIXED, "function_call_output", "function_call_output"]


@pytest.mark.parametrize("stateful", [True, False])
async def test_a_conversation_keeps_the_reasoning_and_the_phase_of_its_answers(
    client: ResponsesClient, server: ProviderServer, stateful: bool
) -> None:
    first = Run(new_job_id(), 0, AgentRequest(agent_id="a", input="[[reasoning:hm]][[say:Yes.]]"))
    await loop_of(client, stateful=stateful).run(first)
    history = [message("user", first.request.input), *stored(first.messages)]
    second = Run(new_job_id(), 0, AgentRequest(agent_id="a", input="Sure?"), history=history)
    await loop_of(client, stateful=stateful).run(second)
    sent = server.calls[-1].body["input"]
    # An agent without a conversation never sends its last answer back, so that its items are not stored.
    assert [item.get("type") for item in sent] == ([None, "reasoning", "message", None] if stateful else [None] * 3)
    assert [item["phase"] for item in sent if "phase" in item] == (["final_answer"] if stateful else [])


def stored(messages: list[Message]) -> list[Message]:
    """Return messages as they are after they have been stored."""
    return [Message.model_validate_json(each.model_dump_json()) for each in messages]


async def test_callers_see_the_summary_and_the_calls(client: ResponsesClient) -> None:
    run = Run(new_job_id(), 0, AgentRequest(agent_id="a", input=f"{ASKS}[[interleaved]][[say:done]]"))
    await loop_of(client).run(run)
    seen = [each.message_type for said in run.messages for each in letta_messages(said)]
    thoughts = ["reasoning_message"] * 2
    assert seen == [*thoughts, "tool_call_message", "tool_return_message", "reasoning_message", "assistant_message"]


def test_reasoning_without_its_content_is_not_sent_by_its_id_alone() -> None:
    thought: dict[str, Any] = {"id": "rs_1", "type": "reasoning", "summary": []}
    said = {"id": "msg_1", "type": "message", "role": "assistant", "content": []}
    told = message(
        "assistant", ReasoningContent(is_native=True, reasoning="hm"), "Yes.", provider_items=[thought, said]
    )
    assert request_body(call(messages=[told]))["input"] == [{"role": "assistant", "content": "Yes."}]


def test_fields_that_a_server_sent_as_null_are_not_sent_back() -> None:
    thought: dict[str, Any] = {
        "id": "rs_1",
        "type": "reasoning",
        "summary": [],
        "encrypted_content": "gAAAA",
        "status": None,
    }
    told = message(
        "assistant", "Yes.", provider_items=[thought, {"type": "message", "role": "assistant", "content": []}]
    )
    assert "status" not in request_body(call(messages=[told]))["input"][0]

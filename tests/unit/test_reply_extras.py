"""Fields that a provider wants back: they go back as they came, across steps, attempts and conversations."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from batchray.agents import Run, ToolLoop
from batchray.agents.base import input_messages
from batchray.agents.checkpoints import Checkpoint
from batchray.agents.tools import load_tools
from batchray.config import Agent
from batchray.errors import ModelAPIError
from batchray.models.arguments import with_whole_texts
from batchray.models.connection import Connection
from batchray.models.http import HttpTransport
from batchray.models.openai import OpenAIClient
from batchray.models.openai_reply import PartialCompletion
from batchray.models.openai_request import request_body
from batchray.models.reply_extras import ReasoningBack, SendReasoning
from batchray.models.responses_request import request_body as responses_body
from batchray.models.sse import Event
from batchray.schema import (
    AgentRequest,
    ApprovalCreate,
    ApprovalReturn,
    Message,
    ReasoningContent,
    StopReason,
    ToolCall,
    new_job_id,
)
from tests.builders.model_calls import call, eager, failure, message, scripted

SIGNED = {"extra_content": {"google": {"thought_signature": "c2ln"}}}


def chunk(finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def items(*deltas: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what is kept of a streamed reply."""
    partial = PartialCompletion(HttpTransport("local", Connection("local", "http://h", {})))
    for each in (*(chunk(**delta) for delta in deltas), chunk("stop", content="yes")):
        partial.add(Event(b"", orjson.dumps(each)))
    partial.check()
    return list(partial.reply(call(), lambda: "made-up").items)


def asked_call(call_id: str | None = "c1", **fields: Any) -> dict[str, Any]:
    return {"index": 0, "id": call_id, "type": "function", "function": {"name": "look", "arguments": "{}"}, **fields}


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_nothing_is_kept_of_a_plain_reply() -> None:
    assert items({"role": "assistant", "annotations": [], "audio": {"id": "a"}}, {"tool_calls": [asked_call()]}) == []


@pytest.mark.parametrize(("given", "kept"), [("c1", "c1"), (None, "made-up")])
def test_fields_of_a_tool_call_are_kept_under_its_id(given: str | None, kept: str) -> None:
    first = asked_call(given, **SIGNED)
    later = {"index": 0, "function": {"arguments": " ", "strict": True}, "note": None}
    assert items({"tool_calls": [first]}, {"tool_calls": [later]}) == [
        {"role": "assistant", "tool_calls": [{"id": kept, **SIGNED, "function": {"strict": True}}]}
    ]


def test_detailed_reasoning_is_joined_part_by_part() -> None:
    def text(words: str, **more: Any) -> dict[str, Any]:
        return {"reasoning_details": [{"type": "reasoning.text", "text": words, "index": 0, **more}]}

    secret = {"type": "reasoning.encrypted", "data": "QUJD", "index": 1}
    assert items(
        text("let "), text("me", signature=None), text("", signature="s"), {"reasoning_details": [secret]}
    ) == [
        {
            "role": "assistant",
            "reasoning_details": [
                {"type": "reasoning.text", "text": "let me", "index": 0, "signature": "s"},
                secret,
            ],
        }
    ]


def test_signatures_and_the_field_of_the_reasoning_are_kept() -> None:
    assert items({"reasoning": "hm"}, {"content": "", "thought_signature": "s"}) == [
        {"role": "assistant", "thought_signature": "s", "reasoning": ""}
    ]


def test_half_a_character_in_a_field_can_be_stored() -> None:
    half = "\ud83c"
    kept = items({"reasoning_details": [{"type": "reasoning.text", "text": "a"}]}, {"thought_signature": "s"})
    assert with_whole_texts({"a": [{half: half}]}) == {"a": [{"\ufffd": "\ufffd"}]}
    assert with_whole_texts(kept[0]) is kept[0]


# --- what goes back --------------------------------------------------------------------------------------------------


def thought(key: str = "reasoning_content", tool_calls: bool = True, **fields: Any) -> Message:
    calls = [ToolCall.of("c1", "look", "{}")] if tool_calls else None
    given = {"role": "assistant", key: "", **fields}
    reasoning = ReasoningContent(is_native=True, reasoning="hm")
    return message("assistant", reasoning, tool_calls=calls, provider_items=[given])


@pytest.mark.parametrize(
    ("setting", "base_url", "model", "with_calls", "without"),
    [
        ("auto", "http://127.0.0.1:8000/v1", "m", True, False),
        ("auto", "https://api.deepseek.com", "deepseek-chat", True, True),
        ("auto", "https://api.deepseek.com/v1", "deepseek-reasoner", True, False),
        ("auto", "https://api.moonshot.ai/v1", "m", True, True),
        ("auto", "https://api.z.ai/api/paas/v4", "m", True, True),
        ("auto", "https://api.groq.com/openai/v1", "m", False, False),
        ("auto", "https://api.mistral.ai/v1", "m", False, False),
        ("always", "https://api.groq.com/openai/v1", "m", True, True),
        ("never", "https://api.deepseek.com", "m", False, False),
    ],
)
def test_reasoning_goes_back_if_the_provider_wants_it(
    setting: SendReasoning, base_url: str, model: str, with_calls: bool, without: bool
) -> None:
    back = ReasoningBack(setting, base_url)
    conversation = [thought(), thought("reasoning", tool_calls=False)]
    first, second = request_body(call(messages=conversation, model=model), back)["messages"]
    assert first.get("reasoning_content") == ("hm" if with_calls else None)
    assert second.get("reasoning") == ("hm" if without else None)
    assert first["tool_calls"][0]["function"] == {"name": "look", "arguments": "{}"}


def test_reasoning_of_another_provider_goes_back_only_if_asked_for() -> None:
    foreign = message(
        "assistant", ReasoningContent(is_native=True, reasoning="hm"), tool_calls=[ToolCall.of("c1", "look", "{}")]
    )
    assert "reasoning_content" not in request_body(call(messages=[foreign]))["messages"][0]
    sent = request_body(call(messages=[foreign]), ReasoningBack("always"))["messages"][0]
    assert sent["reasoning_content"] == "hm"


def test_detailed_reasoning_goes_back_unless_it_is_switched_off() -> None:
    details = [{"type": "reasoning.encrypted", "data": "QUJD"}]
    said = [thought("reasoning", reasoning_details=details, extra_content={"a": 1})]
    sent = request_body(call(messages=said))["messages"][0]
    assert (sent["reasoning_details"], sent["reasoning"], sent["extra_content"]) == (details, "hm", {"a": 1})
    off = request_body(call(messages=said), ReasoningBack("never"))["messages"][0]
    assert (off.keys() & {"reasoning_details", "reasoning"}, off["extra_content"]) == (set(), {"a": 1})


def test_items_of_another_protocol_are_not_sent() -> None:
    foreign = message("assistant", "yes", provider_items=[{"type": "message", "role": "assistant", "content": []}])
    assert request_body(call(messages=[foreign]))["messages"] == [{"role": "assistant", "content": "yes"}]
    sent = responses_body(call(messages=[thought()]))["input"]
    assert [item["type"] for item in sent] == ["function_call"]


# --- across steps, attempts and pauses -------------------------------------------------------------------------------

FIRST = b"".join(
    b"data: " + orjson.dumps(each) + b"\n\n"
    for each in (
        chunk(reasoning_content="I need it."),
        chunk(tool_calls=[asked_call("same", **SIGNED)]),
        chunk("tool_calls"),
    )
)
LAST = b"data: " + orjson.dumps(chunk("stop", content="done")) + b"\n\n"


def look() -> str:
    return "seen"


def sent_reply(asked: list[dict[str, Any]], n: int = 1) -> dict[str, Any]:
    """Return the model's `n`-th reply as the last call sent it back."""
    replies: list[dict[str, Any]] = [each for each in asked[-1]["messages"] if each["role"] == "assistant"]
    return replies[n - 1]


def assert_goes_back(reply: dict[str, Any]) -> None:
    assert reply["reasoning_content"] == "I need it."
    assert reply["tool_calls"] == [
        {"id": "same", "type": "function", "function": {"name": "look", "arguments": "{}"}, **SIGNED}
    ]


async def test_fields_go_back_in_the_next_step_and_in_another_attempt() -> None:
    asked: list[dict[str, Any]] = []
    job_id, request = new_job_id(), AgentRequest(agent_id="a", input="look")
    agent, tools = Agent(id="a", model="local/m"), load_tools([look], 1.0)
    async with scripted(FIRST, FIRST, LAST, LAST, asked=asked) as address:
        client = OpenAIClient(address, **eager())
        try:
            run = Run(job_id, 0, request)
            assert await ToolLoop(agent, client, tools).run(run) is StopReason.END_TURN
            assert_goes_back(sent_reply(asked, 1))
            assert_goes_back(sent_reply(asked, 2))  # the server's id repeats, and stays
            stored = Checkpoint(messages=run.messages[:2]).model_dump_json(exclude_none=True)
            again = Run(job_id, 0, request)
            again.restore([Checkpoint.model_validate_json(stored)])
            assert await ToolLoop(agent, client, tools).run(again) is StopReason.END_TURN
            assert_goes_back(sent_reply(asked))
        finally:
            await client.close()


@pytest.mark.parametrize(
    "refusal",
    [
        "'messages.1' : property 'reasoning_content' is unsupported",
        "Extra inputs are not permitted: messages.1.reasoning_content",
        "reasoning is not supported with this model",
    ],
)
async def test_reasoning_that_a_server_refuses_is_left_out_from_then_on(refusal: str) -> None:
    asked: list[dict[str, Any]] = []
    async with scripted(400, LAST, LAST, asked=asked, refusal=refusal) as address:
        client = OpenAIClient(address, **eager())
        try:
            for _ in range(2):
                assert (await client.ask(call(messages=[thought()]))).text == "done"
        finally:
            await client.close()
    assert ["reasoning_content" in each["messages"][0] for each in asked] == [True, False, False]


@pytest.mark.parametrize(
    ("setting", "refusal"),
    [
        ("always", "property 'reasoning_content' is unsupported"),
        ("auto", "The reasoning_content in the thinking mode must be passed back to the API."),
        ("auto", "unsupported parameter: 'reasoning_effort'"),
    ],
)
async def test_other_refusals_and_a_setting_stay(setting: SendReasoning, refusal: str) -> None:
    asked: list[dict[str, Any]] = []
    async with scripted(400, asked=asked, refusal=refusal) as address:
        client = OpenAIClient(address, send_reasoning=setting, **eager())
        try:
            error = await failure(client.ask(call(messages=[thought()])), ModelAPIError)
        finally:
            await client.close()
    assert (error.type, len(asked)) == ("bad_request", 1)


async def test_fields_go_back_after_an_approval_in_a_later_request() -> None:
    asked: list[dict[str, Any]] = []
    agent, tools = Agent(id="a", model="local/m", requires_approval=("look",)), load_tools([look], 1.0)
    job_id = new_job_id()
    async with scripted(FIRST, LAST, asked=asked) as address:
        client = OpenAIClient(address, **eager())
        try:
            first = Run(job_id, 0, AgentRequest(agent_id="a", input="look"))
            assert await ToolLoop(agent, client, tools).run(first) is StopReason.REQUIRES_APPROVAL
            answer = ApprovalReturn(tool_call_id="same", approve=True)
            said = [*input_messages(job_id, 0, first.request, datetime.now(UTC)), *first.messages]
            stored = [Message.model_validate_json(each.model_dump_json(exclude_none=True)) for each in said]
            request = AgentRequest(agent_id="a", messages=[ApprovalCreate(approvals=[answer])])
            second = Run(job_id, 1, request, history=stored)
            assert await ToolLoop(agent, client, tools).run(second) is StopReason.END_TURN
        finally:
            await client.close()
    assert_goes_back(sent_reply(asked))

"""Behaviour common to all HTTP clients: how they handle a provider's faults, in each protocol.

Each test runs over all three.  If a test waits, it waits on a clock that only sleeping moves on; those about
Retry-After wait a real fraction of a second and read the server's ledger, which says when calls really came.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from batchray.agents import Run, ToolLoop
from batchray.agents.base import input_messages
from batchray.agents.tools import load_tools
from batchray.config import Agent
from batchray.errors import InvalidResponseError, ModelAPIError, RequestError
from batchray.models import CallTimeouts, ModelClient, RetryPolicy
from batchray.models.anthropic import AnthropicClient
from batchray.models.conversation import usable_name
from batchray.models.openai import OpenAIClient
from batchray.models.responses import ResponsesClient
from batchray.schema import AgentRequest, ApprovalCreate, ApprovalReturn, StopReason, ToolCall, Usage, new_job_id
from tests.builders.model_calls import KEY, FakeTime, HeldTime, call, eager, failure, message
from tests.polling import wait_until
from tests.provider_server import ProviderServer

Opened = Callable[..., AbstractAsyncContextManager[ModelClient]]

ANSWER = "tok0 tok1 tok2 tok3 tok4 "
TOOLS = '[[tool:add {"a": 1}]][[tool:add {"a": 2}]]'


@pytest.fixture
async def server() -> AsyncIterator[ProviderServer]:
    async with ProviderServer() as server:
        yield server


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


CLIENTS: dict[str, Callable[..., ModelClient]] = {
    "openai": lambda server, **given: OpenAIClient(server.base_url, KEY, **given),
    "responses": lambda server, **given: ResponsesClient(server.base_url, KEY, **given),
    "anthropic": lambda server, **given: AnthropicClient(server.root_url, KEY, **given),
}


@pytest.fixture(params=CLIENTS)
def opened(request: pytest.FixtureRequest) -> Opened:
    """Open a client of a server, once for each protocol."""

    @asynccontextmanager
    async def opened(server: ProviderServer, **settings: Any) -> AsyncIterator[ModelClient]:
        client = CLIENTS[request.param](server, **{**eager(), **settings})
        try:
            yield client
        finally:
            await client.close()

    return opened


# --- faults that pass ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        "[[status:429 x2]]",
        "[[status:500 x2]]",
        "[[html:502 x2]]",
        "[[status:503 x2]]",
        "[[status:425 x2]]",
        "[[status:498 x2]]",
        "[[400:code=server_error x2]]",
        "[[wrongtype x2]]",
        "[[status:529 x2]]",
        "[[reset:start x2]]",
        "[[reset:headers x2]]",
        "[[reset x2]]",
        "[[truncate x2]]",
        "[[finish:network_error x2]]",
        "[[error:overloaded_error x2]]",
        "[[error:rate_limit_error x2]]",
        "[[error:api_error x2]][[json]]",
    ],
)
async def test_a_transient_failure_is_retried_with_a_new_reply(
    opened: Opened, server: ProviderServer, time: FakeTime, fault: str
) -> None:
    async with opened(server, clock=time.clock, sleep=time.sleep) as client:
        assert (await client.ask(call(fault))).text == ANSWER
    assert server.n_calls == 3
    assert sum(time.slept) < 10


@pytest.mark.parametrize(
    ("fault", "limits"),
    [
        ("[[stall:start x1]]", CallTimeouts(idle_s=0.1)),
        ("[[stall x1]]", CallTimeouts(idle_s=0.1)),
        ("[[gap:0.02 x1]][[tokens:100 x1]]", CallTimeouts(call_s=0.1)),  # each byte is in time, the whole is not
    ],
)
async def test_a_stalled_reply_is_given_up_and_retried(
    opened: Opened, server: ProviderServer, time: FakeTime, fault: str, limits: CallTimeouts
) -> None:
    async with opened(server, clock=time.clock, sleep=time.sleep, timeouts=limits) as client:
        assert (await client.ask(call(fault))).text == ANSWER
    assert server.n_calls == 2


@pytest.mark.parametrize(
    ("fault", "type"),
    [
        ("[[429:message=slow down]]", "rate_limited"),
        ("[[500:message=slow down]]", "server_error"),
        ("[[reset]]", "connection_error"),
        ("[[truncate]]", "stream_truncated"),
        ("[[wrongtype]]", "wrong_content_type"),
        ("[[finish:abort]]", "answer_interrupted"),
    ],
)
async def test_a_permanent_failure_is_raised(
    opened: Opened, server: ProviderServer, time: FakeTime, fault: str, type: str
) -> None:
    async with opened(server, clock=time.clock, sleep=time.sleep) as client:
        error = await failure(client.ask(call(fault)), ModelAPIError)
    assert (error.type, server.n_calls) == (type, 3)
    assert "after 3 attempts" in error.message
    assert ("slow down" in error.message) == ("slow down" in fault)


async def test_a_paused_step_is_one_assistant_message_to_the_provider(server: ProviderServer, opened: Opened) -> None:
    def look(key: str) -> str:
        return f"saw {key}"

    def drop(key: str) -> str:
        return f"dropped {key}"

    agent = Agent(id="a", model="local/m", requires_approval=("drop",))
    job_id, text = new_job_id(), '[[tool:drop {"key": "a"}]][[tool:look {"key": "b"}]][[tool:drop {"key": "c"}]]'
    async with opened(server) as client:
        loop = ToolLoop(agent, client, load_tools([look, drop], 1.0))
        first = Run(job_id, 0, AgentRequest(agent_id="a", input=text))
        assert await loop.run(first) is StopReason.REQUIRES_APPROVAL
        answers = [ApprovalReturn(tool_call_id=each, approve=i == 0) for i, each in enumerate(first.pending)]
        request = AgentRequest(agent_id="a", messages=[ApprovalCreate(approvals=answers)])
        said = [*input_messages(job_id, 0, first.request, datetime.now(UTC)), *first.messages]
        second = Run(job_id, 1, request, history=said)
        assert await loop.run(second) is StopReason.END_TURN
    told = [each.func_response for each in second.messages[0].tool_returns or ()]
    assert told == ["saw b", "dropped a", "The call was denied."]
    assert len(arguments_of_a_reply(server.calls[-1].body)) == 3


def arguments_of_a_reply(body: dict[str, Any]) -> list[Any]:
    """Return the arguments of the tool calls of the only reply in a request."""
    if "input" in body:
        kinds = [kind for kind, _ in itertools.groupby(item.get("type") for item in body["input"])]
        assert kinds == [None, "function_call", "function_call_output"]
        return [orjson.loads(item["arguments"]) for item in body["input"] if item.get("type") == "function_call"]
    [asked] = [each for each in body["messages"] if each["role"] == "assistant"]
    if chat_calls := asked.get("tool_calls"):
        return [orjson.loads(each["function"]["arguments"]) for each in chat_calls]
    return [block["input"] for block in asked["content"] if block["type"] == "tool_use"]


async def test_the_usage_of_an_unusable_reply_is_reported(server: ProviderServer, opened: Opened) -> None:
    lost: list[Usage] = []
    async with opened(server) as client:
        await failure(client.ask(call("[[tool: {}]]", on_wasted_usage=lost.append)), InvalidResponseError)
        assert [usage.total_tokens > 0 for usage in lost] == [True]
        reply = await client.ask(call("hi", on_wasted_usage=lost.append))
    assert (len(lost), reply.usage.total_tokens > 0) == (1, True)


async def test_a_missing_end_mark_loses_nothing(opened: Opened, server: ProviderServer, time: FakeTime) -> None:
    async with opened(server, clock=time.clock, sleep=time.sleep) as client:
        reply = await client.ask(call("[[nodone]]"))
    assert (reply.text, reply.finish_reason, reply.usage.completion_tokens) == (ANSWER, "stop", 5)
    assert (server.n_calls, time.slept) == (1, [])


async def test_duplicate_tool_call_ids_are_made_unique(opened: Opened, server: ProviderServer) -> None:
    fresh = (f"fresh_{i}" for i in itertools.count())
    async with opened(server, ids=lambda: next(fresh)) as client:
        reply = await client.ask(call(f"{TOOLS}[[sameids]]"))
    assert [(each.id, each.arguments) for each in reply.tool_calls] == [
        ("call_same", '{"a": 1}'),
        ("fresh_0", '{"a": 2}'),
    ]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('{"expression": ', '{"expression": '),
        ("[1, 2]", "[1, 2]"),
        ("null", "{}"),
        ('{"expression": "1 + 1",}', '{"expression": "1 + 1"}'),
    ],
)
async def test_arguments_are_read_leniently_and_unreadable_ones_are_kept(
    opened: Opened, server: ProviderServer, written: str, read: str
) -> None:
    async with opened(server) as client:
        reply = await client.ask(call(f"[[badargs:{written}]]"))
        assert [each.arguments for each in reply.tool_calls] == [read]
        kept = {"provider_items": list(reply.items)} if reply.items else {}
        said = [message("user", "[[tokens:1]]"), message("assistant", tool_calls=list(reply.tool_calls), **kept)]
        await client.ask(call(messages=[*said, message("tool", "no", tool_call_id=reply.tool_calls[0].id)]))
    [sent] = arguments_of_a_reply(server.calls[-1].body)
    assert sent == ({"INVALID_JSON": read} if read[0] == "[" or not read.endswith("}") else orjson.loads(read))


async def test_a_call_of_an_unusable_name_goes_back_with_one_that_providers_accept(
    opened: Opened, server: ProviderServer
) -> None:
    wrong = [ToolCall.of("call_1", name, "{}") for name in ("functions.add", "add<|end|>" * 9, "add")]
    said = [message("user", "hi"), message("assistant", tool_calls=wrong[:1])]
    said += [message("tool", "no", tool_call_id="call_1")]
    async with opened(server) as client:
        await client.ask(call(messages=said))
    assert b'"functions_add"' in orjson.dumps(server.calls[-1].body)
    assert [usable_name(each.name) for each in wrong] == ["functions_add", ("add__end__" * 9)[:64], "add"]


async def test_one_call_in_ten_failing_costs_at_most_a_fifth_more_calls(opened: Opened, time: FakeTime) -> None:
    async with (
        ProviderServer(fault_rate=0.1) as server,
        opened(server, clock=time.clock, sleep=time.sleep, retry=RetryPolicy()) as client,
    ):
        replies = await asyncio.gather(*(client.ask(call(f"call {i}")) for i in range(400)))
    assert {reply.text for reply in replies} == {ANSWER}
    assert 400 < server.n_calls <= 1.2 * 400


# --- waits that the provider asks for --------------------------------------------------------------------------------

BEFORE = datetime(1994, 11, 6, 8, 49, 46, 850_000, tzinfo=UTC).timestamp()
"""A sixth of a second before the date that the provider names."""


@pytest.mark.parametrize(
    ("fault", "waits_s"),
    [
        ("[[429:retry-after=0.15 x1]]", [0.15]),
        ("[[429:retry-after-ms=150 x1]]", [0.15]),
        ("[[429:retry-after=Sun,_06_Nov_1994_08:49:47_GMT x1]]", [0.15]),
        ("[[503:retry-after=0.15 x1]]", [0.15]),
        ("[[529:retry-after=0.15 x1]]", [0.15]),
        ("[[429:retry-after=0.1 x1]][[429:retry-after=0.2 x2]]", [0.1, 0.2]),
    ],
)
async def test_no_call_is_sent_before_a_retry_after_ends(
    opened: Opened, server: ProviderServer, fault: str, waits_s: list[float]
) -> None:
    async with opened(server, wall_clock=lambda: BEFORE) as client:
        assert (await client.ask(call(fault))).text == ANSWER
    came = [each.at for each in server.calls]
    assert len(came) == len(waits_s) + 1
    assert all(
        later - earlier >= wait_s for (earlier, later), wait_s in zip(itertools.pairwise(came), waits_s, strict=True)
    )


async def test_all_calls_wait_for_a_retry_after(opened: Opened, server: ProviderServer) -> None:
    time = HeldTime()
    async with opened(server, clock=time.clock, sleep=time.sleep) as client:
        told = asyncio.create_task(client.ask(call("told [[429:retry-after=0.15 x1]]")))
        await wait_until(lambda: time.slept)
        others = [asyncio.create_task(client.ask(call(f"other {i}"))) for i in range(10)]
        await wait_until(lambda: len(time.slept) == 2)  # one sleep for all of them
        assert server.n_calls == 1
        time.release()
        await asyncio.gather(told, *others)
    assert server.calls[1].text == server.calls[0].text  # the call that was refused goes first
    assert server.n_calls == 12


# --- faults that stay ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kind", "type"),
    [
        ("[[badjson]]", InvalidResponseError, "malformed_stream"),
        ("[[garbage]]", InvalidResponseError, "malformed_response"),
        ("[[finish:content_filter]]", InvalidResponseError, "refusal"),
        ("[[finish:content_filter]][[json]]", InvalidResponseError, "refusal"),
        ("[[finish:sensitive]]", InvalidResponseError, "refusal"),
        ("[[finish:one_of_tomorrow]][[json]]", InvalidResponseError, "unknown_finish_reason"),
        ("[[say:  ]]", InvalidResponseError, "no_content"),
        ("[[error:invalid_request_error]]", InvalidResponseError, "stream_error"),
        ("[[toolong]]", ModelAPIError, "context_length_exceeded"),
        ("[[401:message=Incorrect API key: {key}]]", ModelAPIError, "authentication_error"),
        ("[[404:message=no model m]]", ModelAPIError, "not_found"),
        ("[[status:400]]", ModelAPIError, "bad_request"),
        ("[[status:413]]", ModelAPIError, "request_too_large"),
    ],
)
async def test_a_permanent_error_is_not_retried(
    opened: Opened, server: ProviderServer, time: FakeTime, fault: str, kind: type[RequestError], type: str
) -> None:
    async with opened(server, clock=time.clock, sleep=time.sleep) as client:
        error = await failure(client.ask(call(fault)), kind)
    assert (error.type, server.n_calls, time.slept) == (type, 1, [])
    assert error.message.startswith("local: ")


@pytest.mark.parametrize("variant", ["", "[[json]]"])
async def test_an_answer_without_choices_or_content_is_an_error(
    opened: Opened, server: ProviderServer, variant: str
) -> None:
    async with opened(server) as client:
        with pytest.raises(RequestError) as raised:
            await client.ask(call(f"[[nochoices]]{variant}"))
    assert raised.value.type in ("no_choices", "no_content")


async def test_a_tool_call_cut_by_the_token_limit_is_dropped(opened: Opened, server: ProviderServer) -> None:
    async with opened(server) as client:
        reply = await client.ask(call(f"{TOOLS}[[badargs]][[finish:length]]"))
    assert (reply.finish_reason, [each.arguments for each in reply.tool_calls]) == ("length", ['{"a": 1}', '{"a": 2}'])

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from batchray.agents import AttemptReport, AttemptRunner, Clients, Run, ToolLoop, build_agent, encode_input, read_report
from batchray.agents.tools import load_tools
from batchray.config import BoundAgent, Provider
from batchray.errors import ConfigError, InvalidResponseError, InvalidToolCallError
from batchray.models import ModelCall, ModelReply, RulesModel, reply_parts
from batchray.schema import (
    AgentRequest,
    Message,
    StopReason,
    ToolCall,
    Usage,
    is_of_job,
    item_id,
    message_id,
    new_job_id,
    ordinal_of,
    run_id,
)
from batchray.schema.visible import letta_messages
from tests.builders.agents import bound, calls, returns

JOB = new_job_id()


def double(n: int) -> int:
    return 2 * n


def boom() -> None:
    raise LookupError("no such thing")


async def answer(
    attempt_runner: AttemptRunner, agent: BoundAgent, **request: Any
) -> tuple[AttemptReport, list[Message]]:
    given = {"agent_id": "a", **({} if "messages" in request else {"input": "hi"}), **request}
    report = read_report(await attempt_runner.run_attempt(agent, encode_input(JOB, 7, 2, json.dumps(given).encode())))
    return report, [Message.model_validate(message) for message in json.loads(report.messages)]


async def test_a_model_with_tools_answers_in_steps(attempt_runner: AttemptRunner) -> None:
    agent = bound(script=[{"reasoning": "hm", **calls(("double", {"n": 4}))}, {"text": "It is 8."}], tools=[double])
    report, messages = await answer(attempt_runner, agent)
    assert (report.index, report.attempt, report.status, report.stop_reason) == (7, 2, "succeeded", "end_turn")
    assert (report.error, report.usage["step_count"]) == (None, 2)
    assert report.usage["total_tokens"] == report.usage["prompt_tokens"] + report.usage["completion_tokens"] > 0
    assert report.ttft_ns is not None
    assert 0 <= report.ttft_ns <= report.duration_ns
    assert [message.role for message in messages] == ["assistant", "tool", "assistant"]
    assert returns(messages) == [("success", "8")]
    shown = [view.message_type for message in messages for view in letta_messages(message) if hasattr(view, "id")]
    assert shown == ["reasoning_message", "tool_call_message", "tool_return_message", "assistant_message"]


async def test_messages_carry_the_ids_of_their_job_item_and_step(attempt_runner: AttemptRunner) -> None:
    agent = bound(script=[calls(("double", {"n": 4}), ("double", {"n": 5})), {"text": "done"}], tools=[double])
    given = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    _, messages = await answer(attempt_runner, agent, messages=given)
    assert [message.id for message in messages] == [message_id(JOB, 7, ordinal) for ordinal in (2, 3, 4)]
    assert all(is_of_job(message.id, JOB) and ordinal_of(message.id) for message in messages)
    assert {message.run_id for message in messages} == {run_id(JOB, 7)}
    assert {message.batch_item_id for message in messages} == {item_id(JOB, 7)}
    assert {message.agent_id for message in messages} == {"a"}
    step, same_step, next_step = (message.step_id for message in messages)
    assert step == same_step != next_step
    asked = [call.id for call in messages[0].tool_calls or ()]
    assert [each.tool_call_id for each in messages[1].tool_returns or ()] == asked
    assert messages[1].tool_call_id == asked[0]
    otids = [view.otid for message in messages for view in letta_messages(message) if hasattr(view, "otid")]
    assert len(set(otids)) == len(otids) == 3


async def test_the_tools_of_one_step_run_at_once_and_return_in_the_order_of_their_calls(
    attempt_runner: AttemptRunner,
) -> None:
    met = asyncio.Barrier(3)

    async def meet(name: str) -> str:
        await met.wait()  # or else none of them returns
        return name

    agent = bound(script=[calls(*(("meet", {"name": name}) for name in "abc")), {"text": "done"}], tools=[meet])
    report, messages = await answer(attempt_runner, agent)
    assert report.status == "succeeded"
    assert returns(messages) == [("success", "a"), ("success", "b"), ("success", "c")]


async def test_a_tool_error_goes_to_the_model_and_the_run_continues(attempt_runner: AttemptRunner) -> None:
    release = threading.Event()

    def hang() -> None:
        release.wait()

    asked = calls(("boom", {}), ("hang", {}), ("nowhere", {}), ("double", {"n": "x"}), ("double", {"n": 1}))
    agent = bound(script=[asked, {"text": "sorry"}], tools=[boom, hang, double], tool_timeout_s=0.5)
    report, messages = await answer(attempt_runner, agent)
    release.set()
    assert (report.status, report.stop_reason) == ("succeeded", "end_turn")
    assert [status for status, _ in returns(messages)] == ["error", "error", "error", "error", "success"]
    told = [text or "" for _, text in returns(messages)]
    assert told[0] == "LookupError: no such thing"
    assert told[1] == "hang did not return within 0.5 s"
    assert told[2] == "there is no tool 'nowhere'; there are: boom, hang, double"
    assert told[3].startswith("arguments of double: n: Input should be a valid integer")
    assert messages[-1].text == "sorry"


class Replies:
    """A model that gives prepared replies, for those that the offline models cannot give."""

    def __init__(self, *replies: ModelReply | Exception) -> None:
        self.replies, self.asked = list(replies), list[ModelCall]()

    async def ask(self, call: ModelCall) -> ModelReply:
        self.asked.append(call)
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def close(self) -> None: ...


def new_run(**request: Any) -> Run:
    return Run(JOB, 0, AgentRequest.model_validate({"agent_id": "a", "input": "hi", **request}))


async def test_an_error_in_a_calls_arguments_goes_to_the_model() -> None:
    bad = [ToolCall.of("1", "double", '{"n": '), ToolCall.of("2", "double", "[1]"), ToolCall.of("3", "double", "")]
    run, model = new_run(), Replies(ModelReply(tool_calls=bad), ModelReply(reply_parts("sorry")))
    loop = ToolLoop(bound(model="offline/rules").agent, model, load_tools([double], 1.0))
    assert await loop.run(run) is StopReason.END_TURN
    told = [text or "" for _, text in returns(run.messages)]
    assert told[0].startswith("the arguments of double are not JSON: ")
    assert told[1:] == [
        "the arguments of double are a list, not a JSON object: '[1]'",
        "arguments of double: n: Field required",
    ]


async def test_a_reply_cut_at_its_token_limit_is_kept_and_fails_the_run() -> None:
    run = new_run()
    loop = ToolLoop(
        bound(model="offline/rules").agent, Replies(ModelReply(reply_parts("It is"), finish_reason="length")), {}
    )
    with pytest.raises(InvalidResponseError, match="max_tokens_exceeded"):
        await loop.run(run)
    assert [message.text for message in run.messages] == ["It is"]


async def test_a_model_call_has_the_whole_conversation_and_the_agents_settings() -> None:
    agent = bound(model="offline/rules", system="be brief", temperature=0.5, max_tokens=9, body={"top_p": 0.1}).agent
    model = Replies(ModelReply(tool_calls=[ToolCall.of("1", "double", '{"n":1}')], usage=Usage(prompt_tokens=3)))
    model.replies.append(ModelReply(reply_parts("2"), usage=Usage(prompt_tokens=4)))
    run = Run(JOB, 0, new_run().request, deadline=99.0, now=lambda: datetime(2026, 1, 2, tzinfo=UTC))
    await ToolLoop(agent, model, load_tools([double], 1.0)).run(run)
    first, second = model.asked
    assert (first.model, first.system, first.deadline) == ("rules", "be brief", 99.0)
    assert first.body == {"top_p": 0.1, "temperature": 0.5, "max_tokens": 9}
    assert [spec.name for spec in first.tools] == ["double"]
    assert [message.role for message in second.messages] == ["user", "assistant", "tool"]
    assert (run.usage.prompt_tokens, run.usage.step_count) == (7, 2)
    assert {message.created_at.isoformat() for message in run.messages} == {"2026-01-02T00:00:00+00:00"}


@pytest.mark.parametrize("system", ["sing", ""])
async def test_the_system_prompt_of_a_request_replaces_that_of_its_agent(system: str) -> None:
    model = Replies(ModelReply(reply_parts("la")))
    await ToolLoop(bound(model="offline/rules", system="be brief").agent, model, {}).run(
        new_run(override_system=system)
    )
    assert model.asked[0].system == system


@pytest.mark.parametrize(
    ("of_agent", "of_request", "thinking"),
    [(None, {}, None), (True, {}, True), (False, {}, False), (True, {"enable_thinking": "false"}, False)],
)
async def test_a_request_decides_about_reasoning_before_its_agent(
    of_agent: bool | None, of_request: dict[str, Any], thinking: bool | None
) -> None:
    model = Replies(ModelReply(reply_parts("la")))
    agent = bound(model="offline/rules", enable_thinking=of_agent).agent
    await ToolLoop(agent, model, {}).run(new_run(**of_request))
    assert model.asked[0].thinking is thinking


@pytest.mark.parametrize(("of_agent", "of_request", "steps"), [(3, None, 3), (3, 2, 2), (3, 50, 3)])
async def test_a_run_ends_at_the_lower_of_two_step_limits(
    attempt_runner: AttemptRunner, of_agent: int, of_request: int | None, steps: int
) -> None:
    agent = bound(script=[calls(("double", {"n": 1}))] * 9, tools=[double], max_steps=of_agent)
    report, messages = await answer(attempt_runner, agent, max_steps=of_request)
    assert (report.status, report.stop_reason, report.usage["step_count"]) == ("succeeded", "max_steps", steps)
    assert [message.role for message in messages] == ["assistant", "tool"] * steps


@pytest.mark.parametrize(
    ("failure", "stop_reason"),
    [
        ("api_error", "llm_api_error"),
        ("invalid_response", "invalid_llm_response"),
        ("invalid_tool_call", "invalid_tool_call"),
    ],
)
async def test_a_model_error_keeps_the_messages_so_far(
    attempt_runner: AttemptRunner, failure: str, stop_reason: str
) -> None:
    agent = bound(script=[calls(("double", {"n": 1})), {"fail": {"type": failure, "message": "why"}}], tools=[double])
    report, messages = await answer(attempt_runner, agent)
    assert (report.status, report.stop_reason) == ("errored", stop_reason)
    assert report.error == {"type": failure, "message": "why"}
    assert [message.role for message in messages] == ["assistant", "tool"]
    assert report.usage["step_count"] == 1


async def test_a_run_past_its_deadline_keeps_its_messages(attempt_runner: AttemptRunner) -> None:
    cancelled = asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    agent = bound(script=[calls(("wait", {}))], tools=[wait], deadline_s=0.2)
    report, messages = await answer(attempt_runner, agent)
    assert (report.status, report.stop_reason) == ("errored", "error")
    assert report.error == {"type": "deadline_exceeded", "message": "not done within its deadline of 0.2 s"}
    assert [message.role for message in messages] == ["assistant"]
    assert report.duration_ns >= 200_000_000
    assert cancelled.is_set()


async def test_a_reply_after_the_deadline_is_a_deadline_error(attempt_runner: AttemptRunner) -> None:
    report, _ = await answer(attempt_runner, bound(script=[{"text": "late", "delay_s": 60}], deadline_s=0.1))
    assert report.error is not None
    assert report.error["type"] == "deadline_exceeded"


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda request: f"{request.agent_id} got {request.input}", "a got hi"),
        (lambda request: {"n": 1}, '{"n":1}'),
        (lambda request: None, "null"),
        (lambda request: "\ud800", "?"),
    ],
)
async def test_a_function_answers_with_text_or_json(
    attempt_runner: AttemptRunner, function: Callable[[AgentRequest], object], text: str
) -> None:
    report, messages = await answer(attempt_runner, bound(run=function))
    assert (report.status, report.stop_reason, report.usage["step_count"]) == ("succeeded", "end_turn", 1)
    assert [(message.role, message.text) for message in messages] == [("assistant", text)]


async def test_an_async_function_is_an_agent_too(attempt_runner: AttemptRunner) -> None:
    async def shout(request: AgentRequest) -> str:
        await asyncio.sleep(0)
        return str(request.input).upper()

    _, messages = await answer(attempt_runner, bound(run=shout))
    assert messages[0].text == "HI"


def raising(error: BaseException) -> Callable[[AgentRequest], object]:
    def function(request: AgentRequest) -> object:
        raise error

    return function


def raising_async(error: BaseException) -> Callable[[AgentRequest], object]:
    async def function(request: AgentRequest) -> object:
        raise error

    return function


@pytest.mark.parametrize("kind", [raising, raising_async])
@pytest.mark.parametrize(
    ("error", "stop_reason", "type", "message"),
    [
        (LookupError("no such thing"), "error", "LookupError", "no such thing"),
        (ValueError(), "error", "ValueError", "ValueError()"),
        (TimeoutError("the other side"), "error", "TimeoutError", "the other side"),
        (SystemExit(3), "error", "SystemExit", "3"),
        (OSError("\ud800"), "error", "OSError", "?"),
        (InvalidToolCallError("bad_json", "why"), "invalid_tool_call", "bad_json", "why"),
    ],
)
async def test_any_error_of_a_function_becomes_the_requests_outcome(
    attempt_runner: AttemptRunner,
    kind: Callable[[BaseException], Callable[[AgentRequest], object]],
    error: BaseException,
    stop_reason: str,
    type: str,
    message: str,
) -> None:
    report, messages = await answer(attempt_runner, bound(run=kind(error)))
    assert (report.status, report.stop_reason) == ("errored", stop_reason)
    assert report.error is not None
    traceback = report.error["traceback"]
    assert report.error == {"type": type, "message": message, "traceback": traceback}
    assert traceback.startswith(f'Traceback (most recent call last):\n  File "{__file__}", line ')
    assert messages == []


async def test_a_function_that_raises_cancelled_error_fails_its_request(attempt_runner: AttemptRunner) -> None:
    async def function(request: AgentRequest) -> None:
        task = asyncio.create_task(asyncio.Event().wait())
        task.cancel()
        await task

    report, _ = await answer(attempt_runner, bound(run=function))
    assert report.error is not None
    assert (report.status, report.error["type"]) == ("errored", "CancelledError")


async def test_a_cancelled_request_is_cancelled(attempt_runner: AttemptRunner) -> None:
    started = asyncio.Event()

    async def function(request: AgentRequest) -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(answer(attempt_runner, bound(run=function)))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_very_long_error_is_truncated(attempt_runner: AttemptRunner) -> None:
    report, _ = await answer(attempt_runner, bound(run=raising(ValueError("x" * 10_000))))
    assert report.error is not None
    assert len(report.error["message"]) == 4000


async def test_an_approval_without_a_waiting_call_is_refused(attempt_runner: AttemptRunner) -> None:
    approval = {"type": "approval", "approvals": [{"tool_call_id": "1", "approve": True}]}
    report, _ = await answer(attempt_runner, bound(model="offline/rules"), messages=[approval])
    assert report.error == {
        "type": "no_pending_approval",
        "message": "no tool call waits for an answer",
    }


async def test_only_tools_and_callables_run_inside_the_execution_marker() -> None:
    inside: list[tuple[str, int]] = []
    seen: list[list[tuple[str, int]]] = []

    @contextmanager
    def guard(job_id: str, index: int) -> Iterator[None]:
        inside.append((job_id, index))
        yield
        inside.pop()

    async def look() -> None:
        seen.append(list(inside))

    class Watching(RulesModel):
        async def ask(self, call: ModelCall) -> ModelReply:
            seen.append(list(inside))
            return ModelReply(tool_calls=[ToolCall.of("1", "look", "{}")])

    run = Run(JOB, 5, new_run().request, mark_executing=guard)
    await ToolLoop(bound(model="offline/rules", max_steps=1).agent, Watching(), load_tools([look], 1.0)).run(run)
    assert seen == [[], [(JOB, 5)]]
    assert inside == []


async def test_agents_and_clients_are_built_once() -> None:
    attempt_runner = AttemptRunner()
    agent = bound(model="offline/rules")
    assert attempt_runner.agent(agent) is attempt_runner.agent(agent)
    clients = Clients()
    provider = Provider(protocol="offline")
    assert clients.get("offline", provider, None) is clients.get("offline", Provider(protocol="offline"), None)
    assert clients.get("offline", provider, None) is not clients.get("other", provider, None)
    await clients.close()


@pytest.mark.parametrize("fields", [{"run": "nowhere_at_all:f"}, {"model": "offline/rules", "tools": ["json:nope"]}])
async def test_an_import_error_becomes_the_requests_outcome(
    attempt_runner: AttemptRunner, fields: dict[str, Any]
) -> None:
    agent = bound(**fields)
    with pytest.raises(ConfigError, match=r"^agent 'a': '[\w:]+' cannot be imported: "):
        build_agent(agent, Clients())
    report, _ = await answer(attempt_runner, agent)
    assert report.error is not None
    assert (report.status, report.error["type"]) == ("errored", "config_error")


async def test_no_text_of_a_request_is_logged(attempt_runner: AttemptRunner, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "batchray")
    await answer(attempt_runner, bound(run=raising(ValueError("a secret"))), input="a secret")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("DEBUG", "request failed: ValueError")
    ]
    assert "secret" not in caplog.text

"""Each way in which a run ends, and how it continues after the caller's answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from batchray.agents import AttemptRunner, Clients, build_agent
from batchray.errors import ConfigError
from batchray.schema import Message
from batchray.schema.visible import letta_messages
from tests.builders.agents import Conversation, bound, calls, returns


def double(n: int) -> int:
    return 2 * n


def shout(text: str) -> str:
    return text.upper()


def fails() -> None:
    raise LookupError("no such thing")


def shown(messages: Sequence[Message]) -> list[str]:
    return [view.message_type for message in messages for view in letta_messages(message)]


def approve(*ids: str, **fields: Any) -> dict[str, Any]:
    approvals = [{"type": "approval", "tool_call_id": each, "approve": True, **fields} for each in ids]
    return {"messages": [{"type": "approval", "approvals": approvals}]}


# -- stop reasons


@pytest.mark.parametrize(
    ("turns", "options", "stop_reason", "status"),
    [
        ([{"text": "done"}], {}, "end_turn", "succeeded"),
        ([calls(("double", {"n": 1}))] * 2, {"max_steps": 1}, "max_steps", "succeeded"),
        ([calls(("double", {"n": 1}))], {"terminal_tools": ["double"]}, "tool_rule", "succeeded"),
        ([calls(("double", {"n": 1}))], {"requires_approval": ["double"]}, "requires_approval", "succeeded"),
        ([{"text": "I guess 2"}], {"requires_tool": True}, "no_tool_call", "errored"),
        ([{"fail": {"type": "api_error"}}], {}, "llm_api_error", "errored"),
        ([{"fail": {"type": "invalid_response"}}], {}, "invalid_llm_response", "errored"),
        ([{"fail": {"type": "invalid_tool_call"}}], {}, "invalid_tool_call", "errored"),
        ([{"delay_s": 60}], {"deadline_s": 0.1}, "error", "errored"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_each_stop_reason_has_a_path(
    attempt_runner: AttemptRunner, turns: list[Any], options: dict[str, Any], stop_reason: str, status: str
) -> None:
    report, _ = await Conversation(attempt_runner, bound(script=turns, tools=[double], **options)).ask()
    assert (report.stop_reason, report.status) == (stop_reason, status)
    assert (report.error is None) == (status == "succeeded")


async def test_a_terminal_tool_ends_the_run_only_if_it_succeeds(attempt_runner: AttemptRunner) -> None:
    agent = bound(
        script=[calls(("fails", {})), calls(("fails", {}), ("double", {"n": 2})), {"text": "never said"}],
        tools=[double, fails],
        terminal_tools=["fails", "double"],
    )
    report, messages = await Conversation(attempt_runner, agent).ask()
    assert (report.stop_reason, report.usage["step_count"]) == ("tool_rule", 2)
    assert [status for status, _ in returns(messages)] == ["error", "error", "success"]


async def test_an_agent_that_requires_a_tool_may_speak_after_it(attempt_runner: AttemptRunner) -> None:
    agent = bound(script=[calls(("double", {"n": 1})), {"text": "2"}], tools=[double], requires_tool=True)
    report, _ = await Conversation(attempt_runner, agent).ask()
    assert (report.stop_reason, report.error) == ("end_turn", None)


@pytest.mark.parametrize("max_steps", [0, -3])
async def test_a_limit_of_zero_steps_takes_no_step(attempt_runner: AttemptRunner, max_steps: int) -> None:
    report, messages = await Conversation(attempt_runner, bound(script=[{"text": "hi"}])).ask(max_steps=max_steps)
    assert (report.stop_reason, messages, report.usage["step_count"]) == ("end_turn", [], 0)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (
            {"requires_approval": ["nope"]},
            "requires_approval names 'nope', which is not a tool of the agent; it has: double",
        ),
        ({"terminal_tools": ["nope"]}, "terminal_tools names 'nope', which is not a tool of the agent; it has: double"),
    ],
)
def test_an_option_that_names_an_unknown_tool_is_refused(option: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        build_agent(bound(model="offline/rules", tools=[double], **option), Clients())
    with pytest.raises(ConfigError, match="requires_tool needs tools"):
        build_agent(bound(model="offline/rules", requires_tool=True), Clients())


# -- limits


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (
            {"max_total_tokens": 100},
            {"type": "max_total_tokens_reached", "message": "110 tokens are used of max_total_tokens 100"},
        ),
        (
            {"max_cost_usd": 0.0001, "prices": {"input": 1.0, "output": 5.0, "cached_input": 0.1, "cache_write": 2.0}},
            {
                "type": "max_cost_usd_reached",
                "message": "0.000142 US dollars are spent of max_cost_usd 0.0001",
            },
        ),
    ],
)
async def test_a_run_takes_no_step_after_its_budget_is_used_up(
    attempt_runner: AttemptRunner, options: dict[str, Any], error: dict[str, str]
) -> None:
    called: list[int] = []

    def note(n: int) -> None:
        called.append(n)

    usage = {"prompt_tokens": 90, "completion_tokens": 20, "cached_input_tokens": 60, "cache_write_tokens": 6}
    agent = bound(script=[{**calls(("note", {"n": 1})), "usage": usage}, {"text": "2"}], tools=[note], **options)
    report, messages = await Conversation(attempt_runner, agent).ask()
    assert (report.status, report.stop_reason, report.error) == ("errored", "error", error)
    assert ([message.role for message in messages], called) == (["assistant"], [])
    assert (report.usage["total_tokens"], report.usage["cached_input_tokens"]) == (110, 60)


async def test_an_answer_that_uses_up_the_budget_still_counts(attempt_runner: AttemptRunner) -> None:
    agent = bound(script=[{"text": "done", "usage": {"prompt_tokens": 9}}], max_total_tokens=5)
    report, _ = await Conversation(attempt_runner, agent).ask()
    assert (report.stop_reason, report.usage["total_tokens"]) == ("end_turn", 9)


async def test_the_usage_of_a_failed_model_call_is_counted(attempt_runner: AttemptRunner) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "reasoning_tokens": 2}
    agent = bound(script=[{"fail": {"type": "invalid_response"}, "usage": usage}])
    report, _ = await Conversation(attempt_runner, agent).ask()
    counted = {name: report.usage[name] for name in ("total_tokens", "reasoning_tokens", "step_count")}
    assert counted == {"total_tokens": 10, "reasoning_tokens": 2, "step_count": 0}


async def test_reasoning_is_left_out_if_the_request_switches_it_off(attempt_runner: AttemptRunner) -> None:
    agent = bound(script=[{"text": "done", "reasoning": "hm"}])
    types = [
        shown((await Conversation(attempt_runner, agent).ask(**fields))[1])
        for fields in ({}, {"enable_thinking": "true"}, {"enable_thinking": "false"})
    ]
    assert types == [["reasoning_message", "assistant_message"]] * 2 + [["assistant_message"]]


# -- approvals


async def test_no_tool_of_a_paused_step_runs_before_all_its_waiting_calls_are_answered(
    attempt_runner: AttemptRunner,
) -> None:
    called: list[str] = []

    def look(key: str) -> str:
        called.append(f"look {key}")
        return key

    def drop(key: str) -> str:
        called.append(f"drop {key}")
        return f"{key} is gone"

    asked = {"reasoning": "hm", **calls(("drop", {"key": "a"}), ("look", {"key": "b"}), ("drop", {"key": "c"}))}
    agent = bound(script=[asked, {"text": "all done"}], tools=[look, drop], requires_approval=["drop"])
    talk = Conversation(attempt_runner, agent)
    report, messages = await talk.ask()
    assert (report.status, report.stop_reason, called) == ("succeeded", "requires_approval", [])
    assert shown(messages) == ["reasoning_message", "tool_call_message", "approval_request_message"]
    assert [call.name for call in messages[-1].tool_calls or ()] == ["drop", "drop"]
    first, second = report.pending
    answers = [
        {"type": "approval", "tool_call_id": second, "approve": False, "reason": "c is needed"},
        {"type": "approval", "tool_call_id": first, "approve": True},
    ]
    report, messages = await talk.ask(messages=[{"type": "approval", "approvals": answers}])
    assert (report.stop_reason, report.usage["step_count"], sorted(called)) == ("end_turn", 1, ["drop a", "look b"])
    assert shown(messages) == ["tool_return_message", "assistant_message"]
    assert returns(messages) == [
        ("success", "b"),
        ("success", "a is gone"),
        ("error", "The call was denied: c is needed"),
    ]
    assert messages[0].step_id == talk.history[1].step_id


@pytest.mark.parametrize("form", ["approval", "tool_return"])
async def test_a_call_to_a_client_tool_waits_for_its_return(attempt_runner: AttemptRunner, form: str) -> None:
    agent = bound(script=[calls(("locate", {"who": "me"})), {"text": "found"}], tools=[double])
    tools = [{"name": "locate", "description": "Where a person is.", "parameters": {"type": "object"}}]
    talk = Conversation(attempt_runner, agent)
    report, messages = await talk.ask(client_tools=tools)
    assert (report.stop_reason, shown(messages)) == ("requires_approval", ["approval_request_message"])
    returned = {"type": "tool", "tool_call_id": report.pending[0], "status": "success", "tool_return": "here"}
    answer = {"approval": {"type": "approval", "approvals": [returned]}}.get(
        form, {"type": "tool_return", "tool_returns": [returned]}
    )
    report, messages = await talk.ask(messages=[answer], client_tools=tools)
    assert (report.stop_reason, returns(messages)) == ("end_turn", [("success", "here")])
    assert shown(talk.history) == [
        "user_message",
        "approval_request_message",
        "approval_response_message",
        "tool_return_message",
        "assistant_message",
    ]


async def test_client_tools_are_offered_to_the_model_and_win_over_own_ones(attempt_runner: AttemptRunner) -> None:
    client_tools = [{"name": "calculate"}]

    def calculate(expression: str) -> str:
        raise AssertionError("it is the caller's")

    agent = bound(model="offline/rules", tools=[calculate])
    report, messages = await Conversation(attempt_runner, agent).ask(input="1 + 1", client_tools=client_tools)
    assert (report.stop_reason, [call.name for call in messages[-1].tool_calls or ()]) == (
        "requires_approval",
        ["calculate"],
    )


@pytest.mark.parametrize("by", ["call", "message"])
async def test_the_old_form_of_an_approval_resumes_the_run(attempt_runner: AttemptRunner, by: str) -> None:
    agent = bound(script=[calls(("double", {"n": 4})), {"text": "8"}], tools=[double], requires_approval=["double"])
    talk = Conversation(attempt_runner, agent)
    report, messages = await talk.ask()
    answered = report.pending[0] if by == "call" else messages[-1].id
    report, messages = await talk.ask(messages=[{"type": "approval", "approve": True, "approval_request_id": answered}])
    assert (report.stop_reason, returns(messages)) == ("end_turn", [("success", "8")])


async def test_a_run_can_pause_again_and_end_by_a_terminal_tool(attempt_runner: AttemptRunner) -> None:
    turns = [calls(("double", {"n": 4})), calls(("shout", {"text": "so"})), {"text": "never said"}]
    agent = bound(
        script=turns,
        tools=[double, shout],
        requires_approval=["double", "shout"],
        terminal_tools=["shout"],
    )
    talk = Conversation(attempt_runner, agent)
    report, _ = await talk.ask()
    report, _ = await talk.ask(**approve(*report.pending))
    assert report.stop_reason == "requires_approval"
    report, messages = await talk.ask(**approve(*report.pending))
    assert (report.stop_reason, returns(messages), report.usage["step_count"]) == (
        "tool_rule",
        [("success", "SO")],
        0,
    )


@pytest.mark.parametrize(
    ("answers", "kind", "message"),
    [
        ([("nowhere", True)], "no_pending_approval", "no tool call 'nowhere' of the same step waits for an answer"),
        ([(0, True)], "incomplete_approval", "waits too; answer all of them in one request"),
        ([(0, True), (1, True), ("nowhere", True)], "no_pending_approval", "no tool call 'nowhere' of the same step"),
        ([(0, True), (0, False), (1, True)], "already_answered", "two answers to the tool call"),
        ([], "no_pending_approval", "the approval names no tool call"),
    ],
)
async def test_answers_to_other_calls_are_refused_with_the_reason(
    attempt_runner: AttemptRunner, answers: list[Any], kind: str, message: str
) -> None:
    asked = calls(("double", {"n": 4}), ("double", {"n": 5}))
    agent = bound(script=[asked, {"text": "8"}], tools=[double], requires_approval=["double"])
    talk = Conversation(attempt_runner, agent)
    report, _ = await talk.ask()
    given = [
        {"tool_call_id": report.pending[which] if isinstance(which, int) else which, "approve": yes}
        for which, yes in answers
    ]
    report, _ = await talk.ask(messages=[{"type": "approval", "approvals": given}])
    assert (report.status, report.stop_reason) == ("errored", "invalid_tool_call")
    assert report.error is not None
    assert report.error["type"] == kind
    assert message in report.error["message"]


async def test_answers_and_messages_in_one_request_are_refused(attempt_runner: AttemptRunner) -> None:
    agent = bound(script=[calls(("double", {"n": 4}))], tools=[double], requires_approval=["double"])
    talk = Conversation(attempt_runner, agent)
    report, _ = await talk.ask()
    both = [*approve(*report.pending)["messages"], {"role": "user", "content": "hurry"}]
    report, _ = await talk.ask(messages=both)
    assert report.error is not None
    assert (report.error["type"], report.stop_reason) == ("mixed_messages", "invalid_tool_call")


async def test_a_tool_return_with_an_image_is_refused(attempt_runner: AttemptRunner) -> None:
    talk = Conversation(attempt_runner, bound(script=[calls(("locate", {}))]))
    report, _ = await talk.ask(client_tools=[{"name": "locate"}])
    parts = [{"type": "text", "text": "here"}, {"type": "image", "source": {"type": "url", "url": "http://h/a.png"}}]
    returned = {"tool_call_id": report.pending[0], "status": "success", "tool_return": parts}
    report, messages = await talk.ask(messages=[{"type": "tool_return", "tool_returns": [returned]}])
    assert report.error is not None
    assert (report.error["type"], messages) == ("unsupported_content", [])
    returned["tool_return"] = parts[:1]
    report, messages = await talk.ask(messages=[{"type": "tool_return", "tool_returns": [returned]}])
    assert returns(messages) == [("success", "here")]


async def test_a_call_to_a_client_tool_cannot_be_approved(attempt_runner: AttemptRunner) -> None:
    agent = bound(script=[calls(("locate", {}))])
    talk = Conversation(attempt_runner, agent)
    report, _ = await talk.ask(client_tools=[{"name": "locate"}])
    report, _ = await talk.ask(**approve(*report.pending))
    assert report.error is not None
    assert report.error["type"] == "tool_return_needed"

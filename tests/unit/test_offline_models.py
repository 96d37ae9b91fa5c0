from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from batchray.errors import (
    ConfigError,
    DeadlineExceededError,
    InvalidResponseError,
    InvalidToolCallError,
    ModelAPIError,
    RequestError,
)
from batchray.models import ModelCall, ModelReply, OfflineModels, RulesModel, ScriptedModel, ToolSpec, make_client
from batchray.schema import Message, MessageToolReturn, TextContent, ToolCall

TOOLS = [ToolSpec(name, "", {"type": "object"}) for name in ("calculate", "count_words", "look_up")]


def message(role: Any, text: str = "", **fields: Any) -> Message:
    content = [TextContent(text=text)] if text else []
    return Message(id="message-1", role=role, content=content, created_at=datetime.now(UTC), **fields)


def call(*messages: Message, **fields: Any) -> ModelCall:
    return ModelCall(model="scripted", messages=messages, **fields)


def returned(calls: list[ToolCall], *values: tuple[str, Any]) -> list[Message]:
    """The messages that a step with tool calls adds; each value is (text, status)."""
    returns = [
        MessageToolReturn(tool_call_id=each.id, status=status, func_response=text)
        for each, (text, status) in zip(calls, values, strict=True)
    ]
    return [message("assistant", tool_calls=calls), message("tool", tool_returns=returns)]


def arguments(reply: ModelReply) -> list[tuple[str, dict[str, Any]]]:
    return [(each.name, json.loads(each.arguments)) for each in reply.tool_calls]


class FakeTime:
    def __init__(self) -> None:
        self.now, self.slept = 100.0, list[float]()

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


async def test_the_scripted_reply_is_chosen_by_the_replies_since_the_last_user_message() -> None:
    model = ScriptedModel([{"text": "one"}, {"text": "two"}])
    user, said = message("user", "hi"), message("assistant", "one")
    assert (await model.ask(call(user))).text == "one"
    assert (await model.ask(call(user, said))).text == "two"
    assert (await model.ask(call(user, said, said, user))).text == "one"


async def test_after_its_last_reply_a_script_does_not_repeat() -> None:
    model = ScriptedModel([{"tool_calls": [{"name": "calculate"}]}])
    reply = await model.ask(call(message("user", "hi"), message("assistant")))
    assert (reply.text, reply.finish_reason, list(reply.tool_calls)) == ("(end of script)", "stop", [])


async def test_a_scripted_reply_has_reasoning_and_tool_calls_with_deterministic_ids() -> None:
    asked = {"name": "look_up", "arguments": {"key": "a"}}
    model = ScriptedModel([{"reasoning": "hm", "tool_calls": [asked, asked]}])
    question = call(message("user", "hi"))
    reply = await model.ask(question)
    assert arguments(reply) == [("look_up", {"key": "a"})] * 2
    assert (reply.finish_reason, reply.reasoning) == ("tool_calls", "hm")
    ids = [each.id for each in reply.tool_calls]
    assert len(set(ids)) == 2
    assert ids == [each.id for each in (await model.ask(question)).tool_calls]


async def test_the_users_script_wins_over_the_agents_and_that_over_the_constructors() -> None:
    model, agents = ScriptedModel([{"text": "mine"}]), {"script": [{"text": "agent's"}]}
    own = message("user", json.dumps({"script": [{"text": "user's"}], "note": 1}))
    assert (await model.ask(call(own, body=agents))).text == "user's"
    assert (await model.ask(call(message("user", "{not json"), body=agents))).text == "agent's"
    assert (await model.ask(call(message("user", '{"a": 1}')))).text == "mine"


@pytest.mark.parametrize(
    ("script", "place"),
    [
        ([{"txt": "a"}], "script[0].txt: unknown key 'txt'; did you mean 'text'?"),
        ([{}, {"tool_calls": [{"nam": "a"}]}], "script[1].tool_calls[0]"),
        ([{"fail": {"type": "api_error", "why": 1}}], "script[0].fail.why: unknown key 'why'"),
        ([{"usage": {"tokens": 1}}], "script[0].usage.tokens: unknown key 'tokens'"),
        ([{"delay_s": -1}], "script[0].delay_s"),
        ({"text": "a"}, "script"),
    ],
)
async def test_a_bad_script_is_an_invalid_response_with_the_path(script: Any, place: str) -> None:
    with pytest.raises(InvalidResponseError) as raised:
        await ScriptedModel(script).ask(call(message("user", "hi")))
    assert raised.value.type == "bad_script"
    assert place in raised.value.message


async def test_no_script_is_an_error_that_says_where_to_give_one() -> None:
    with pytest.raises(InvalidResponseError, match="no script"):
        await ScriptedModel().ask(call(message("user", "hi")))


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("api_error", ModelAPIError),
        ("invalid_response", InvalidResponseError),
        ("invalid_tool_call", InvalidToolCallError),
    ],
)
async def test_a_scripted_reply_can_fail(kind: str, error: type[RequestError]) -> None:
    with pytest.raises(error) as raised:
        await ScriptedModel([{"fail": {"type": kind, "message": "no luck"}}]).ask(call(message("user", "hi")))
    assert (raised.value.type, raised.value.message) == (kind, "no luck")


async def test_a_delay_passes_before_the_first_token() -> None:
    time = FakeTime()
    model = ScriptedModel([{"text": "a", "delay_s": 2.5}], clock=time.clock, sleep=time.sleep)
    reply = await model.ask(call(message("user", "hi"), deadline=103))
    assert (time.slept, reply.first_token_ns) == ([2.5], 102_500_000_000)


@pytest.mark.parametrize(("deadline", "slept"), [(101.0, [1.0]), (99.0, [])])
async def test_a_delay_ends_at_the_deadline(deadline: float, slept: list[float]) -> None:
    time = FakeTime()
    model = ScriptedModel([{"text": "a", "delay_s": 60}], clock=time.clock, sleep=time.sleep)
    with pytest.raises(DeadlineExceededError):
        await model.ask(call(message("user", "hi"), deadline=deadline))
    assert time.slept == slept


async def test_tokens_are_counted_four_characters_each_unless_scripted() -> None:
    model = ScriptedModel(
        [{"text": "12345", "reasoning": "1234"}, {"usage": {"prompt_tokens": 7, "completion_tokens": 2}}]
    )
    user = message("user", "12345678")
    counted = (await model.ask(call(user, system="1234"))).usage
    assert (counted.prompt_tokens, counted.completion_tokens, counted.reasoning_tokens) == (3, 3, 1)
    assert counted.total_tokens == 6
    scripted = (await model.ask(call(user, message("assistant", "12345")))).usage
    assert (scripted.prompt_tokens, scripted.completion_tokens, scripted.total_tokens) == (7, 2, 9)


async def test_rules_evaluate_an_expression_with_the_tool() -> None:
    user = message("user", "What is 12 * 7?")
    asked = await RulesModel().ask(call(user, tools=TOOLS))
    assert arguments(asked) == [("calculate", {"expression": "12 * 7"})]
    answer = await RulesModel().ask(call(user, *returned(list(asked.tool_calls), ("84", "success")), tools=TOOLS))
    assert (answer.text, answer.finish_reason) == ("12 * 7 = 84", "stop")


@pytest.mark.parametrize(
    ("text", "expressions"),
    [
        ("Work out 12 * 7 and 3 + 4, please.", ["12 * 7", "3 + 4"]),
        ("(1 + 2) * -3", ["(1 + 2) * -3"]),
        ("the sum (that is 12 - 7) of it", ["12 - 7"]),
        ("((1+2)*3)/4 = ?", ["((1+2)*3)/4"]),
        ("6 × 7 and 6 ÷ 2 and 2**8", ["6 * 7", "6 / 2", "2**8"]),
        ("1.5 + 2.25.", ["1.5 + 2.25"]),
        ("room 12, floor 7", []),
        ("x1+2", []),
    ],
)
async def test_rules_find_the_expressions_of_a_text(text: str, expressions: list[str]) -> None:
    reply = await RulesModel().ask(call(message("user", text), tools=TOOLS))
    assert arguments(reply) == [("calculate", {"expression": each}) for each in expressions]


async def test_several_tool_calls_of_one_text_are_parallel_and_answered_a_line_each() -> None:
    user = message("user", "Look up: Paris\nWork out 1 + 1 and 2 / 0\nHow many words are there: one two 3 + 4")
    asked = list((await RulesModel().ask(call(user, tools=TOOLS))).tool_calls)
    assert [each.name for each in asked] == ["count_words", "look_up", "calculate", "calculate"]
    values = [("5", "success"), ("a city", "success"), ("2", "success"), ("division by zero", "error")]
    answer = await RulesModel().ask(call(user, *returned(asked, *values), tools=TOOLS))
    assert answer.text.splitlines() == [
        "That is 5 words.",
        "Paris: a city",
        "1 + 1 = 2",
        "I could not work that out: division by zero",
    ]


async def test_rules_count_one_word_in_the_singular() -> None:
    user = message("user", "How many words: hello")
    asked = list((await RulesModel().ask(call(user, tools=TOOLS))).tool_calls)
    answer = await RulesModel().ask(call(user, *returned(asked, ("1", "success")), tools=TOOLS))
    assert answer.text == "That is 1 word."


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("What is 12 * 7?", "You wrote 5 words: What is 12 * 7?"),
        ("hello", "You wrote 1 word: hello"),
        ("", "You wrote 0 words."),
    ],
)
async def test_without_tools_rules_repeat_the_text(text: str, answer: str) -> None:
    assert (await RulesModel().ask(call(message("user", text)))).text == answer


async def test_each_user_message_gets_its_own_reply() -> None:
    user = message("user", "What is 12 * 7?")
    asked = list((await RulesModel().ask(call(user, tools=TOOLS))).tool_calls)
    history = [user, *returned(asked, ("84", "success")), message("assistant", "12 * 7 = 84")]
    assert (await RulesModel().ask(call(*history, message("user", "thanks"), tools=TOOLS))).text.endswith("thanks")


@pytest.mark.parametrize("text", ["(" * 50_000, "1" * 50_000, "1" + " " * 50_000, "1+" * 50_000, "look up:" * 9_000])
@pytest.mark.timeout(10)
async def test_rules_take_linear_time_on_hostile_texts(text: str) -> None:
    await RulesModel().ask(call(message("user", text), tools=TOOLS))


async def test_rules_do_not_answer_past_the_deadline() -> None:
    with pytest.raises(DeadlineExceededError):
        await RulesModel().ask(call(message("user", "hi"), deadline=0))


async def test_the_offline_provider_has_both_models_and_no_other() -> None:
    client = make_client("offline", "offline")
    assert isinstance(client, OfflineModels)
    user = message("user", '{"script": [{"text": "a"}]}')
    assert (await client.ask(ModelCall("scripted", [user]))).text == "a"
    assert (await client.ask(ModelCall("rules", [user]))).text.startswith("You wrote")
    with pytest.raises(ModelAPIError, match="rules, scripted"):
        await client.ask(ModelCall("gpt", [user]))
    await client.close()


def test_make_client_refuses_a_missing_address_and_an_unknown_protocol() -> None:
    with pytest.raises(ConfigError, match="base_url"):
        make_client("local", "openai")
    with pytest.raises(ConfigError, match="'carrier-pigeon'"):
        make_client("local", "carrier-pigeon")

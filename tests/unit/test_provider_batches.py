"""Batches of OpenAI and Anthropic as batches of ours."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import batchray
from batchray import Agent, Provider
from batchray.batch.formats.options import InputOptions
from batchray.batch.formats.recognize import open_batch
from batchray.batch.parse import Batch
from batchray.batch.rules import KnownAgent
from batchray.errors import BatchFormatError, UnknownAgentError
from batchray.models.anthropic_settings import anthropic_settings
from batchray.schema import AgentRequest
from batchray.schema.request_settings import LOST, RequestSettings
from tests.provider_server import run_in_thread

AGENTS = {
    "mini": KnownAgent("openai/gpt-4.1-mini", "openai"),
    "claude": KnownAgent("anthropic/claude-x", "anthropic"),
    "one": KnownAgent("openai/shared", "openai"),
    "two": KnownAgent("vllm/shared", "openai"),
}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
TOOL = {"type": "function", "function": {"name": "f", "description": "F.", "parameters": {"type": "object"}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}


def chat(**body: Any) -> dict[str, Any]:
    """Return a line of an OpenAI batch."""
    given = {"model": "gpt-4.1-mini", "messages": [{"role": "user", "content": "hi"}], **body}
    return {"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions", "body": given}


def responses(**body: Any) -> dict[str, Any]:
    return {**chat(), "url": "/v1/responses", "body": {"model": "mini", "input": "hi", **body}}


def message(**params: Any) -> dict[str, Any]:
    """Return a request of an Anthropic batch."""
    given = {"model": "claude-x", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], **params}
    return {"custom_id": "r1", "params": given}


def read(source: Any, options: InputOptions = InputOptions()) -> tuple[list[dict[str, Any]], set[str]]:  # noqa: B008
    batch = open_batch(source, AGENTS, Path("/nowhere"), options)
    assert isinstance(batch, Batch)
    requests = [json.loads(request.body) for request in batch.requests]
    for request in requests:
        AgentRequest.model_validate(request)
    return requests, set(batch.unused)


def request_of(entry: dict[str, Any]) -> dict[str, Any]:
    [request], unused = read([entry])
    assert not unused
    return request


def test_messages_of_chat_completions_become_messages() -> None:
    given = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "hi"}, IMAGE], "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {
            "role": "tool",
            "tool_call_id": "c1",
            "content": [{"type": "text", "text": "4"}, {"type": "text", "text": "2"}],
        },
        {"role": "assistant", "content": "So 42.", "refusal": None},
    ]
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA", "detail": "low"}
    called = {"type": "tool_call", "id": "c1", "name": "f", "input": {"x": 1}}
    returned = {"type": "tool_return", "tool_call_id": "c1", "content": "42", "is_error": False}
    parts = [{"type": "text", "text": "hi"}, {"type": "image", "source": source}]
    assert request_of(chat(messages=given))["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": parts, "name": "ann"},
        {"role": "assistant", "content": [called]},
        {"role": "user", "content": [returned]},
        {"role": "assistant", "content": "So 42."},
    ]


def test_settings_and_tools_of_chat_completions_are_kept() -> None:
    body = {"temperature": 0, "max_completion_tokens": 7, "seed": 3, "response_format": SCHEMA, "stop": ["x"], "n": 1}
    request = request_of(chat(**body, tools=[TOOL], metadata={"k": "v"}, stream=False, user=None))
    assert request["settings"] == {
        "temperature": 0,
        "max_tokens": 7,
        "seed": 3,
        "response_format": SCHEMA,
        "stop": ["x"],
    }
    assert request["client_tools"] == [{"name": "f", "description": "F.", "parameters": {"type": "object"}}]
    assert (request["metadata"], request["agent_id"], request["custom_id"]) == ({"k": "v"}, "mini", "r1")


def test_a_line_for_responses_becomes_the_same_request() -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "42"},
    ]
    form = {"type": "json_schema", "name": "x", "schema": {"type": "object"}}
    flat = {"type": "function", **TOOL["function"]}  # type: ignore[dict-item]
    of_responses = responses(
        input=items,
        instructions="Be brief.",
        max_output_tokens=7,
        reasoning={"effort": "low"},
        text={"format": form, "verbosity": "low"},
        tools=[flat],
    )
    of_chat = chat(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{**CALL, "function": {"name": "f", "arguments": ""}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
        ],
        max_tokens=7,
        reasoning_effort="low",
        verbosity="low",
        response_format=SCHEMA,
        tools=[TOOL],
    )
    assert request_of(of_responses) == request_of(of_chat)


def test_an_anthropic_request_becomes_one_of_ours() -> None:
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "f", "input": {"x": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "no", "is_error": True}]},
    ]
    entry = message(
        messages=turns,
        system=[{"type": "text", "text": "Be brief."}],
        stop_sequences=["x"],
        tools=[{"name": "f", "input_schema": {"type": "object"}}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        thinking={"type": "disabled"},
        metadata={"user_id": "u"},
    )
    request = request_of(entry)
    assert request["messages"] == [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [{"type": "tool_call", "id": "c1", "name": "f", "input": {"x": 1}}]},
        {
            "role": "user",
            "content": [{"type": "tool_return", "tool_call_id": "c1", "content": "no", "is_error": True}],
        },
    ]
    assert (request["agent_id"], request["enable_thinking"]) == ("claude", "false")
    assert anthropic_settings(request["settings"]) == {
        "max_tokens": 9,
        "stop_sequences": ["x"],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "metadata": {"user_id": "u"},
    }


def test_the_agent_is_the_one_that_is_named_or_that_has_the_model() -> None:
    assert request_of(chat(model="openai/gpt-4.1-mini"))["agent_id"] == "mini"
    assert request_of(chat(model="claude"))["agent_id"] == "claude"
    [request], _ = read([chat(model="unknown")], InputOptions(agent="claude"))
    assert request["agent_id"] == "claude"
    with pytest.raises(UnknownAgentError, match=r"\[0\]: no agent has the id or the model 'gpt-4o'; agents: cla"):
        read([chat(model="gpt-4o")])
    with pytest.raises(UnknownAgentError, match="agents one, two have the model 'shared'; name one with --agent ID"):
        read([chat(model="shared")])


def test_fields_that_have_no_effect_are_named() -> None:
    cached = [{"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]}]
    strict = {"type": "function", "function": {**TOOL["function"], "strict": True}}  # type: ignore[dict-item]
    _, unused = read([chat(logprobs=True, store=False, stream=True, guided_json={"type": "object"}, tools=[strict])])
    assert unused == {"logprobs", "stream", "guided_json", "tools.strict"}
    assert read([chat(model="claude", seed=3)])[1] == {"seed"}
    assert read([message(messages=cached, container="c")])[1] == {"messages.cache_control", "container"}


LINES = b"\n".join(json.dumps({**chat(), "custom_id": f"r{i}"}).encode() for i in range(3))
BODY = json.dumps({"requests": [message()]}).encode()


def test_batches_are_found_in_files_and_streams(tmp_path: Path) -> None:
    (tmp_path / "batch.jsonl").write_bytes(b"\xef\xbb\xbf\n" + LINES)
    assert [each["custom_id"] for each in read(tmp_path / "batch.jsonl")[0]] == ["r0", "r1", "r2"]
    assert len(read(io.BytesIO(LINES), InputOptions(agent="mini"))[0]) == 3
    assert read(io.BytesIO(BODY))[0][0]["agent_id"] == "claude"
    assert read(io.BytesIO(BODY), InputOptions(format="anthropic"))[0][0]["agent_id"] == "claude"


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no id": ({**chat(), "custom_id": None}, "custom_id: a line of an OpenAI batch has a text of its own as custom_id"),
    "integer id": ({**message(), "custom_id": 5}, "custom_id: a request of an Anthropic batch has a text"),
    "same id": ({**chat(), "custom_id": "good"}, "custom_id: 'good' is the custom_id of an earlier request too"),
    "other url": ({**chat(), "url": "/v1/embeddings"}, "url: '/v1/embeddings' is not one of /v1/chat/completions"),
    "other method": ({**chat(), "method": "GET"}, "method: is POST, not 'GET'"),
    "unknown key": ({**chat(), "priority": 1}, "priority: unknown key; a line of an OpenAI batch has body, custom_id"),
    "no body": ({**chat(), "body": []}, "body: is not an object"),
    "no messages": (chat(messages=[]), "body.messages: is not a list of messages"),
    "several answers": (chat(n=2), "body.n: is 2, and an agent gives one answer; repeat the line"),
    "bad setting": (chat(temperature="hot"), "settings.temperature: Input should be a valid number"),
    "bad role": (chat(messages=[{"role": "robot"}]), "body.messages[0].role: 'robot' is not one of system"),
    "audio": (
        chat(messages=[{"role": "user", "content": [{"type": "input_audio"}]}]),
        "body.messages[0].content[0].type: 'input_audio' has no counterpart here",
    ),
    "bad arguments": (
        chat(
            messages=[{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{"}}]}]
        ),
        "body.messages[0].tool_calls[0].function.arguments: arguments are the text of a JSON object",
    ),
    "tool of the provider": (responses(tools=[{"type": "web_search"}]), "body.tools[0]: 'web_search' is a tool of the"),
    "document": (
        message(messages=[{"role": "user", "content": [{"type": "document"}]}]),
        "params.messages[0].content[0].type: 'document' has no counterpart here",
    ),
    "no params": ({"custom_id": "r1", "params": 5}, "params: is not an object"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_line_that_cannot_be_used_is_refused_with_its_place(name: str, tmp_path: Path) -> None:
    bad, reason = BAD[name]
    good = {**(message() if "params" in bad else chat()), "custom_id": "good"}
    file = tmp_path / "batch.jsonl"
    file.write_bytes(json.dumps(good).encode() + b"\n" + json.dumps(bad).encode())
    with pytest.raises(BatchFormatError) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}, line 2: ")
    assert reason in str(caught.value)


SETTINGS = {
    "temperature": 0.5,
    "max_tokens": 7,
    "stop": ["x"],
    "seed": 3,
    "response_format": SCHEMA,
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "reasoning_effort": "low",
    "user": "u",
}


@pytest.mark.parametrize(
    ("protocol", "sent"),
    [
        ("openai", SETTINGS),
        (
            "responses",
            {
                "temperature": 0.5,
                "max_output_tokens": 7,
                "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
                "tool_choice": "required",
                "parallel_tool_calls": False,
                "reasoning": {"effort": "low"},
                "user": "u",
            },
        ),
        (
            "anthropic",
            {
                "temperature": 0.5,
                "max_tokens": 7,
                "stop_sequences": ["x"],
                "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
                "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
                "metadata": {"user_id": "u"},
            },
        ),
    ],
)
def test_the_settings_of_a_line_reach_the_provider(
    protocol: Any, sent: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = chat(model="m", **SETTINGS, tools=[TOOL])
    with run_in_thread() as server:
        address = server.root_url if protocol == "anthropic" else server.base_url
        provider = Provider(protocol=protocol, base_url=address)
        agent = Agent(id="a", model="here/m", temperature=1.0, body={"max_completion_tokens": 99, "top_p": 0.1})
        job = batchray.run([entry], [agent], providers={"here": provider}, **_local(tmp_path))
        [call] = [each for each in server.calls if each.body]
    assert job.counts["succeeded"] == 1, [result.error for result in job.results()]
    assert {name: call.body.get(name) for name in sent} == sent
    lost = sorted(LOST.get(protocol, frozenset()) & SETTINGS.keys())
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert (f"these fields of the batch have no effect: {', '.join(lost)}" in told) is bool(lost)
    assert not {"seed", "stop"} & call.body.keys() or protocol == "openai"


def _local(directory: Path) -> Any:
    return {"executor": "local", "data_dir": directory / "data", "progress": False}


def test_a_repeated_custom_id_is_named_in_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    requests = [{"agent_id": "a", "input": "hi", "custom_id": custom_id} for custom_id in (7, "x", 7, None, None)]
    job = batchray.run(requests, [Agent(id="a", model="offline/rules")], **_local(tmp_path))
    assert [result.custom_id for result in job.results("index")] == [7, "x", 7, None, None]
    assert "1 request has a custom_id of earlier requests, such as '7'; results are told apart" in caplog.text


def test_settings_are_given_only_if_they_are_set() -> None:
    assert RequestSettings(temperature=0.0, stop=None).given == {"temperature": 0.0}
    assert LOST["anthropic"] | LOST["responses"] <= RequestSettings.model_fields.keys()


ODD_VALUES: tuple[Any, ...] = (None, True, 5, "x", [], [1], {}, {"a": 1})
WHOLE_CHAT = chat(
    messages=[
        {"role": "user", "content": [{"type": "text", "text": "t"}, IMAGE]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "r"},
    ],
    tools=[TOOL],
    response_format=SCHEMA,
)
WHOLE_RESPONSES = responses(
    input=[{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}]}],
    text={"format": {"type": "json_schema", "name": "x", "schema": {}}, "verbosity": "low"},
    reasoning={"effort": "low"},
)
WHOLE_MESSAGE = message(
    messages=[{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "u"}}]}],
    tools=[{"name": "f", "input_schema": {"type": "object"}}],
    tool_choice={"type": "tool", "name": "f"},
    thinking={"type": "enabled"},
    metadata={"user_id": "u"},
    output_config={"effort": "low", "format": {"type": "json_schema", "schema": {}}},
)


def with_odd_values(value: Any, odd: Any) -> Iterator[Any]:
    """Yield copies of a value, with an odd one in each place inside."""
    places = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in places:
        for changed in (odd, *with_odd_values(inner, odd)):
            yield {**value, key: changed} if isinstance(value, dict) else [*value[:key], changed, *value[key + 1 :]]


@pytest.mark.parametrize("entry", [WHOLE_CHAT, WHOLE_RESPONSES, WHOLE_MESSAGE], ids=["chat", "responses", "anthropic"])
def test_a_value_of_another_type_is_refused_with_its_line(entry: dict[str, Any]) -> None:
    refused = 0
    for changed in (changed for odd in ODD_VALUES for changed in with_odd_values(entry, odd)):
        try:
            read([changed])
        except BatchFormatError as error:
            assert "requests[0]" in str(error)  # noqa: PT017  # the rest are accepted
            refused += 1
    assert refused > 100

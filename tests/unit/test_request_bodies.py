"""The request body for each kind of content part and each provider, compared with tests/data/golden, or a refusal.

Reasoning is accepted but not sent by protocols that cannot express it: runs have to work without it.

After an intended change, write the files again and read the diff:

    REGENERATE_GOLDEN=1 python -m pytest tests/unit/test_request_bodies.py
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import orjson
import pytest

from batchray.errors import ModelAPIError
from batchray.models import ModelCall, ToolSpec, anthropic_request, openai_request, responses_request
from batchray.schema import (
    Base64Image,
    ContentPart,
    ImageContent,
    LettaImage,
    Message,
    OmittedReasoningContent,
    ReasoningContent,
    RedactedReasoningContent,
    SummarizedReasoningContent,
    TextContent,
    ToolCallContent,
    ToolReturnContent,
    UrlImage,
)
from batchray.schema.content import SummaryPart
from tests.builders.model_calls import message
from tests.provider_messages import signature

GOLDEN = Path(__file__).parents[1] / "data" / "golden"

BODIES: dict[str, Callable[[ModelCall], dict[str, Any]]] = {
    "openai": openai_request.request_body,
    "responses": responses_request.request_body,
    "anthropic": anthropic_request.request_body,
}

ASKED = message("user", "What is 1 + 1?")
CALLED = message("assistant", ToolCallContent(id="call_1", name="add", input={"a": 1, "b": 1}))
RETURNED = message("user", ToolReturnContent(tool_call_id="call_1", content="2", is_error=False))
IMAGE = ImageContent(source=UrlImage(url="http://h/a.png"))
FAILED = message("user", ToolReturnContent(tool_call_id="call_1", content="too large", is_error=True))


def looked_at(source: Any) -> list[Message]:
    return [message("user", "Look.", ImageContent(source=source))]


def after(*thoughts: Any) -> list[Message]:
    """Return a conversation in which the model produced these parts before a tool call."""
    return [ASKED, message("assistant", *thoughts, "I add.", *CALLED.content or ()), RETURNED]


CONVERSATIONS: dict[str, list[Message]] = {
    "text": [message("user", TextContent(text="Say hello.", signature="c2ln"))],
    "image_by_url": looked_at(UrlImage(url="https://example.com/a.png")),
    "image_in_base64": looked_at(Base64Image(media_type="image/jpeg", data="QUJD", detail="low")),
    "image_by_file_id_with_data": looked_at(LettaImage(file_id="file-1", media_type="image/gif", data="QUJD")),
    "image_by_file_id": looked_at(LettaImage(file_id="file-1")),
    "tool_call": [ASKED, CALLED, RETURNED],
    "tool_return": [ASKED, CALLED, FAILED],
    "reasoning": after(ReasoningContent(is_native=True, reasoning="One and one.", signature=signature("One and one."))),
    "reasoning_unsigned": after(ReasoningContent(is_native=False, reasoning="One and one.")),
    "redacted_reasoning": after(RedactedReasoningContent(data="cmVkYWN0ZWQ=")),
    "omitted_reasoning": after(OmittedReasoningContent(signature=signature(""))),
    "omitted_reasoning_unsigned": after(OmittedReasoningContent()),
    "summarized_reasoning": after(SummarizedReasoningContent(id="rs_1", summary=[SummaryPart(index=0, text="I add.")])),
    "encrypted_reasoning": after(SummarizedReasoningContent(id="rs_1", summary=[], encrypted_content="gAAAA")),
}

REFUSED = {
    ("openai", "image_by_file_id"): "an image by file_id (letta) without its data",
    ("openai", "redacted_reasoning"): "a part of type redacted_reasoning",
    ("responses", "image_by_file_id"): "an image by file_id (letta) without its data",
    ("responses", "redacted_reasoning"): "a part of type redacted_reasoning",
    ("anthropic", "image_by_file_id"): "an image by file_id (letta) without its data",
    ("anthropic", "reasoning_unsigned"): "a part of type reasoning without the signature that Anthropic gave it",
    ("anthropic", "omitted_reasoning_unsigned"): (
        "a part of type omitted_reasoning without the signature that Anthropic gave it"
    ),
    ("anthropic", "summarized_reasoning"): "a part of type summarized_reasoning",
    ("anthropic", "encrypted_reasoning"): "a part of type summarized_reasoning",
}
MATRIX = [(protocol, name) for protocol in BODIES for name in CONVERSATIONS]


def body_of(protocol: str, name: str) -> dict[str, Any]:
    number = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
    tools = [ToolSpec("add", "Adds two numbers.", number)]
    call = ModelCall("some-model", CONVERSATIONS[name], "Be brief.", tools, {"temperature": 0.5})
    return BODIES[protocol](call)


def test_every_kind_of_part_is_in_the_matrix() -> None:
    kinds = {get_args(kind)[0] for kind in get_args(get_args(ContentPart)[0])}
    tried = {type(part) for messages in CONVERSATIONS.values() for each in messages for part in each.content or ()}
    assert tried == kinds


@pytest.mark.parametrize(("protocol", "name"), [each for each in MATRIX if each not in REFUSED])
def test_a_part_is_sent_as_the_golden_file_shows(protocol: str, name: str) -> None:
    body, file = body_of(protocol, name), GOLDEN / protocol / f"{name}.json"
    if os.environ.get("REGENERATE_GOLDEN"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    assert body == orjson.loads(file.read_bytes())


@pytest.mark.parametrize(("protocol", "name"), REFUSED)
def test_a_part_that_the_protocol_cannot_express_is_refused_by_name(protocol: str, name: str) -> None:
    with pytest.raises(ModelAPIError) as raised:
        body_of(protocol, name)
    assert raised.value.type == "unsupported_content"
    reason = f"message-1: the {protocol} protocol has no place for {REFUSED[protocol, name]}"
    assert raised.value.message == reason


def test_there_is_a_golden_file_for_each_body_and_no_other() -> None:
    kept = {(file.parent.name, file.stem) for file in GOLDEN.glob("*/*.json")}
    assert kept == {each for each in MATRIX if each not in REFUSED}


@pytest.mark.parametrize(
    ("protocol", "body", "thinking", "switched"),
    [
        ("openai", {}, None, {}),
        ("openai", {}, True, {"reasoning_effort": "medium"}),
        ("openai", {"reasoning_effort": "high"}, None, {"reasoning_effort": "high"}),
        ("openai", {"reasoning_effort": "high"}, True, {"reasoning_effort": "high"}),
        ("openai", {"reasoning_effort": "high"}, False, {}),
        ("openai", {"reasoning_effort": "high", "reasoning": {}}, False, {"reasoning": {"effort": "none"}}),
        ("openai", {"reasoning": {"max_tokens": 9}}, True, {"reasoning": {"max_tokens": 9}}),
        ("openai", {"enable_thinking": True}, False, {"enable_thinking": False}),
        ("openai", {"thinking": {"type": "enabled"}}, False, {"thinking": {"type": "disabled"}}),
        (
            "openai",
            {"chat_template_kwargs": {"a": 1}},
            False,
            {"chat_template_kwargs": {"a": 1, "enable_thinking": False}},
        ),
        ("openai", {"chat_template_kwargs": None}, True, {"chat_template_kwargs": {"enable_thinking": True}}),
        ("responses", {}, None, {}),
        ("responses", {}, True, {"reasoning": {"effort": "medium"}}),
        ("responses", {"reasoning_effort": "high"}, True, {"reasoning": {"effort": "high"}}),
        ("responses", {"reasoning": {"effort": "high", "summary": "auto"}}, False, {}),
        ("anthropic", {}, None, {"max_tokens": 4096}),
        ("anthropic", {}, True, {"max_tokens": 4096, "thinking": {"type": "enabled", "budget_tokens": 2048}}),
        (
            "anthropic",
            {"max_tokens": 100, "temperature": 0, "top_k": 1},
            True,
            {"max_tokens": 2048, "thinking": {"type": "enabled", "budget_tokens": 1024}},
        ),
        (
            "anthropic",
            {"thinking": {"type": "adaptive"}},
            True,
            {"max_tokens": 4096, "thinking": {"type": "adaptive"}},
        ),
        ("anthropic", {"thinking": {"type": "adaptive"}}, False, {"max_tokens": 4096}),
    ],
)
def test_thinking_is_switched_by_the_providers_own_field(
    protocol: str, body: dict[str, Any], thinking: bool | None, switched: dict[str, Any]
) -> None:
    sent = BODIES[protocol](ModelCall("m", [ASKED], body=body, thinking=thinking))
    assert {name: value for name, value in sent.items() if name not in BODIES[protocol](ModelCall("m", [ASKED]))} == {
        name: value for name, value in switched.items() if name != "max_tokens"
    }
    assert sent.get("max_tokens") == switched.get("max_tokens")


@pytest.mark.parametrize("protocol", BODIES)
@pytest.mark.parametrize(
    ("given", "named"),
    [
        (message("assistant", IMAGE), "type image in a message of role assistant"),
        (message("system", IMAGE), "type image in a message of role system"),
        (message("user", *CALLED.content or ()), "type tool_call in a message of role user"),
        (message("assistant", *RETURNED.content or ()), "type tool_return in a message of role assistant"),
        (message("user", ReasoningContent(is_native=True, reasoning="hm")), "type reasoning in a message of role user"),
        (message("tool", "2"), "a tool return without a tool_call_id"),
    ],
)
def test_a_part_in_the_wrong_message_is_refused_by_name(protocol: str, given: Message, named: str) -> None:
    with pytest.raises(ModelAPIError, match=named) as raised:
        BODIES[protocol](ModelCall("m", [given]))
    assert raised.value.type == "unsupported_content"


@pytest.mark.parametrize("protocol", BODIES)
def test_settings_about_tools_are_sent_only_with_tools(protocol: str) -> None:
    name = "tool_choice" if protocol == "anthropic" else "parallel_tool_calls"
    with_tools = ModelCall("m", [ASKED], tools=[ToolSpec("add", "Add.", {"type": "object"})], body={name: "x"})
    assert BODIES[protocol](with_tools)[name] == "x"
    assert name not in BODIES[protocol](ModelCall("m", [ASKED], body={name: "x"}))

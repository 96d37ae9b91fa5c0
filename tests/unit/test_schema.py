"""The wire contract: parsing and serialising, checked with recorded bodies of a real server."""

from __future__ import annotations

import functools
import inspect
import re
import types
import typing
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticUndefined

import batchray.schema as schema
from batchray.errors import BatchFormatError
from batchray.schema import (
    MAX_INPUT_MESSAGES,
    MAX_MESSAGES_PER_ITEM,
    TERMINAL_JOB_STATUSES,
    AgentRequest,
    AgentState,
    ApprovalCreate,
    ApprovalReturn,
    AssistantMessage,
    Base64Image,
    BatchJob,
    Block,
    ContentPart,
    CreateAgent,
    CreateBatch,
    ErrorMessage,
    ImageContent,
    ItemStatus,
    JobStatus,
    LettaImage,
    LettaMessage,
    LettaRequest,
    LettaResponse,
    LettaToolCall,
    LLMConfig,
    Memory,
    Message,
    MessageCreate,
    MessageToolReturn,
    OmittedReasoningContent,
    ReasoningContent,
    RedactedReasoningContent,
    Result,
    StopReason,
    SummarizedReasoningContent,
    SummaryPart,
    TextContent,
    ToolCall,
    ToolCallContent,
    ToolReturn,
    ToolReturnContent,
    ToolReturnCreate,
    ToolReturnMessage,
    UpdateAgent,
    UpdateBlock,
    UrlImage,
    Usage,
    index_of,
    is_job_id,
    is_of_job,
    item_id,
    message_id,
    new_id,
    new_job_id,
    ordinal_of,
    otid,
    run_id,
    status_of,
    visible_messages,
)
from batchray.schema.openai_files import CreateFile, ExpirySeconds
from batchray.schema.visible import letta_messages
from batchray.server.routes.runs import StreamRun
from batchray.server.routes.tools import SearchTools

NOW = datetime(2026, 11, 23, 19, 21, 47, 123456, tzinfo=UTC)
JOB_ID = "job-e585b03b-3457-46fc-acfa-24351a867b9c"
MESSAGE_ID = "message-b86cc8d8-510f-40e3-8d64-30be903c2fef"

PART: TypeAdapter[Any] = TypeAdapter(ContentPart)
LETTA_MESSAGE: TypeAdapter[Any] = TypeAdapter(LettaMessage)


# -- every model, through JSON and back

TEXTS = st.text(min_size=1, max_size=8)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
PLAIN_VALUES: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXTS,
    int: st.integers(0, 2**53),
    bool: st.booleans(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    type(None): st.none(),
    datetime: st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.just(UTC)),
    Any: JSON_VALUES,
}
CALLBACK_URLS = st.none() | st.sampled_from(["http://h:9/", "https://example.com/cb?x=1"])


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for the values of a field's type."""
    if annotation in PLAIN_VALUES:
        return PLAIN_VALUES[annotation]
    if inspect.isclass(annotation) and issubclass(annotation, Enum):
        return st.sampled_from(list(annotation))
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return st.deferred(lambda: models(annotation))
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return values(arguments[0])
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(values, arguments))
    if origin is list:
        return st.lists(values(arguments[0]), max_size=2)
    assert origin is dict, annotation
    return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=2)


@functools.cache
def models(model: type[BaseModel]) -> st.SearchStrategy[Any]:
    """Return a strategy for whole models, built as code builds them: with some of the fields that have a default."""
    fields = {name: values(field.annotation) for name, field in model.model_fields.items()}
    optional = {name for name, field in model.model_fields.items() if field.default is not PydanticUndefined}
    if issubclass(model, LettaRequest):
        content, messages = fields.pop("input"), fields.pop("messages")
        either = st.fixed_dictionaries({"input": content.filter(lambda value: value is not None)})
        either |= st.fixed_dictionaries({"messages": messages.filter(lambda value: value is not None)})
        return st.builds(lambda one, rest: model(**one, **rest), either, some_of(fields, optional))
    if issubclass(model, CreateBatch):
        fields["callback_url"] = CALLBACK_URLS
    if issubclass(model, UpdateBlock):
        fields |= {"label": st.from_regex(r"\A[a-z][a-z0-9 ./-]{0,9}\Z"), "limit": st.integers(1, 2**53)}
    return some_of(fields, optional).map(lambda given: model(**given))


def some_of(fields: dict[str, st.SearchStrategy[Any]], optional: set[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Return a strategy for keyword arguments: all required ones, and a few of the optional ones."""
    required = {name: fields[name] for name in fields if name not in optional}
    names = [name for name in fields if name in optional]
    if not names:
        return st.fixed_dictionaries(required)
    return st.lists(st.sampled_from(names), unique=True, max_size=6).flatmap(
        lambda given: st.fixed_dictionaries({**required, **{name: fields[name] for name in given}})
    )


MODELS = [
    value
    for value in (getattr(schema, name) for name in schema.__all__)
    if inspect.isclass(value) and issubclass(value, BaseModel)
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
@settings(max_examples=15, deadline=None)  # the first example of a model also builds its strategy
@given(data=st.data())
def test_every_model_survives_json_and_writes_every_key(model: type[BaseModel], data: st.DataObject) -> None:
    value = data.draw(models(model))
    text = value.model_dump_json()
    assert model.model_validate_json(text) == value
    assert set(model.model_fields) <= orjson.loads(text).keys()


@settings(deadline=None)
@given(data=st.data())
def test_a_letta_message_survives_json_by_its_message_type(data: st.DataObject) -> None:
    value = data.draw(values(LettaMessage))
    again = LETTA_MESSAGE.validate_json(LETTA_MESSAGE.dump_json(value))
    assert (type(again), again) == (type(value), value)


def test_the_public_names_are_sorted_and_there() -> None:
    ordered = sorted(schema.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert schema.__all__ == ordered
    assert all(hasattr(schema, name) for name in schema.__all__)


# -- the recorded answers of a real server

SAMPLES = {
    path.stem: sample
    for path in sorted((Path(__file__).parents[1] / "data" / "letta_samples").glob("*.json"))
    if isinstance(sample := orjson.loads(path.read_bytes()), dict)
}
OK_SAMPLES = {name: sample for name, sample in SAMPLES.items() if sample["status"] == 200}


def named(pattern: str) -> list[str]:
    """Return the names of the successful samples that match; none is an error."""
    names = [name for name in OK_SAMPLES if re.fullmatch(pattern, name)]
    assert names, pattern
    return names


RESPONSES = named("anthropic_agent_message|messages_create_.*")
MESSAGE_LISTS = named(r"batch.*_messages(_.*)?")
JOBS = named(r"batch.*_(create|create_to_cancel|retrieve.*)|batch_mixed_providers")
JOB_LISTS = named(r"batch.*_list(_.*)?")
AGENTS = named("agent_.*")
CANCELS = named("batch_cancel_.*")


def test_every_successful_sample_is_read_by_a_test() -> None:
    assert sorted([*RESPONSES, *MESSAGE_LISTS, *JOBS, *JOB_LISTS, *AGENTS, *CANCELS]) == sorted(OK_SAMPLES)


@pytest.mark.parametrize("name", RESPONSES)
def test_a_recorded_response_is_written_as_it_was_read(name: str) -> None:
    body = OK_SAMPLES[name]["body"]
    assert orjson.loads(LettaResponse.model_validate(body).model_dump_json()) == body


@pytest.mark.parametrize("name", MESSAGE_LISTS)
def test_recorded_batch_messages_are_written_as_they_were_read(name: str) -> None:
    messages = OK_SAMPLES[name]["body"]["messages"]
    assert [orjson.loads(Message.model_validate(message).model_dump_json()) for message in messages] == messages


@pytest.mark.parametrize("name", AGENTS)
def test_a_recorded_agent_is_written_as_it_was_read(name: str) -> None:
    body = OK_SAMPLES[name]["body"]
    assert len(body) == len(AgentState.model_fields) == 45
    assert orjson.loads(AgentState.model_validate(body).model_dump_json()) == body


@pytest.mark.parametrize("name", [*JOBS, *JOB_LISTS])
def test_a_recorded_job_is_written_with_the_18_documented_fields(name: str) -> None:
    body = OK_SAMPLES[name]["body"]
    for recorded in body if isinstance(body, list) else [body]:
        job = orjson.loads(BatchJob.model_validate(recorded).model_dump_json())
        expected = {key: value for key, value in recorded.items() if key != "user_id"}
        for key in ("completed_at", "callback_sent_at"):  # the server writes these two without a zone
            expected[key] = recorded[key] and f"{recorded[key]}Z"
        assert (len(job), job) == (18, expected)


def request_model(sample: dict[str, Any]) -> type[BaseModel]:
    """Return the model of a recorded request's body."""
    return CreateBatch if sample["request"].endswith("/batches") else LettaRequest


def has_bad_body(sample: dict[str, Any]) -> bool:
    """Return whether the server refused this request's body, rather than an id in its path."""
    return sample["status"] == 422 and "('body'" in sample["body"]["detail"]


WITH_REQUEST_BODY = {name: sample for name, sample in SAMPLES.items() if sample.get("request_body") is not None}


@pytest.mark.parametrize("name", [name for name, sample in WITH_REQUEST_BODY.items() if not has_bad_body(sample)])
def test_a_request_body_that_the_server_accepted_is_accepted(name: str) -> None:
    sample = WITH_REQUEST_BODY[name]
    request_model(sample).model_validate(sample["request_body"])


@pytest.mark.parametrize("name", [name for name, sample in WITH_REQUEST_BODY.items() if has_bad_body(sample)])
def test_a_request_body_that_the_server_refused_is_refused(name: str) -> None:
    sample = WITH_REQUEST_BODY[name]
    with pytest.raises(ValidationError):
        request_model(sample).model_validate(sample["request_body"])


def internal_message(views: Sequence[dict[str, Any]]) -> Message:
    """Return the internal message from which recorded LettaMessages of one id were made."""
    content: list[Any] = []
    extra: dict[str, Any] = {"role": "assistant"}
    for view in views:
        if view["message_type"] == "reasoning_message":
            content.append({**view, "type": "reasoning", "is_native": view["source"] == "reasoner_model"})
        elif view["message_type"] == "assistant_message":
            content.append({"type": "text", "text": view["content"]})
        elif view["message_type"] == "tool_call_message":
            calls = view["tool_calls"]
            extra["tool_calls"] = [ToolCall.of(c["tool_call_id"], c["name"], c["arguments"]) for c in calls]
        else:
            returns = [{**one, "func_response": one["tool_return"]} for one in view["tool_returns"]]
            extra |= {"role": "tool", "tool_returns": returns}
    common = {key: views[0][key] for key in ("id", "name", "sender_id", "step_id", "is_err", "run_id")}
    created_at = datetime.fromisoformat(views[0]["date"]) + timedelta(milliseconds=999)
    return Message(**common, **extra, content=content, created_at=created_at)


@pytest.mark.parametrize("name", RESPONSES)
def test_letta_messages_match_the_recorded_ones(name: str) -> None:
    recorded = OK_SAMPLES[name]["body"]["messages"]
    for _, group in groupby(recorded, key=lambda view: view["id"]):
        views = list(group)
        made = letta_messages(internal_message(views))
        expected = views
        if name == "messages_create_filtered":  # its other views were filtered out before they were recorded
            expected = [{**views[0], "otid": otid(views[0]["id"], 0)}]
        assert [orjson.loads(LETTA_MESSAGE.dump_json(view)) for view in made] == expected


# -- requests

TYPED_PARTS = [
    TextContent(text="t"),
    TextContent(text="t", signature="s"),
    ImageContent(source=UrlImage(url="http://h/i.png")),
    ImageContent(source=Base64Image(media_type="image/png", data="AA==")),
    ImageContent(source=LettaImage(file_id="file-1")),
    ImageContent(source=LettaImage(file_id="file-1", media_type="image/png", data="AA==")),
    ToolCallContent(id="c", name="n", input={"x": [1]}),
    ToolReturnContent(tool_call_id="c", content="r", is_error=False),
    ReasoningContent(is_native=True, reasoning="r", signature="s"),
    RedactedReasoningContent(data="d"),
    OmittedReasoningContent(signature="s"),
    SummarizedReasoningContent(id="r", summary=[SummaryPart(index=0, text="t")]),
]


def without_types(value: Any) -> Any:
    """Return plain JSON data with every `type` and every null left out."""
    if isinstance(value, dict):
        return {key: without_types(inner) for key, inner in value.items() if key != "type" and inner is not None}
    return [without_types(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("part", TYPED_PARTS, ids=repr)
def test_a_part_without_type_is_recognised_by_its_keys(part: BaseModel) -> None:
    bare = without_types(part.model_dump())
    assert PART.validate_python(bare) == PART.validate_json(orjson.dumps(bare)) == part


@pytest.mark.parametrize(
    "part", [{}, {"colour": 1}, {"type": "video", "text": "t"}, {"type": ["text"]}, "text", None, 3]
)
def test_an_unknown_part_is_one_error_that_names_the_types(part: Any) -> None:
    with pytest.raises(ValidationError, match="not a known content part: give a `type` of image,") as caught:
        PART.validate_python(part)
    assert [error["type"] for error in caught.value.errors()] == ["unknown_content_part"]


def test_an_unknown_image_source_is_one_error_with_its_path() -> None:
    with pytest.raises(ValidationError) as caught:
        PART.validate_python({"source": {"path": "/i.png"}})
    assert [(error["type"], error["loc"]) for error in caught.value.errors()] == [
        ("unknown_image_source", ("image", "source"))
    ]


@given(
    st.none() | st.text() | st.just([{"text": "t"}]), st.sampled_from([None, [], [{"role": "user", "content": "c"}]])
)
def test_exactly_one_of_input_and_messages_is_accepted(content: Any, messages: Any) -> None:
    body = {"agent_id": "a", "input": content, "messages": messages}
    if (content is None) == (messages is None):
        expected = "Must specify either" if content is None else "Cannot specify both"
        with pytest.raises(ValidationError, match=expected):
            AgentRequest.model_validate(body)
        return
    request = AgentRequest.model_validate(body)
    if content is None:
        assert request.input_messages == request.messages
    else:
        assert request.input_messages == [MessageCreate.model_validate({"role": "user", "content": content})]


def test_a_request_keeps_its_defaults_and_ignores_unknown_fields() -> None:
    request = AgentRequest.model_validate({"agent_id": "calculator", "input": "1+1", "unheard_of": 1})
    assert (request.max_steps, request.enable_thinking, request.custom_id) == (None, True, None)
    assert (request.use_assistant_message, request.assistant_message_tool_name) == (True, "send_message")
    assert "unheard_of" not in request.model_dump()


@pytest.mark.parametrize("agent_id", ["a", "agent_id", "x" * 256, "agent-8f58ccfb-02f3-4e23-b494-e858cc975984"])
def test_any_agent_id_up_to_256_characters_is_accepted(agent_id: str) -> None:
    assert AgentRequest(agent_id=agent_id, input="x").agent_id == agent_id


@pytest.mark.parametrize("agent_id", ["", "x" * 257, 7, None])
def test_an_agent_id_that_is_empty_too_long_or_not_text_is_refused(agent_id: Any) -> None:
    with pytest.raises(ValidationError):
        AgentRequest.model_validate({"agent_id": agent_id, "input": "x"})
    with pytest.raises(BatchFormatError, match=r"^agent_id: [^\n]*$"):
        AgentRequest(agent_id=agent_id, input="x")


@pytest.mark.parametrize("value", [True, False, "true", "high"])
def test_enable_thinking_is_a_string_or_a_bool(value: str | bool) -> None:
    request = AgentRequest(agent_id="a", input="x", enable_thinking=value)
    again = AgentRequest.model_validate_json(request.model_dump_json()).enable_thinking
    assert (type(again), again) == (type(value), value)


def test_the_system_prompt_of_one_request_has_two_names() -> None:
    both = [
        AgentRequest.model_validate({"agent_id": "a", "input": "x", key: "s"}) for key in ("system", "override_system")
    ]
    assert [request.override_system for request in both] == ["s", "s"]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "user", "content": "c"}, MessageCreate),
        ({"type": None, "role": "user", "content": "c"}, MessageCreate),
        ({"approvals": [{"approve": True, "tool_call_id": "c"}]}, ApprovalCreate),
        ({"approve": False, "approval_request_id": "c"}, ApprovalCreate),
        ({"approval_request_id": "c"}, ApprovalCreate),
        ({"tool_returns": [{"tool_return": "r", "status": "success", "tool_call_id": "c"}]}, ToolReturnCreate),
    ],
)
def test_a_message_without_type_is_recognised_by_its_keys(message: Any, expected: type[BaseModel]) -> None:
    request = AgentRequest.model_validate({"agent_id": "a", "messages": [message]})
    assert [type(one) for one in request.input_messages] == [expected]


def test_a_message_of_an_unknown_type_is_one_error() -> None:
    with pytest.raises(ValidationError) as caught:
        AgentRequest.model_validate({"agent_id": "a", "messages": [{"type": "letter", "content": "c"}]})
    assert [(error["type"], error["loc"]) for error in caught.value.errors()] == [("unknown_message", ("messages", 0))]


def test_an_approval_in_the_old_form_becomes_an_entry_of_approvals() -> None:
    old = ApprovalCreate.model_validate({"approve": False, "approval_request_id": "call_1", "reason": "no"})
    assert old.approvals == [ApprovalReturn(tool_call_id="call_1", approve=False, reason="no")]
    assert ApprovalCreate.model_validate({"approve": True}).approvals is None


def test_given_approvals_win_over_the_old_form() -> None:
    answers = [
        {"approve": True, "tool_call_id": "call_2"},
        {"tool_return": "r", "status": "error", "tool_call_id": "call_3"},
    ]
    both = ApprovalCreate.model_validate({"approvals": answers, "approve": False, "approval_request_id": "call_1"})
    assert both.approvals == [
        ApprovalReturn(tool_call_id="call_2", approve=True),
        ToolReturn(tool_call_id="call_3", status="error", tool_return="r"),
    ]


@pytest.mark.parametrize(
    ("url", "kept"),
    [(None, None), ("http://h:9", "http://h:9/"), ("HTTPS://Example.com/cb?x=1", "https://example.com/cb?x=1")],
)
def test_a_callback_url_is_kept_normalised(url: str | None, kept: str | None) -> None:
    batch = CreateBatch.model_validate({"requests": [], "callback_url": url})
    assert batch.callback_url == kept
    assert orjson.loads(batch.model_dump_json())["callback_url"] == kept


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("not a url", "url_parsing"),
        ("", "url_parsing"),
        ("ftp://h/x", "url_scheme"),
        ("http://h/" + "x" * 2083, "url_too_long"),
    ],
)
def test_a_callback_url_that_cannot_be_posted_to_is_refused(url: str, error: str) -> None:
    with pytest.raises(ValidationError) as caught:
        CreateBatch.model_validate({"requests": [], "callback_url": url})
    assert [one["type"] for one in caught.value.errors()] == [error]


# -- messages


def message(**fields: Any) -> Message:
    """Return a message that came from an agent, or with what `fields` say."""
    return Message(**({"id": MESSAGE_ID, "role": "assistant", "created_at": NOW} | fields))


def request(**fields: Any) -> AgentRequest:
    return AgentRequest.model_validate({"agent_id": "a", "input": "hi", **fields})


def types_of(views: Sequence[Any]) -> list[str]:
    """Return the message types of LettaMessages."""
    return [view.message_type for view in views]


def test_reasoning_text_and_calls_are_separate_messages_with_one_id() -> None:
    parts = [
        ReasoningContent(is_native=True, reasoning="a"),
        RedactedReasoningContent(data="b"),
        OmittedReasoningContent(),
        SummarizedReasoningContent(id="r", summary=[SummaryPart(index=k, text=text) for k, text in enumerate("cd")]),
        TextContent(text="e"),
        TextContent(text="f"),
    ]
    calls = [ToolCall.of("call_1", "roll", "{}"), ToolCall.of("call_2", "roll", "{}")]
    views = letta_messages(message(content=parts, tool_calls=calls))
    assert types_of(views) == [
        "reasoning_message",
        "hidden_reasoning_message",
        "hidden_reasoning_message",
        "reasoning_message",
        "assistant_message",
        "tool_call_message",
    ]
    assert [view.otid for view in views] == [otid(MESSAGE_ID, k) for k in range(6)]  # type: ignore[union-attr]
    dumped = [view.model_dump() for view in views]
    assert {view["id"] for view in dumped} == {MESSAGE_ID}
    assert (dumped[1]["state"], dumped[1]["hidden_reasoning"], dumped[2]["state"]) == ("redacted", "b", "omitted")
    assert (dumped[3]["reasoning"], dumped[4]["content"]) == ("c\n\nd", "ef")
    assert [call["tool_call_id"] for call in dumped[5]["tool_calls"]] == ["call_1", "call_2"]
    assert dumped[5]["tool_call"] == dumped[5]["tool_calls"][0]


@pytest.mark.parametrize("content", [None, [], [TextContent(text="")], [ImageContent(source=UrlImage(url="http://h"))]])
def test_an_assistant_message_without_content_gives_no_letta_message(content: Any) -> None:
    assert letta_messages(message(content=content)) == []


def test_parts_after_the_last_otid_have_none() -> None:
    views = letta_messages(message(content=[ReasoningContent(is_native=True, reasoning=str(k)) for k in range(130)]))
    assert [getattr(view, "otid", "") is None for view in views] == [k >= 128 for k in range(130)]


def test_the_message_tool_becomes_an_assistant_message_only_on_demand() -> None:
    calls = [
        ToolCall.of("call_1", "roll", "{}"),
        ToolCall.of("call_2", "send_message", '{"message": "hi"}'),
        ToolCall.of("call_3", "send_message", "{broken"),
        ToolCall.of("call_4", "send_message", "[]"),
    ]
    asked = message(tool_calls=calls)
    assert types_of(letta_messages(asked)) == ["tool_call_message"]
    views = letta_messages(asked, "send_message")
    assert types_of(views) == ["tool_call_message", "assistant_message", "tool_call_message"]
    assert isinstance(views[1], AssistantMessage)
    assert views[1].content == "hi"


def test_returns_of_the_message_tool_are_dropped_only_on_demand() -> None:
    calls = [ToolCall.of("call_1", "roll", "{}"), ToolCall.of("call_2", "send_message", '{"message": "hi"}')]
    returns = [MessageToolReturn(tool_call_id=f"call_{i}", status="success", func_response=str(i)) for i in (1, 2)]
    messages = [message(tool_calls=calls), message(role="tool", name="roll", tool_returns=returns)]
    asked = visible_messages(messages, request(use_assistant_message=True))
    assert types_of(asked) == ["tool_call_message", "assistant_message", "tool_return_message"]
    assert isinstance(asked[2], ToolReturnMessage)
    assert [each.tool_call_id for each in asked[2].tool_returns or ()] == ["call_1"]
    only = visible_messages(
        [messages[0], message(role="tool", tool_returns=returns[1:])], request(use_assistant_message=True)
    )
    assert types_of(only) == ["tool_call_message", "assistant_message"]


def test_a_return_of_another_step_with_the_same_call_id_stays_visible() -> None:
    def step(name: str, step_id: str) -> list[Message]:
        calls = [ToolCall.of("call_0", name, '{"message": "hi"}')]
        returned = MessageToolReturn(tool_call_id="call_0", status="success", func_response=name)
        said = message(tool_calls=calls, step_id=step_id)
        return [said, message(role="tool", tool_returns=[returned], step_id=step_id)]

    messages = [*step("roll", "step-1"), *step("send_message", "step-2")]
    asked = visible_messages(messages, request(use_assistant_message=True))
    assert types_of(asked) == ["tool_call_message", "tool_return_message", "assistant_message"]


@pytest.mark.parametrize(
    ("fields", "is_spoken"),
    [
        ({}, False),
        ({"use_assistant_message": False, "assistant_message_tool_name": "say"}, False),
        ({"use_assistant_message": True, "assistant_message_tool_name": "say"}, True),
        ({"assistant_message_tool_name": "say"}, True),
        ({"assistant_message_tool_kwarg": "text"}, False),
        ({"assistant_message_tool_name": "say", "assistant_message_tool_kwarg": "text"}, False),
    ],
)
def test_the_request_names_the_assistant_message_tool_and_its_argument(fields: dict[str, Any], is_spoken: bool) -> None:
    said = message(tool_calls=[ToolCall.of("call_1", "say", '{"message": "hi"}')])
    views = visible_messages([said], request(**fields))
    assert types_of(views) == ["assistant_message" if is_spoken else "tool_call_message"]


@pytest.mark.parametrize(
    ("fields", "thinking"),
    [({}, None), *(({"enable_thinking": no}, False) for no in (False, "false", "False", "off", "0"))]
    + [({"enable_thinking": yes}, True) for yes in (True, "true", "medium")],
)
def test_thinking_is_left_to_the_agent_if_the_request_does_not_set_it(
    fields: dict[str, Any], thinking: bool | None
) -> None:
    assert request(**fields).thinking is thinking


def test_a_tool_message_without_returns_gives_no_message() -> None:
    assert letta_messages(message(role="tool")) == []


def test_the_input_of_a_user_keeps_its_otid_and_its_parts() -> None:
    text, picture = TextContent(text="look"), ImageContent(source=UrlImage(url="http://h/i.png"))
    views = [letta_messages(message(role="user", otid="mine", content=c)) for c in ([text], [text, picture])]
    assert [view[0].model_dump()["otid"] for view in views] == ["mine", "mine"]
    assert [view[0].content for view in views] == ["look", [text, picture]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("role", "key", "kind"), [("system", "content", "system_message"), ("summary", "summary", "summary_message")]
)
def test_system_and_summary_messages_carry_their_text(role: str, key: str, kind: str) -> None:
    (view,) = letta_messages(message(role=role, content=[TextContent(text="a"), TextContent(text="b")]))
    assert (view.message_type, getattr(view, key)) == (kind, "ab")


def test_an_approval_message_is_a_request_with_calls_and_a_response_without() -> None:
    calls = [ToolCall.of("call_1", "roll", "{}")]
    asked = letta_messages(message(role="approval", content=[TextContent(text="may I?")], tool_calls=calls))
    assert types_of(asked) == ["assistant_message", "approval_request_message"]
    answers: list[Any] = [
        ApprovalReturn(tool_call_id="call_1", approve=True),
        MessageToolReturn(tool_call_id="call_2", status="error", func_response="r", stderr=["e"]),
    ]
    (answered,) = letta_messages(message(role="approval", approvals=answers, approve=True, denial_reason="why"))
    dumped = answered.model_dump()
    assert (answered.message_type, dumped["approve"], dumped["reason"]) == ("approval_response_message", True, "why")
    assert dumped["approvals"][0]["approve"] is True
    assert (dumped["approvals"][1]["tool_return"], dumped["approvals"][1]["stderr"]) == ("r", ["e"])


def test_only_the_asked_types_are_kept() -> None:
    said = message(content=[TextContent(text="t")], tool_calls=[ToolCall.of("c", "roll", "{}")])
    views = letta_messages(said)
    assert visible_messages([said], request()) == views
    assert visible_messages([said], request(include_return_message_types=[])) == []
    assert visible_messages([said], request(include_return_message_types=["tool_call_message"])) == views[1:]


def test_a_delta_of_a_token_stream_can_be_read() -> None:
    delta = {"id": MESSAGE_ID, "date": "2026-11-23T19:21:47+00:00", "message_type": "tool_call_message"}
    view = LETTA_MESSAGE.validate_python(
        delta | {"tool_call": {"arguments": '{"si'}, "tool_calls": {"arguments": '{"si'}}
    )
    assert view.tool_calls == LettaToolCall(arguments='{"si')


def test_the_end_of_a_broken_stream_can_be_read() -> None:
    body = {
        "message_type": "error_message",
        "run_id": "run-1",
        "error_type": "llm_error",
        "message": "m",
        "detail": "d",
    }
    assert LETTA_MESSAGE.validate_python(body) == ErrorMessage(
        run_id="run-1", error_type="llm_error", message="m", detail="d"
    )


def test_a_message_knows_its_text_and_a_call_its_name() -> None:
    assert message(content=[TextContent(text="a"), ReasoningContent(is_native=True, reasoning="x")]).text == "a"
    assert message(content=None).text == ""
    call = ToolCall.of("call_1", "roll", '{"sides": 6}')
    assert (call.name, call.arguments) == ("roll", '{"sides": 6}')
    assert call.model_dump() == {
        "id": "call_1",
        "type": "function",
        "function": {"name": "roll", "arguments": '{"sides": 6}'},
    }


def test_models_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        message().role = "user"  # type: ignore[misc]


# -- jobs and outcomes


def test_times_are_written_in_utc_with_z() -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=2)))
    for given_time in (NOW, NOW.replace(tzinfo=None), elsewhere):
        job = BatchJob(id=JOB_ID, created_at=given_time)
        assert orjson.loads(job.model_dump_json())["created_at"] == "2026-11-23T19:21:47.123456Z"


def test_the_documented_stop_reasons_come_first_and_the_newer_ones_are_read_too() -> None:
    words = [reason.value for reason in StopReason]
    assert len(words) == 13
    assert words[10:] == ["max_tokens_exceeded", "insufficient_credits", "context_window_overflow_in_system_prompt"]


def test_every_stop_reason_has_the_item_status_of_the_design() -> None:
    succeeded = {"end_turn", "max_steps", "tool_rule", "requires_approval"}
    for reason in StopReason:
        expected = "succeeded" if reason in succeeded else "canceled" if reason == "cancelled" else "errored"
        assert status_of(reason) is ItemStatus(expected)


def test_a_job_is_over_in_four_of_its_states() -> None:
    assert set(JobStatus) - TERMINAL_JOB_STATUSES == {JobStatus.CREATED, JobStatus.RUNNING, JobStatus.PENDING}


@settings(deadline=None)
@given(models(Usage), models(Usage), models(Usage))
def test_usage_adds_up_field_by_field_in_any_order(a: Usage, b: Usage, c: Usage) -> None:
    assert (a + b) + c == a + (c + b)
    assert a + Usage() == a
    total = (a + b).model_dump()
    assert total == {key: min(value + b.model_dump()[key], 2**53) for key, value in a.model_dump().items()}


def test_usage_and_timing_below_zero_are_refused() -> None:
    with pytest.raises(ValidationError):
        Usage(prompt_tokens=-1)


def test_a_result_line_has_the_documented_keys() -> None:
    request = "index custom_id metadata row batch_item_id agent_id model"
    outcome = "status stop_reason input messages usage cost_usd error stdout stderr attempts timing"
    assert " ".join(Result.model_fields) == f"{request} {outcome}"
    assert {"prompt_tokens", "completion_tokens", "total_tokens", "step_count"} <= Usage.model_fields.keys()


def test_an_agent_of_ours_has_the_45_keys_of_a_real_one() -> None:
    config = LLMConfig(model="m", model_endpoint_type="openai", context_window=8192)
    blocks = [Block(id=new_id("block"), value="v", label="human")]
    lists: dict[str, Any] = {"blocks": blocks, "tools": [], "sources": [], "tags": []}
    agent = AgentState(id="calculator", name="c", system="s", llm_config=config, memory=Memory(blocks=blocks), **lists)
    assert orjson.loads(agent.model_dump_json()).keys() == OK_SAMPLES["agent_retrieve"]["body"].keys()


@pytest.mark.parametrize(
    "missing", ["id", "name", "system", "llm_config", "memory", "blocks", "tools", "sources", "tags"]
)
def test_an_agent_without_a_field_that_strict_clients_need_is_refused(missing: str) -> None:
    body = {key: value for key, value in OK_SAMPLES["agent_retrieve"]["body"].items() if key != missing}
    with pytest.raises(ValidationError, match=missing):
        AgentState.model_validate(body)


# -- ids

JOB_IDS = st.uuids(version=4).map(lambda value: f"job-{value}")
INDEXES = st.integers(0, 2**28 - 1)
ORDINALS = st.integers(0, 4095)


def is_uuid4(derived: str, prefix: str) -> bool:
    """Return whether an id is `<prefix>-<uuid4>` in lower case."""
    parsed = uuid.UUID(derived.removeprefix(f"{prefix}-"))
    return derived == f"{prefix}-{parsed}" and parsed.version == 4


@given(JOB_IDS, INDEXES, ORDINALS)
def test_derived_ids_are_uuid4s_that_contain_index_and_ordinal(job_id: str, index: int, ordinal: int) -> None:
    item, run, answer = item_id(job_id, index), run_id(job_id, index), message_id(job_id, index, ordinal)
    assert is_uuid4(item, "batch_item")
    assert is_uuid4(run, "run")
    assert is_uuid4(answer, "message")
    assert item.removeprefix("batch_item-") == run.removeprefix("run-")
    assert {index_of(item), index_of(run), index_of(answer)} == {index}
    assert ordinal_of(answer) == ordinal
    assert all(is_of_job(derived, job_id) for derived in (item, run, answer))


@given(JOB_IDS, st.tuples(INDEXES, ORDINALS), st.tuples(INDEXES, ORDINALS))
def test_message_ids_sort_by_index_and_ordinal(job_id: str, a: tuple[int, int], b: tuple[int, int]) -> None:
    assert (message_id(job_id, *a) < message_id(job_id, *b)) == (a < b)


@given(JOB_IDS, INDEXES, ORDINALS, st.integers(0, 127))
def test_an_otid_is_the_messages_uuid_with_the_part_in_its_low_7_bits(
    job: str, index: int, ordinal: int, k: int
) -> None:
    derived = message_id(job, index, ordinal)
    assert uuid.UUID(otid(derived, k)).int == uuid.UUID(derived.removeprefix("message-")).int + k


@given(st.uuids(version=4), st.integers(0, 127))
def test_the_otid_of_any_message_matches_lettas(value: uuid.UUID, k: int) -> None:
    assert otid(f"message-{value}", k) == str(uuid.UUID(int=value.int & ~0x7F | k))


@pytest.mark.parametrize(
    "make",
    [
        lambda: item_id(JOB_ID, -1),
        lambda: item_id(JOB_ID, 2**28),
        lambda: run_id("job-123e4567-e89b-12d3-a456-426614174000", 0),
        lambda: item_id(JOB_ID.upper(), 0),
        lambda: item_id(MESSAGE_ID, 0),
        lambda: message_id(JOB_ID, 0, -1),
        lambda: message_id(JOB_ID, 0, 4096),
        lambda: index_of(JOB_ID),
        lambda: index_of("run-x"),
        lambda: ordinal_of(item_id(JOB_ID, 0)),
        lambda: otid(MESSAGE_ID, 128),
        lambda: otid(MESSAGE_ID, -1),
        lambda: otid(MESSAGE_ID + "\n", 0),
    ],
)
def test_an_id_out_of_range_or_of_another_form_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"need 0 <=|not an id"):
        make()


def test_new_ids_are_uuid4s_and_differ() -> None:
    assert is_uuid4(new_id("step"), "step")
    assert new_job_id() != new_job_id()
    assert is_job_id(new_job_id())


@pytest.mark.parametrize(
    "value", ["", "job_id", "job-123e4567-e89b-12d3-a456-426614174000", JOB_ID.upper(), JOB_ID + "\n"]
)
def test_only_job_and_uuid4_is_a_job_id(value: str) -> None:
    assert not is_job_id(value)


def test_an_id_of_another_job_is_recognised() -> None:
    other = "job-e585b03b-3457-46fc-acfb-24351a867b9c"
    assert not is_of_job(item_id(other, 0), JOB_ID)
    assert not is_of_job(JOB_ID, JOB_ID)


def test_the_messages_of_a_request_are_limited_so_that_ids_are_left_for_the_agents_own() -> None:
    def asked(n: int) -> AgentRequest:
        message = {"role": "user", "content": "?"}
        return AgentRequest.model_validate({"agent_id": "a", "messages": [message] * n})

    assert MAX_INPUT_MESSAGES < MAX_MESSAGES_PER_ITEM
    assert len(asked(MAX_INPUT_MESSAGES).input_messages) == MAX_INPUT_MESSAGES
    with pytest.raises(ValidationError, match=f"at most {MAX_INPUT_MESSAGES} items"):
        asked(MAX_INPUT_MESSAGES + 1)


def reachable(annotation: Any) -> set[type[BaseModel]]:
    """Return the models in an annotation, and those in their fields."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}.union(*(reachable(field.annotation) for field in annotation.model_fields.values()))
    return set[type[BaseModel]]().union(*map(reachable, typing.get_args(annotation)))


@pytest.mark.parametrize("body", [AgentRequest, CreateAgent, UpdateAgent, UpdateBlock, SearchTools, StreamRun])
def test_an_integer_of_a_body_may_be_written_as_a_number_with_a_point(body: type[BaseModel]) -> None:
    n_integers = 0
    for model in reachable(body):
        for name, field in model.model_fields.items():
            adapter = TypeAdapter[Any](field.rebuild_annotation())
            kinds = adapter.json_schema().get("anyOf", [adapter.json_schema()])
            if any(kind.get("type") == "integer" for kind in kinds):
                assert adapter.validate_json("7.0", strict=True) == 7, (model, name)
                for bad in ("7.5", "true", "1e300"):
                    with pytest.raises(ValidationError):
                        adapter.validate_json(bad, strict=True)
                n_integers += 1
    assert n_integers


def test_the_expiry_of_a_file_is_never_null_in_a_form_and_any_whole_number_in_json() -> None:
    assert all("anyOf" not in field for field in CreateFile.model_json_schema()["properties"].values())
    assert TypeAdapter(ExpirySeconds).validate_json("3600.0", strict=True) == 3600

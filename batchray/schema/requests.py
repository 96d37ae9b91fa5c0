"""Requests: the body of a batch, its requests, and the messages in them.

Source: `LettaBatchRequest` and `CreateBatch` of Letta's server 0.16.8, and "Create Batch" in Letta's API reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AliasChoices,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetPydanticSchema,
    HttpUrl,
    StringConstraints,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import core_schema

from batchray.errors import BatchFormatError
from batchray.schema.base import Integer, WireModel, any_present, one_given
from batchray.schema.construction import ConstructedModel
from batchray.schema.content import Content, ImageContent, TextContent, tag_by_shape
from batchray.schema.ids import MAX_INPUT_MESSAGES
from batchray.schema.keys import did_you_mean, unused_keys
from batchray.schema.request_settings import RequestSettings
from batchray.schema.validation_text import path_text, request_problem


class MessageType(StrEnum):
    """The kinds of message that a request can ask to receive.

    The last two are newer than the batch endpoint; batchray accepts but never emits them.
    """

    SYSTEM_MESSAGE = "system_message"
    USER_MESSAGE = "user_message"
    ASSISTANT_MESSAGE = "assistant_message"
    REASONING_MESSAGE = "reasoning_message"
    HIDDEN_REASONING_MESSAGE = "hidden_reasoning_message"
    TOOL_CALL_MESSAGE = "tool_call_message"
    TOOL_RETURN_MESSAGE = "tool_return_message"
    APPROVAL_REQUEST_MESSAGE = "approval_request_message"
    APPROVAL_RESPONSE_MESSAGE = "approval_response_message"
    SUMMARY_MESSAGE = "summary_message"
    EVENT_MESSAGE = "event_message"


def _message_if_none(value: Any) -> Any:
    return "message" if value is None else value


class MessageCreate(WireModel):
    """A message for an agent.  `batch_item_id` is set by batchray."""

    without_effect: ClassVar[Set[str]] = frozenset({"batch_item_id"})

    type: Annotated[Literal["message"], BeforeValidator(_message_if_none)] = "message"
    role: Literal["user", "system", "assistant"]
    content: Content
    name: str | None = None
    otid: str | None = None
    sender_id: str | None = None
    group_id: str | None = None
    batch_item_id: str | None = None


class ApprovalReturn(WireModel):
    """Approval or denial of one tool call."""

    type: Literal["approval"] = "approval"
    tool_call_id: str
    approve: bool
    reason: str | None = None


ToolReturnPart = Annotated[
    Annotated[TextContent, Tag("text")] | Annotated[ImageContent, Tag("image")],
    tag_by_shape("tool return part", (("text", frozenset({"text"})), ("image", frozenset({"source"})))),
]
"""One part of a tool's return."""


class ToolReturn(WireModel):
    """The return of one tool call, from the caller's side or in a LettaMessage."""

    type: Literal["tool"] = "tool"
    tool_return: str | list[ToolReturnPart]
    status: Literal["success", "error"]
    tool_call_id: str
    stdout: list[str] | None = None
    stderr: list[str] | None = None


Approval = Annotated[
    Annotated[ApprovalReturn, Tag("approval")] | Annotated[ToolReturn, Tag("tool")],
    tag_by_shape("approval", (("tool", frozenset({"tool_return"})), ("approval", frozenset({"approve"})))),
]
"""An answer to a tool call that waits for the caller."""


class ApprovalCreate(WireModel):
    """Answers to the tool calls at which an agent stopped.

    The deprecated `approve`, `approval_request_id` and `reason` become one entry of `approvals` if that is missing.
    """

    model_config = ConfigDict(json_schema_extra=any_present("type", "approvals", "approval_request_id", "approve"))

    type: Literal["approval"] = "approval"
    approvals: list[Approval] | None = None
    otid: str | None = None
    group_id: str | None = None
    approve: bool | None = None
    approval_request_id: str | None = None
    reason: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _migrate(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("approvals"):
            return data
        approve, call_id = data.get("approve"), data.get("approval_request_id")
        if approve is None or call_id is None:
            return data
        answer = {"type": "approval", "tool_call_id": call_id, "approve": approve, "reason": data.get("reason")}
        return {**data, "approvals": [answer]}


class ToolReturnCreate(WireModel):
    """Returns of the caller's own tools."""

    type: Literal["tool_return"] = "tool_return"
    tool_returns: list[ToolReturn]
    otid: str | None = None
    group_id: str | None = None


_REQUEST_MESSAGE_SHAPES = (
    ("approval", frozenset({"approvals"})),
    ("approval", frozenset({"approval_request_id"})),
    ("approval", frozenset({"approve"})),
    ("tool_return", frozenset({"tool_returns"})),
    # Last and without keys: anything else is validated as a message, and its errors are those of a message.
    ("message", frozenset[str]()),
)

RequestMessage = Annotated[
    Annotated[MessageCreate, Tag("message")]
    | Annotated[ApprovalCreate, Tag("approval")]
    | Annotated[ToolReturnCreate, Tag("tool_return")],
    tag_by_shape("message", _REQUEST_MESSAGE_SHAPES),
]
"""One entry of a request's `messages`."""


class ClientTool(WireModel):
    """A tool that the caller runs: calling it ends the run with `requires_approval`.  `parameters` is a JSON Schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ClientSkill(WireModel):
    """A skill that the caller provides."""

    name: str
    description: str
    location: str


_FALSE_WORDS = frozenset({"false", "no", "off", "0", ""})
_ASSISTANT_TOOL_FIELDS = frozenset(
    {"use_assistant_message", "assistant_message_tool_name", "assistant_message_tool_kwarg"}
)


class LettaRequest(WireModel):
    """A request to an agent, with exactly one of `input` and `messages`.

    `max_steps` is None if the caller leaves it to the agent (Letta's own default is 50).  The fields from
    `client_skills` on are newer than Letta's batch endpoint.
    """

    model_config = ConfigDict(json_schema_extra=one_given("input", "messages"))

    without_effect: ClassVar[Set[str]] = frozenset({"include_compaction_messages"})  # no conversation is compacted
    refused: ClassVar[Mapping[str, str]] = {
        "client_skills": "skills are not supported; describe them in system or in the messages",
        "override_model": "a request runs on its agent's model; name an agent that has this one",
        **dict.fromkeys(
            ("return_logprobs", "top_logprobs", "return_token_ids"), "tokens and their probabilities are not returned"
        ),
    }
    other_names: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("prompt", "query", "question", "text", "content"), "input"),
        **dict.fromkeys(("id", "key"), "custom_id"),
        **dict.fromkeys(("agent", "agent_name"), "agent_id"),
        "tools": "client_tools",
        "system_prompt": "system",
    }
    """Usual names of other APIs for fields of a request; errors suggest the field."""

    messages: Annotated[list[RequestMessage], Field(max_length=MAX_INPUT_MESSAGES)] | None = None
    input: Content | None = None
    max_steps: Integer | None = None
    include_return_message_types: list[MessageType] | None = None
    use_assistant_message: bool = True
    assistant_message_tool_name: str = "send_message"
    assistant_message_tool_kwarg: str = "message"
    enable_thinking: str | bool = True
    client_tools: list[ClientTool] | None = None
    client_skills: list[ClientSkill] | None = None
    override_model: str | None = None
    include_compaction_messages: bool = False
    return_logprobs: bool = False
    top_logprobs: Integer | None = None
    return_token_ids: bool = False
    override_system: str | None = Field(default=None, validation_alias=AliasChoices("override_system", "system"))

    @model_validator(mode="after")
    def _check_one_of_input_and_messages(self) -> Self:
        if self.input is not None and self.messages is not None:
            raise ValueError("Cannot specify both 'input' and 'messages'. Use one or the other.")
        if self.input is None and self.messages is None:
            raise ValueError("Must specify either 'input' or 'messages'.")
        return self

    @property
    def input_messages(self) -> list[RequestMessage]:
        """The messages for the agent; `input` is one user message."""
        if self.input is not None:
            return [MessageCreate(role="user", content=self.input)]
        return list(self.messages or ())

    @property
    def n_input_messages(self) -> int:
        """How many messages there are for the agent."""
        return 1 if self.input is not None else len(self.messages or ())

    @property
    def thinking(self) -> bool | None:
        """Whether `enable_thinking` asks for reasoning; None if the caller leaves that to the agent."""
        if "enable_thinking" not in self.model_fields_set:
            return None
        return str(self.enable_thinking).strip().lower() not in _FALSE_WORDS

    @property
    def assistant_message_tool(self) -> str | None:
        """The tool whose calls are shown as assistant messages, or None.

        Letta's newer agents, which all agents here are, ignore the deprecated switch and its default.  It takes effect
        only if the caller sets it, or names a tool or an argument.
        """
        is_set = not _ASSISTANT_TOOL_FIELDS.isdisjoint(self.model_fields_set)
        return self.assistant_message_tool_name if self.use_assistant_message and is_set else None


_MESSAGE_OPTIONS = _ASSISTANT_TOOL_FIELDS | {"include_return_message_types"}
_NO_OPTIONS = LettaRequest(input="")


def shows_all_messages(request: Mapping[str, Any]) -> bool:
    """Return whether a stored request has no field that says which messages are shown, and how."""
    return _MESSAGE_OPTIONS.isdisjoint(request)


def message_options(request: Mapping[str, Any]) -> LettaRequest:
    """Return a request with only those fields of a stored one that say which messages are shown, and how."""
    if shows_all_messages(request):
        return _NO_OPTIONS
    return LettaRequest(input="", **{name: request[name] for name in _MESSAGE_OPTIONS & request.keys()})


class AgentRequest(LettaRequest, ConstructedModel):
    """One entry of a batch: Letta's `requests[]` with a `custom_id` and `metadata` of the caller.

    Both are returned with the result; no model sees them.  `custom_id` is a text or an integer.  `agent_id` is any id
    of 1 to 256 characters, such as Letta's `agent-<uuid4>`.  `settings` are those of the model for this request.
    """

    agent_id: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    custom_id: str | Integer | None = None
    metadata: dict[str, Any] | None = None
    settings: RequestSettings | None = None

    @classmethod
    def check_arguments(cls, arguments: Mapping[str, Any]) -> None:
        """Raise BatchFormatError for an unknown argument of the constructor."""
        for path, level, is_known, _ in unused_keys(cls, arguments):
            if not is_known:
                reason = f"unknown key{did_you_mean(str(path[-1]), level, arguments if len(path) == 1 else ())}"
                raise BatchFormatError(reason, path=path_text(path))

    @classmethod
    def usage_error(cls, error: ValidationError) -> BatchFormatError:
        """Return the error of the constructor."""
        path, reason = request_problem(error)
        return BatchFormatError(reason, path=path)


def _http_url_as_str(_source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
    as_str = core_schema.to_string_ser_schema()
    return core_schema.no_info_after_validator_function(str, handler.generate_schema(HttpUrl), serialization=as_str)


CallbackUrl = Annotated[str, GetPydanticSchema(_http_url_as_str)]
"""An http or https address of 1 to 2083 characters, normalised (`http://h:9` becomes `http://h:9/`)."""


class CreateBatch(WireModel):
    """The body of POST /v1/messages/batches.  The batch reader checks that `requests` is not empty."""

    requests: Annotated[list[AgentRequest], Field(json_schema_extra={"minItems": 1})]
    callback_url: CallbackUrl | None = None

"""Settings of a new agent's model, and rules for its tools, in Letta's words.

Source: `AgentCreateParams` and `AgentUpdateParams` of Letta's Python SDK 1.7.0 and 1.12.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from batchray.schema.base import WHOLE, Integer, WireModel

Effort = Literal["low", "medium", "high", "xhigh", "max"]
Verbosity = Literal["low", "medium", "high"]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
ProviderType = Literal[
    "openai",
    "sglang",
    "anthropic",
    "google_ai",
    "google_vertex",
    "azure",
    "xai",
    "moonshot",
    "zai",
    "moonshot_coding",
    "groq",
    "deepseek",
    "together",
    "bedrock",
    "baseten",
    "openrouter",
    "chatgpt_oauth",
]
Temperature = Annotated[float, Field(ge=0)]
MaxTokens = Annotated[int, Field(ge=1), WHOLE]

_NO_TOKENS = "tokens and their probabilities are not returned"
_NO_STRICT = "the schemas of tools are not sent as strict"
_NO_PARSER = "tool calls are parsed by the provider"
_NO_GOOGLE = "batchray has no protocol of Google's"


_HAS_SCHEMA: JsonDict = {
    "not": {"type": "null"},
    "properties": {"schema": {"type": "object"}},
    "required": ["schema"],
}
_WITH_SCHEMA: JsonDict = {
    "properties": {"type": {"const": "json_schema"}, "json_schema": _HAS_SCHEMA},
    "required": ["json_schema"],
}
_WITHOUT_SCHEMA: JsonDict = {"properties": {"type": {"enum": ["text", "json_object"]}, "json_schema": {"type": "null"}}}


class ResponseFormat(WireModel):
    """The format of a model's answers: any text, any JSON object, or JSON of a schema."""

    model_config = ConfigDict(json_schema_extra={"allOf": [{"oneOf": [_WITH_SCHEMA, _WITHOUT_SCHEMA]}]})

    type: Literal["text", "json_schema", "json_object"]
    json_schema: dict[str, Any] | None = None
    """A name and a `schema`, as OpenAI's API has it."""

    @model_validator(mode="after")
    def _check_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema and the type 'json_schema' belong together")
        if self.json_schema is not None and not isinstance(self.json_schema.get("schema"), dict):
            raise ValueError("json_schema needs a name and a schema: {'name': ..., 'schema': {...}}")
        return self


class Reasoning(WireModel):
    """How much a model of OpenAI reasons."""

    reasoning_effort: ReasoningEffort | None = None


class Thinking(WireModel):
    """Whether a model of Anthropic thinks, and with how many tokens."""

    type: Literal["enabled", "disabled"] = "enabled"
    budget_tokens: MaxTokens | None = None


class ModelSettings(WireModel):
    """Settings of an agent's model.  Which of them it can have depends on the protocol of its provider."""

    refused: ClassVar[Mapping[str, str]] = {
        "strict": _NO_STRICT,
        "tool_call_parser": _NO_PARSER,
        "response_schema": f"{_NO_GOOGLE}; use response_format",
        "thinking_config": f"{_NO_GOOGLE}; use reasoning or thinking",
    }

    provider_type: ProviderType | None = None
    temperature: Temperature | None = None
    max_output_tokens: MaxTokens | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning: Reasoning | None = None
    thinking: Thinking | None = None
    effort: Effort | None = None
    verbosity: Verbosity | None = None
    strict: bool = False
    tool_call_parser: str | None = None
    response_schema: dict[str, Any] | None = None
    thinking_config: dict[str, Any] | None = None


class GivenLLMConfig(WireModel):
    """Letta's older form of a model and its settings."""

    without_effect: ClassVar[Set[str]] = frozenset(
        {
            *("context_window", "model_endpoint_type", "model_endpoint", "model_wrapper", "provider_category"),
            *("display_name", "compatibility_type", "tier", "put_inner_thoughts_in_kwargs"),
        }
    )
    refused: ClassVar[Mapping[str, str]] = {
        "max_reasoning_tokens": "give model_settings.thinking with budget_tokens",
        "strict": _NO_STRICT,
        "tool_call_parser": _NO_PARSER,
        **dict.fromkeys(("return_logprobs", "top_logprobs", "return_token_ids"), _NO_TOKENS),
    }

    model: Annotated[str, Field(min_length=1)]
    model_endpoint_type: str
    context_window: Integer
    model_endpoint: str | None = None
    model_wrapper: str | None = None
    provider_name: str | None = None
    provider_category: str | None = None
    handle: str | None = None
    display_name: str | None = None
    compatibility_type: str | None = None
    tier: str | None = None
    put_inner_thoughts_in_kwargs: bool | None = None
    temperature: Temperature | None = None
    max_tokens: MaxTokens | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    enable_reasoner: bool | None = None
    reasoning_effort: ReasoningEffort | None = None
    effort: Effort | None = None
    verbosity: Verbosity | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    max_reasoning_tokens: Integer | None = None
    strict: bool = False
    tool_call_parser: str | None = None
    return_logprobs: bool = False
    top_logprobs: Integer | None = None
    return_token_ids: bool = False


class ToolRule(WireModel):
    """A rule for a tool: its call ends the run, waits for the caller, or, as that of any tool, continues the run."""

    without_effect: ClassVar[Set[str]] = frozenset({"prompt_template"})  # Letta ignores it too
    refused: ClassVar[Mapping[str, str]] = dict.fromkeys(
        (
            *("args", "children", "child_arg_nodes", "child_output_mapping", "default_child"),
            *("require_output_mapping", "max_count_limit"),
        ),
        "rules that choose the next tool, or count calls, are not supported",
    )

    type: Literal["exit_loop", "requires_approval", "continue_loop"]
    tool_name: str
    prompt_template: str | None = None
    args: dict[str, Any] | None = None
    children: list[str] | None = None
    child_arg_nodes: list[dict[str, Any]] | None = None
    child_output_mapping: dict[str, str] | None = None
    default_child: str | None = None
    require_output_mapping: bool = False
    max_count_limit: Integer | None = None

"""Body fields of chat completions in the spelling of the Responses API.

An agent's file may have been written for chat completions, and its model may since have been routed to Responses.
Source: OpenAI's API reference, "Create chat completion", "Create a model response", and its guide "Migrate to the
Responses API"; the names as in its Python SDK 3.57.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Fields = dict[str, Any]

LOGPROBS = "message.output_text.logprobs"
"""The value of `include` that asks for the log probabilities of the text."""
UNKNOWN = frozenset(
    {
        "audio",
        "frequency_penalty",
        "function_call",
        "functions",
        "logit_bias",
        "modalities",
        "n",
        "prediction",
        "presence_penalty",
        "seed",
        "stop",
        "web_search_options",
    }
)
"""Fields of chat completions that the Responses API refuses, and that it has no counterpart for."""


def lost_fields(body: Mapping[str, Any]) -> list[str]:
    """Return the names of the fields that Responses has no counterpart for."""
    return sorted(name for name in body if name in UNKNOWN and body[name] is not None)


def translate(body: Mapping[str, Any]) -> Fields:
    """Return the fields in Responses' spelling, without those that it has no counterpart for.

    A field that is given in both spellings keeps the value of Responses' own.
    """
    fields: Fields = {}
    for name, value in body.items():
        if name in _TRANSLATORS:
            _merge(fields, _TRANSLATORS[name](value), wins=False)
        elif name not in UNKNOWN:
            _merge(fields, {name: value}, wins=True)
    return fields


def _merge(fields: Fields, new: Mapping[str, Any], *, wins: bool) -> None:
    """Add fields; objects are joined, lists appended.  `wins` is False for a translation, which only fills gaps."""
    for name, value in new.items():
        old = fields.get(name)
        if isinstance(old, dict) and isinstance(value, dict):
            fields[name] = {**old, **value} if wins else {**value, **old}
        elif isinstance(old, list) and isinstance(value, list):
            fields[name] = [*value, *old] if wins else [*old, *value]
        elif wins or old is None:
            fields[name] = value


def _renamed(name: str) -> Callable[[Any], Fields]:
    return lambda value: {name: value}


def _effort(value: Any) -> Fields:
    return {"reasoning": {"effort": value}}


def _verbosity(value: Any) -> Fields:
    return {"text": {"verbosity": value}}


def _response_format(value: Any) -> Fields:
    """Chat completions wraps the name and the schema in `json_schema`; Responses has them next to the type."""
    return {"text": {"format": _unwrapped(value, "json_schema")}} if value is not None else {}


def _tool_choice(value: Any) -> Fields:
    if isinstance(value, dict):
        value = _unwrapped(_unwrapped(value, "function"), "allowed_tools")
        if isinstance(value.get("tools"), list):
            value = {**value, "tools": _unwrapped_tools(value["tools"])}
    return {"tool_choice": value}


def _tools(value: Any) -> Fields:
    return {"tools": _unwrapped_tools(value) if isinstance(value, list) else value}


def _unwrapped_tools(tools: Sequence[Any]) -> list[Any]:
    return [_unwrapped(_unwrapped(tool, "function"), "custom") for tool in tools]


def _unwrapped(value: Any, key: str) -> Any:
    """Return an object with the content of its `key` among its other fields."""
    if not isinstance(value, dict) or not isinstance(value.get(key), dict):
        return value
    return {**{name: each for name, each in value.items() if name != key}, **value[key]}


def _stream_options(value: Any) -> Fields:
    options = {name: each for name, each in (value or {}).items() if name != "include_usage"}
    return {"stream_options": options} if options else {}  # Responses always reports the usage


def _logprobs(value: Any) -> Fields:
    return {"include": [LOGPROBS]} if value else {}


_TRANSLATORS: Mapping[str, Callable[[Any], Fields]] = {
    "max_completion_tokens": _renamed("max_output_tokens"),
    "max_tokens": _renamed("max_output_tokens"),
    "logprobs": _logprobs,
    "reasoning_effort": _effort,
    "response_format": _response_format,
    "stream_options": _stream_options,
    "tool_choice": _tool_choice,
    "tools": _tools,
    "verbosity": _verbosity,
}

"""The model's settings of an agent that a client describes, in the words of the agents file.

Letta's API has up to four names for one setting, in `model_settings`, in `llm_config` and at the top; a body may give
any of them.  Settings here have one name each: that of the field of `Agent`, or of the model call's body.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from batchray.config import Agent
from batchray.models.responses_fields import UNKNOWN
from batchray.models.thinking import thinking_switch
from batchray.server.errors import HttpError

_Place = tuple[str, ...]
# Where a body gives each setting: the first place that has one counts, and the first of all is shown in errors.
_PLACES: Mapping[str, tuple[_Place, ...]] = {
    "temperature": (("model_settings", "temperature"), ("llm_config", "temperature")),
    "max_tokens": (("model_settings", "max_output_tokens"), ("max_tokens",), ("llm_config", "max_tokens")),
    "parallel_tool_calls": (
        ("model_settings", "parallel_tool_calls"),
        ("parallel_tool_calls",),
        ("llm_config", "parallel_tool_calls"),
    ),
    "response_format": (
        ("model_settings", "response_format"),
        ("response_format",),
        ("llm_config", "response_format"),
    ),
    "reasoning_effort": (
        ("model_settings", "reasoning", "reasoning_effort"),
        ("llm_config", "reasoning_effort"),
    ),
    "verbosity": (("model_settings", "verbosity"), ("llm_config", "verbosity")),
    "frequency_penalty": (("llm_config", "frequency_penalty"),),
    "thinking": (("model_settings", "thinking"),),
    "effort": (("model_settings", "effort"), ("llm_config", "effort")),
    "enable_thinking": (("reasoning",), ("enable_reasoner",), ("llm_config", "enable_reasoner")),
}
_OF_AGENT = frozenset({"temperature", "max_tokens", "enable_thinking"})
_OF_OPENAI = frozenset({"response_format", "parallel_tool_calls", "reasoning_effort", "verbosity", "frequency_penalty"})
_OF_ANTHROPIC = frozenset({"response_format", "parallel_tool_calls", "thinking", "effort"})


class GivenSettings(NamedTuple):
    """The settings that a body gives, by name, and the paths in it that another one replaces."""

    values: Mapping[str, Any]
    replaced: Sequence[str]


def settings_of(given: Mapping[str, Any]) -> GivenSettings:
    """Return the settings that a body gives.  Of two values for one setting the first of `_PLACES` counts."""
    values, replaced = dict[str, Any](), list[str]()
    for name, places in _PLACES.items():
        found = [(place, value) for place in places if (value := _at(given, place)) is not None]
        if found:
            values[name] = found[0][1]
            replaced += [".".join(place) for place, value in found[1:] if value != values[name]]
    return GivenSettings(values, replaced)


def options_of(settings: Mapping[str, Any], protocol: str, base_url: str | None) -> dict[str, Any]:
    """Return settings as fields of `Agent`.  Raises HttpError 422 for one that the protocol does not have."""
    in_body = {name: value for name, value in settings.items() if name not in _OF_AGENT}
    for name in in_body.keys() - _possible(protocol, base_url):
        raise HttpError(422, f"{_shown_name(name)}: the agent's provider, of protocol {protocol}, does not have it")
    body = _anthropic_body(in_body) if protocol == "anthropic" else dict(in_body)
    if isinstance(body.get("response_format"), dict):
        body["response_format"] = _named(body["response_format"])
    of_agent = {name: value for name, value in settings.items() if name in _OF_AGENT}
    return {**of_agent, **({"body": body} if body else {})}


def settings_of_agent(agent: Agent) -> dict[str, Any]:
    """Return the settings of an agent of the agents file, as far as Letta's API has them."""
    found = {**agent.request_body, **agent.body.get("output_config", {}), "enable_thinking": agent.enable_thinking}
    return {name: found[name] for name in _PLACES if found.get(name) is not None}


def shown_settings(settings: Mapping[str, Any], provider_type: str) -> dict[str, Any]:
    """Return settings as `model_settings` shows them."""
    shown: dict[str, Any] = {"provider_type": provider_type}
    for name, places in _PLACES.items():
        if name in settings and places[0][0] == "model_settings":
            path = places[0][1:]
            shown[path[0]] = settings[name] if len(path) == 1 else {path[1]: settings[name]}
    return shown


def handle_of(llm_config: Mapping[str, Any]) -> str | None:
    """Return the handle "provider/model" that Letta's older form of a model gives, or its name alone."""
    handle, name, provider = (llm_config.get(key) for key in ("handle", "model", "provider_name"))
    return handle or (f"{provider}/{name}" if provider and name else name)


def is_same_model(name: str, handle: str) -> bool:
    """Return whether a handle, or a model's name alone, is that of `handle`."""
    return name in (handle, handle.partition("/")[2])


def _at(given: Mapping[str, Any], place: _Place) -> Any:
    value: Any = given
    for name in place:
        value = (value or {}).get(name)
    return value


def _shown_name(name: str) -> str:
    return ".".join(_PLACES[name][0])


def _possible(protocol: str, base_url: str | None) -> frozenset[str]:
    """Return the names of the settings that a provider's protocol has, besides those of all protocols."""
    match protocol:
        case "anthropic":
            return _OF_ANTHROPIC
        case "responses":
            return _OF_OPENAI - UNKNOWN
        case "openai":
            return _OF_OPENAI | ({"thinking"} if thinking_switch(base_url or "") == "thinking" else set())
    return _OF_OPENAI | _OF_ANTHROPIC  # offline: stand-ins for a model of any provider


def _anthropic_body(settings: Mapping[str, Any]) -> dict[str, Any]:
    body = {name: settings[name] for name in ("response_format", "thinking") if name in settings}
    if (body.get("response_format") or {}).get("type") == "json_object":
        raise HttpError(422, "response_format: a model of Anthropic needs a schema; give the type json_schema")
    if settings.get("parallel_tool_calls") is False:
        body["tool_choice"] = {"type": "auto", "disable_parallel_tool_use": True}
    if "effort" in settings:
        body["output_config"] = {"effort": settings["effort"]}
    return body


def _named(response_format: Mapping[str, Any]) -> dict[str, Any]:
    """Return a format whose schema has a name, which OpenAI's API requires."""
    if response_format.get("type") != "json_schema":
        return {"type": response_format["type"]}
    return {"type": "json_schema", "json_schema": {"name": "response", **response_format["json_schema"]}}

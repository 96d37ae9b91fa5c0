"""A request's `enable_thinking` in the fields of OpenAI's protocols, which have no single switch for it.

Sources: OpenAI's API reference, `reasoning_effort`, and the values that its errors name for each model; OpenRouter's
"Reasoning Tokens"; vLLM's "Reasoning Outputs" for `chat_template_kwargs`; DeepSeek's "Thinking Mode"; the references
of Moonshot, Z.ai and Alibaba.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

_NONE = "none"
_DEFAULT = "medium"


class _Efforts(NamedTuple):
    """The efforts that a family of models takes.  None: there is no effort to ask for."""

    on: str | None
    off: str | None
    """`none` switches reasoning off; models that cannot do that get their lowest effort."""


# OpenAI's families of models, by the end of the name; the first that matches counts.
_FAMILIES = tuple(
    (re.compile(pattern), efforts)
    for pattern, efforts in (
        (r"gpt-[\d.]+-chat|chatgpt|gpt-(3|4)|o1-(mini|preview)", _Efforts(None, None)),  # they do not reason
        (r"(gpt|o)[\w.-]*-(pro\b|deep-research)", _Efforts(None, None)),  # always at full effort
        (r"gpt-[\d.]+-codex|codex|o\d|gpt-oss", _Efforts(_DEFAULT, "low")),
        (r"gpt-5($|-)", _Efforts(_DEFAULT, "minimal")),
        (r"gpt-(5\.|[6-9]|\d\d)", _Efforts(_DEFAULT, _NONE)),
    )
)
_UNKNOWN = _Efforts(_DEFAULT, None)
_HOSTS = {
    "api.deepseek.com": "thinking",
    "api.moonshot.ai": "thinking",
    "api.moonshot.cn": "thinking",
    "api.z.ai": "thinking",
    "open.bigmodel.cn": "thinking",
    "aliyuncs.com": "enable_thinking",
    "openrouter.ai": "reasoning",
}


def effort(model: str, given: Any, thinking: bool) -> Any:
    """Return the reasoning effort to ask `model` for, or None to ask for none in particular.

    `given` is that of the agent's file; it stays if it already switches reasoning as asked.
    """
    name = model.lower().rpartition("/")[2]
    efforts = next((found for pattern, found in _FAMILIES if pattern.match(name)), _UNKNOWN)
    if not thinking:
        return efforts.off
    return given if given is not None and given != _NONE else efforts.on


def with_reasoning(body: Mapping[str, Any], model: str, thinking: bool | None) -> Mapping[str, Any]:
    """Return the fields of a call to Responses with reasoning switched on or off; None leaves them unchanged."""
    if thinking is None:
        return body
    if (switched := _by_own_switch(body, thinking)) is not None:
        return switched
    given = body.get("reasoning") or {}
    asked = effort(model, given.get("effort"), thinking)
    kept = {name: value for name, value in given.items() if name != "effort"} if thinking else {}
    reasoning = {**kept, "effort": asked} if asked is not None else kept
    rest = {name: value for name, value in body.items() if name != "reasoning"}
    return {**rest, "reasoning": reasoning} if reasoning else rest


def thinking_switch(base_url: str) -> str | None:
    """Return the field by which a known host switches reasoning in chat completions; None for an unknown host."""
    host = urlsplit(base_url).hostname or ""
    return next((field for end, field in _HOSTS.items() if host == end or host.endswith(f".{end}")), None)


def with_reasoning_effort(
    body: Mapping[str, Any], model: str, thinking: bool | None, switch: str | None = None
) -> Mapping[str, Any]:
    """Return the fields of a chat completion with reasoning switched on or off; None leaves them unchanged.

    A field of the agent's file that is a switch is set, or else that of the host, `switch`, or else `reasoning_effort`.
    """
    if thinking is None:
        return body
    if (switched := _by_own_switch(body, thinking)) is not None:
        return switched
    rest = {name: value for name, value in body.items() if name != "reasoning_effort"}
    if "reasoning" in body or switch == "reasoning":
        if not thinking:
            return {**rest, "reasoning": {"effort": _NONE}}
        return body if "reasoning" in body or "reasoning_effort" in body else {**body, "reasoning": {"enabled": True}}
    if switch is not None:
        return _by_own_switch({**(body if thinking else rest), switch: None}, thinking) or body
    asked = effort(model, body.get("reasoning_effort"), thinking)
    return {**rest, "reasoning_effort": asked} if asked is not None else rest


def _by_own_switch(body: Mapping[str, Any], thinking: bool) -> Mapping[str, Any] | None:
    """Return the fields with the server's own switch set, if it is among them."""
    if "chat_template_kwargs" in body:  # vLLM, SGLang, llama.cpp
        return {**body, "chat_template_kwargs": {**(body["chat_template_kwargs"] or {}), "enable_thinking": thinking}}
    if "enable_thinking" in body:
        return {**body, "enable_thinking": thinking}
    if "thinking" in body:
        return {**body, "thinking": {**(body["thinking"] or {}), "type": "enabled" if thinking else "disabled"}}
    return None

"""Which of OpenAI's two protocols a model needs.

Sources: the errors of OpenAI's API (openai/openai-openapi#541, BerriAI/litellm#34569), and the models that its Python
SDK 3.57 lists for Responses and not for chat completions.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import urlsplit

OPENAI_URL = "https://api.openai.com/v1"
"""OpenAI's own server."""
OPENAI_HOSTS = frozenset({"api.openai.com", "eu.api.openai.com", "us.api.openai.com"})
"""OpenAI's own server, also by region.  Other servers choose what they offer, so nothing is assumed of them."""


class ProtocolRoute(NamedTuple):
    """Models that need Responses: a pattern of their whole names, and why."""

    models: re.Pattern[str]
    reason: str


def _route(models: str, reason: str) -> ProtocolRoute:
    return ProtocolRoute(re.compile(models), reason)


ROUTES = (
    _route(r"(gpt|o)[\w.-]*-pro(-.*)?", "it is offered on Responses only"),
    _route(r"(gpt-[\w.]+-)?codex(-.*)?", "it is offered on Responses only"),
    _route(r"[\w.-]*-deep-research(-.*)?", "it is offered on Responses only"),
    _route(r"computer-use-.*", "it is offered on Responses only"),
    _route(r"gpt-(daybreak|rosalind)-.*|gpt-[\w.]+-(cyber|rosalind)(-.*)?", "it is offered on Responses only"),
    _route(r"gpt-5\.([2-9]|\d\d)(?!.*-chat).*", "chat completions refuses its tools together with reasoning"),
    _route(r"gpt-([6-9]|\d\d)\b(?!.*-chat).*", "chat completions refuses its tools together with reasoning"),
)
"""The models that need Responses.  All others use chat completions."""


def openai_protocol(model: str, base_url: str) -> str:
    """Return `responses` if OpenAI's own server offers `model` fully only there, or else `openai`."""
    if urlsplit(base_url).hostname not in OPENAI_HOSTS:
        return "openai"
    name = model.removeprefix("ft:").partition(":")[0]  # a fine-tuned model has the needs of the one below it
    return "responses" if any(route.models.fullmatch(name) for route in ROUTES) else "openai"

"""Fields of a call that a model of OpenAI refuses, and calls without them.

Models that reason take no parameters of sampling, and another name for the limit of an answer; models that do not
reason cannot be asked for reasoning; some servers and models cannot stream, or refuse `stream_options`.
Nothing but the refusal of a call says which is which.
Source: the errors of OpenAI's API (`unsupported_parameter`, `unsupported_value`), as public reports quote them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from batchray.errors import ModelAPIError
from batchray.models.base import ModelCall

logger = logging.getLogger(__name__)

T = TypeVar("T")

ENCRYPTED = "reasoning.encrypted_content"
"""The value of `include` that asks for reasoning which a later call can send back."""

_REFUSED = re.compile(r"(?:unsupported|unknown|unrecognized) (?:parameter|value): '([\w.]+)'", re.IGNORECASE)
_INSTEAD = re.compile(r"use '(\w+)' instead", re.IGNORECASE)
_NO_ENCRYPTION = re.compile("encrypted content is not supported with this model", re.IGNORECASE)
# OpenAI's words for a model or an organization that cannot stream, and those of compatible servers.
_NO_STREAM = re.compile(
    r"'stream' does not support|verified to stream|\bstream(ing)? is not (supported|available)"
    r"|not support stream(ing)?\b",
    re.IGNORECASE,
)
# Without these an answer still is an answer.  A refusal of any other field is the caller's to correct.
_SAMPLING = frozenset({"frequency_penalty", "logprobs", "presence_penalty", "temperature", "top_logprobs", "top_p"})
_OWN = frozenset({"include", "store"})  # what this client adds for OpenAI's server
_EFFORTS = frozenset({"reasoning_effort", "reasoning.effort"})


class RefusedFields:
    """The fields that each model has refused since its client was made.  `provider` is named in warnings."""

    def __init__(self, provider: str) -> None:
        self._provider = provider
        self._by_model: dict[str, dict[str, str | None]] = {}  # the field to its other name, or to None

    async def send(
        self, call: ModelCall, body: Mapping[str, Any], post: Callable[[Mapping[str, Any]], Awaitable[T]]
    ) -> T:
        """Return what `post` returns for a body, without the fields that the model refuses, then or now.

        Raises what `post` raises otherwise.
        """
        while True:
            sent = _without(body, self._by_model.get(call.model, {}))
            try:
                return await post(sent)
            except ModelAPIError as error:
                if error.type != "bad_request" or not self._learn(call, sent, error.message):
                    raise
                if _without(body, self._by_model[call.model]) == sent:  # a model that takes neither of two fields
                    raise

    def _learn(self, call: ModelCall, sent: Mapping[str, Any], message: str) -> bool:
        """Keep what a refusal says; return whether it concerns a field that can be left out or renamed."""
        if _NO_ENCRYPTION.search(message):
            return ENCRYPTED in (sent.get("include") or ()) and self._keep(call.model, ENCRYPTED, None)
        if (field := _stream_field(message)) is not None and sent.get(field):
            return self._keep(call.model, field, None)
        found = _REFUSED.search(message)
        if found is None or not _has(sent, found[1]):
            return False
        name, instead = found[1], _INSTEAD.search(message)
        if instead:
            return instead[1] not in sent and self._keep(call.model, name, instead[1])
        # An effort that the request's switch has chosen: the model keeps its own.
        is_own = name in _OWN and name not in call.body
        if name in _SAMPLING or is_own or (name in _EFFORTS and call.thinking is not None):
            return self._keep(call.model, name, None)
        return False

    def _keep(self, model: str, name: str, instead: str | None) -> bool:
        fields = self._by_model.setdefault(model, {})
        if name not in fields:  # another call may have met it first
            fields[name] = instead
            what = f"is sent as {instead}" if instead else "is left out"
            logger.warning("provider %s: the model %s does not take %s; it %s", self._provider, model, name, what)
        return True


def _stream_field(message: str) -> str | None:
    """Return the field of streaming that an error is about."""
    if "stream_options" in message:
        return "stream_options"
    return "stream" if _NO_STREAM.search(message) else None


def _has(body: Mapping[str, Any], name: str) -> bool:
    field, _, part = name.partition(".")
    return field in body and (not part or part in (body[field] or {}))


def _without(body: Mapping[str, Any], refused: Mapping[str, str | None]) -> Mapping[str, Any]:
    if not refused:
        return body
    fields = dict(body)
    if "stream" in refused:
        fields.pop("stream_options", None)
    for name, instead in refused.items():
        if name == ENCRYPTED:
            _replace(fields, "include", [each for each in fields.get("include") or () if each != ENCRYPTED])
        elif _has(fields, name):
            field, _, part = name.partition(".")
            value = fields[field]
            _replace(fields, field, {key: each for key, each in value.items() if key != part} if part else None)
            if instead:
                fields.setdefault(instead, value)
    return fields


def _replace(fields: dict[str, Any], name: str, value: Any) -> None:
    """Set a field, or remove it if its value is empty."""
    if value:
        fields[name] = value
    else:
        fields.pop(name, None)

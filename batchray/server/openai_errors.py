"""Errors on the routes of OpenAI's API, in its shape: `{"error": {"message", "type", "param", "code"}}`.

Source: OpenAI's API reference, "Error codes"; its client makes the class of an exception of the status.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from batchray.schema.base import WireModel

# `/v1/models/` itself is Letta's, and so are the embedding models below it.
_PATHS = re.compile("/v1/(?:(?:files|batches)(?:/|$)|models(?:$|/(?!embedding(?:/|$)).))")
_CODES = {401: "invalid_api_key", 405: "method_not_supported", 507: "disk_full"}


class OpenAIError(WireModel):
    """An error: `param` names the parameter, and `code` the kind of the error, if there is one."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorBody(WireModel):
    """The body of an error of OpenAI's API."""

    error: OpenAIError


def is_of_openai(path: str) -> bool:
    """Return whether a path belongs to OpenAI's API."""
    return _PATHS.match(path) is not None


def openai_status(status: int) -> int:
    """Return the status that OpenAI's API has for an error: 400 for any input that it refuses."""
    return 400 if status == 422 else status


def openai_error(status: int, message: str, more: Mapping[str, Any]) -> OpenAIErrorBody:
    """Return the body of an error.  `more` may have a `param` and a `code`."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    code = more.get("code") or _CODES.get(status)
    return OpenAIErrorBody(error=OpenAIError(message=message, type=kind, param=more.get("param"), code=code))

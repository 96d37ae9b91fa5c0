"""Errors as providers report them: which are transient, and which type the caller sees."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

ERROR_TYPES = {
    400: "bad_request",
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_denied",
    404: "not_found",
    408: "timeout",
    409: "conflict",
    413: "request_too_large",
    422: "bad_request",
    429: "rate_limited",
}
"""The type of the caller's error for each HTTP status."""
FINAL_CODES = {"context_length_exceeded", "insufficient_quota"}
"""Codes of permanent errors, whatever their status.

`insufficient_quota` comes with 429, but waiting does not refill an account.
"""
# How vLLM and Anthropic report a conversation longer than the model's context.
_TOO_LONG = re.compile("maximum context length|prompt is too long|exceed context limit")
# Codes of transient errors inside a stream, which has no status for them, and the status each one stands for.
_TRANSIENT_CODES = {
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "server_error": 500,
    "internal_server_error": 500,
    "internal_error": 500,
    "api_error": 500,
    "service_unavailable": 503,
    "overloaded_error": 503,
    "overloaded": 503,
    "timeout": 504,
    "timeout_error": 504,
}


class TransientError(Exception):
    """A failed attempt that may succeed if repeated.  Never leaves this package."""

    def __init__(self, type: str, detail: str, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(type, detail, status, retry_after_s)
        self.type, self.detail, self.status, self.retry_after_s = type, detail, status, retry_after_s

    def __str__(self) -> str:
        return f"status {self.status}" if self.status else self.type.replace("_", " ")


class ProviderError(NamedTuple):
    """An error object from a provider.  `codes` are its `code` and `type`, lower-cased, if present."""

    message: str
    codes: frozenset[str] = frozenset()
    status: int | None = None

    @classmethod
    def read(cls, error: Any) -> ProviderError:
        """Parse the value of `error` in a body or a stream: an object or a string."""
        if not isinstance(error, Mapping):
            return cls(str(error or ""))
        codes = frozenset(str(error[key]).lower() for key in ("code", "type") if error.get(key) is not None)
        status = next((int(code) for code in codes if re.fullmatch(r"[45]\d\d", code)), None)
        status = status or next((_TRANSIENT_CODES[code] for code in sorted(codes) if code in _TRANSIENT_CODES), None)
        return cls(str(error.get("message") or ""), codes, status)

    @classmethod
    def of_body(cls, body: bytes) -> ProviderError:
        """Parse an error body: the JSON of OpenAI, Anthropic, vLLM or FastAPI, or else text."""
        try:
            parsed = orjson.loads(body)
        except orjson.JSONDecodeError:
            return cls(body.decode(errors="replace"))
        return cls.read(parsed.get("error") or parsed.get("detail") or parsed if isinstance(parsed, dict) else parsed)

    @property
    def is_too_long(self) -> bool:
        """Whether the conversation is longer than the model's context; some providers say so only in the message."""
        return "context_length_exceeded" in self.codes or _TOO_LONG.search(self.message) is not None


def is_transient_status(status: int) -> bool:
    """Whether a request with this status may succeed if repeated."""
    return status in (408, 409, 429) or status >= 500

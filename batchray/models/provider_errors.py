"""Errors as providers report them: which are transient, and which type the caller sees."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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
FINAL_CODES = {"context_length_exceeded", "insufficient_quota", "budget_exceeded"}
"""Codes of permanent errors, whatever their status.

`insufficient_quota` comes with 429, but waiting does not refill an account.  `budget_exceeded` is LiteLLM's.
"""
_PASSING_STATUSES = frozenset({408, 409, 425, 429, 498})  # 498: Groq's flex tier has no capacity
# How providers report a conversation longer than the model's context, in codes or in the message.
_TOO_LONG = re.compile(
    "context_length_exceeded|context_window_exceeded|exceed_context_size|ContextWindowExceeded|maximum context length"
    "|prompt is (too long|longer than)|exceeds? (the )?(context limit|available context|model's context|context window)"
    "|longer than the model's context|exceeds the maximum number of tokens|input is too long|reduce the length of",
    re.IGNORECASE,
)
# Codes of passing errors, letters only, and the status that each one stands for: a stream has no status for them.
_PASSING_CODES = (
    (re.compile("ratelimit|toomanyrequests|resourceexhausted|throttl"), 429),
    (re.compile("overloaded|unavailable|capacityexceeded|enginebusy"), 503),
    (re.compile("timeout|timedout|deadlineexceeded"), 504),
    (re.compile("badgateway"), 502),
    (re.compile("^(api|server|internal|internalserver)(error)?$"), 500),
)
# The same in the message, which is all that some servers give.
_PASSING_WORDS = re.compile(
    "overloaded|try again|temporar|timed? ?out|internal server error|(service|server|model) (is )?unavailable"
    "|bad gateway|rate limit|too many requests|at capacity|connection (was )?(reset|closed|aborted|refused)",
    re.IGNORECASE,
)
_CODE_KEYS = ("code", "type", "status", "error_code", "status_code", "errorCode")
_MESSAGE_KEYS = (
    "message",
    "detail",
    "error",
    "error_message",
    "error_msg",
    "errorMessage",
    "msg",
    "status_msg",
    "errors",
    "title",
)
# Keys that only errors have, in an answer that is none of the protocol's.
_ERROR_KEYS = ("detail", "error_message", "error_msg", "errorMessage", "errors")


class TransientError(Exception):
    """A failed attempt that may succeed if repeated.  Never leaves this package."""

    def __init__(self, type: str, detail: str, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(type, detail, status, retry_after_s)
        self.type, self.detail, self.status, self.retry_after_s = type, detail, status, retry_after_s

    def __str__(self) -> str:
        return f"status {self.status}" if self.status else self.type.replace("_", " ")


class UnreachableError(TransientError):
    """There is no connection to the provider: refused, timed out, or its name is unknown."""


class ProviderError(NamedTuple):
    """An error object from a provider.  `codes` are its codes and types, lower-cased, if present.

    `status` is the HTTP status that its codes stand for, if they name one.
    """

    message: str
    codes: frozenset[str] = frozenset()
    status: int | None = None

    @classmethod
    def read(cls, error: Any) -> ProviderError:
        """Parse the value of `error` in a body or a stream: an object, a list of objects, or a string."""
        if isinstance(error, list):
            error = error_in(error) or _text(error)
        if not isinstance(error, Mapping):
            return cls(_text(error))
        codes = frozenset(str(error[key]).lower() for key in _CODE_KEYS if isinstance(error.get(key), str | int))
        return cls(_message(error), codes, _status_of(codes))

    @classmethod
    def of_body(cls, body: bytes) -> ProviderError:
        """Parse an error body: the JSON of OpenAI, Anthropic, vLLM, Google or FastAPI, or else text."""
        try:
            parsed = orjson.loads(body)
        except orjson.JSONDecodeError:
            return cls(body.decode(errors="replace"))
        return cls.read(error_in(parsed) or parsed)

    @property
    def is_too_long(self) -> bool:
        """Whether the conversation is longer than the model's context; some providers say so only in the message."""
        return any(map(_TOO_LONG.search, self.codes)) or _TOO_LONG.search(self.message) is not None

    @property
    def final_code(self) -> str | None:
        """The type of the caller's error, if the error is permanent whatever its status."""
        if self.is_too_long:
            return "context_length_exceeded"
        return next(iter(sorted(self.codes & FINAL_CODES)), None)

    def passing_status(self, status: int | None) -> int | None:
        """Return the status of an error that may pass, or None; `status` is that of the HTTP response.

        Some servers say in the body alone that an error may pass.  In a response of status 200, words alone may too.
        """
        if self.final_code is not None:
            return None
        if status is not None and is_transient_status(status):
            return status
        if self.status is not None:
            return self.status if is_transient_status(self.status) and status in (None, 400) else None
        return 503 if status is None and _PASSING_WORDS.search(self.message) else None


def error_in(content: Any) -> Any:
    """Return the error in JSON that is not an answer of a protocol, or None.

    Source: errors of OpenAI, Anthropic, Google (a list), vLLM before 0.9 (no `error`), FastAPI (`detail`), DashScope,
    MiniMax (`base_resp`).
    """
    if isinstance(content, list):
        return next((error for each in content if (error := error_in(each)) is not None), None)
    if not isinstance(content, dict):
        return None
    if error := content.get("error"):
        return error if isinstance(error, dict | list) else content
    outcome = content.get("base_resp")
    if isinstance(outcome, dict) and outcome.get("status_code"):
        return outcome
    is_error = "error" in (content.get("object"), content.get("type")) or any(map(content.get, _ERROR_KEYS))
    return content if is_error or isinstance(content.get("message"), str) else None


def is_transient_status(status: int) -> bool:
    """Whether a request with this status may succeed if repeated."""
    return status in _PASSING_STATUSES or status >= 500


def _status_of(codes: Iterable[str]) -> int | None:
    """Return the HTTP status that codes name, or stand for."""
    ordered = sorted(codes)
    for code in ordered:
        if re.fullmatch(r"[45]\d\d", code):
            return int(code)
    words = [re.sub("[^a-z]", "", code) for code in ordered]
    return next((status for pattern, status in _PASSING_CODES for word in words if pattern.search(word)), None)


def _message(error: Mapping[str, Any]) -> str:
    """Return an error's words, with those of the server behind a gateway."""
    message = next((text for key in _MESSAGE_KEYS if (text := _text(error.get(key)))), "")
    behind = error.get("metadata")
    raw = behind.get("raw") if isinstance(behind, dict) else None
    return f"{message}: {raw}" if isinstance(raw, str) and raw not in message else message


def _text(value: Any) -> str:
    """Return a message as text: FastAPI gives a list of objects with `msg` and `loc`, other servers nest objects."""
    if isinstance(value, Mapping):
        place = value.get("loc")
        path = ".".join(map(str, place)) + ": " if isinstance(place, list) else ""
        return path + next((str(value[key]) for key in _MESSAGE_KEYS if isinstance(value.get(key), str)), str(value))
    if isinstance(value, list):
        return "; ".join(map(_text, value))
    return "" if value is None else str(value)


def with_detail(reason: str, detail: str) -> str:
    """Return the reason of an error with the provider's words behind it, if there are any."""
    return f"{reason}: {detail}" if detail else reason

"""The wait that a refusing provider asks for, in each form that providers use.  Pure: the time is an argument.

The forms of RFC 9110 are read by `support.backoff`, which the callbacks share.  The others: rate-limit headers of
OpenAI, Groq, OpenRouter and Anthropic, `RetryInfo` of Google's APIs, and the sentence "try again in 6.2s" of OpenAI's
and Groq's errors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import datetime

from batchray.support.backoff import retry_after_s

_RESET = re.compile(
    r"(?:(?:x-)?ratelimit-reset(?:-(?P<openai>[\w-]+))?|anthropic-ratelimit-(?P<anthropic>[\w-]+)-reset)"
)
_DURATION = re.compile(r"(?:\d+(?:\.\d*)?(?:ms|us|µs|ns|h|m|s|d))+", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d*)?)(ms|us|µs|ns|h|m|s|d)", re.ASCII)
_UNITS_S = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_NUMBER = re.compile(r"\d+(?:\.\d*)?", re.ASCII)
_EPOCH_S, _EPOCH_MS = 1e9, 1e12  # from these on a number is a moment and no duration
_IN_WORDS = re.compile(r"(?:try|retry) again in ((?:\d+(?:\.\d*)?(?:ms|h|m|s|d))+)", re.IGNORECASE)
_RETRY_INFO = re.compile(r'"retryDelay"\s*:\s*"(\d+(?:\.\d*)?s)"')
_RESET_IN_BODY = re.compile(r'"x-ratelimit-reset"\s*:\s*"?(\d+)', re.IGNORECASE)
# Google names a delay of seconds for a quota of a day, too.
_DAILY = re.compile(r"PerDay")


def asked_wait_s(status: int, headers: Mapping[str, str], body: str, now: float) -> float | None:
    """Return how long a refusal asks to wait, in seconds, or None if it does not say.

    `now` is Unix time.  `Retry-After` wins.  With 429 come the rate-limit headers, which OpenAI sends with any status,
    and then the body.
    """
    wait_s = _retry_after_s(headers, now)
    if wait_s is None and status == 429:
        wait_s = _reset_s(headers, now)
        if wait_s is None:
            wait_s = _in_body_s(body, now)
    return wait_s


def duration_s(text: str) -> float | None:
    """Return a duration such as `6m0s`, `1.5s` or `20ms` in seconds, or None for any other text."""
    if not _DURATION.fullmatch(text):
        return None
    return sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(text))


def _retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Read `Retry-After` also as a duration, a moment in Unix time, and two values that a proxy has joined."""
    wait_s = retry_after_s(headers, now)
    if wait_s is not None and wait_s < _EPOCH_S:
        return wait_s
    waits = (_moment_s(part, now) for part in headers.get("retry-after", "").split(","))
    return max((wait_s for wait_s in waits if wait_s is not None), default=None)


def _reset_s(headers: Mapping[str, str], now: float) -> float | None:
    """Return when the exhausted quotas are there again: the last of them, or the first of all if none says so."""
    resets = list(_resets(headers, now))
    exhausted = [wait_s for wait_s, is_exhausted in resets if is_exhausted]
    if exhausted:
        return max(exhausted)
    return min((wait_s for wait_s, _ in resets), default=None)


def _resets(headers: Mapping[str, str], now: float) -> Iterator[tuple[float, bool]]:
    for name, text in headers.items():
        if (found := _RESET.fullmatch(name.lower())) and (wait_s := _moment_s(text, now)) is not None:
            remaining = headers.get(name.lower().replace("reset", "remaining"), "")
            yield wait_s, remaining.strip() in ("0", "0.0") or found.lastgroup is None


def _moment_s(text: str, now: float) -> float | None:
    """Return the seconds until a moment, or of a duration, in any form; None if it is over or cannot be read."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        number = float(text)
        wait_s = number / 1000 - now if number >= _EPOCH_MS else number - now if number >= _EPOCH_S else number
    else:
        wait_s = duration_s(text) or _until(text, now)
    return wait_s if 0 < wait_s < math.inf else None


def _until(text: str, now: float) -> float:
    """Return the seconds until a moment of RFC 3339; 0 if there is none in the text."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return 0.0
    return moment.timestamp() - now if moment.tzinfo else 0.0


def _in_body_s(body: str, now: float) -> float | None:
    if _DAILY.search(body):
        return None
    found = _RETRY_INFO.search(body) or _IN_WORDS.search(body)
    if found:
        return duration_s(found[1].lower()) or None
    reset = _RESET_IN_BODY.search(body)
    return _moment_s(reset[1], now) if reset else None

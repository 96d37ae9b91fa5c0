"""How long to wait before a retry.  Pure: the clock and the randomness are arguments."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

_NUMBER = re.compile(r"\d+(?:\.\d*)?", re.ASCII)
_MAX_DOUBLINGS = 64  # far past any cap; keeps the power of two finite


def backoff_s(n_retries: int, base_s: float, cap_s: float, rng: random.Random | None = None) -> float:
    """Return the wait before the retry that follows `n_retries` others: at most min(cap_s, base_s * 2^n) seconds.

    With `rng` the wait is uniform between 0 and that ("full jitter"); without, it is exactly that.
    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    longest_s = min(cap_s, base_s * 2.0 ** min(n_retries, _MAX_DOUBLINGS))
    return rng.uniform(0, longest_s) if rng else longest_s


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Return the wait that a response asks for, in seconds, or None if it asks for none.

    Reads `retry-after-ms`, then `retry-after` as seconds or as an HTTP date; `headers` has lower-case keys or ignores
    case; `now` is Unix time in seconds.  Zero, a date in the past and an unreadable value count as none.
    Source: RFC 9110, 10.2.3; `retry-after-ms` as OpenAI's servers send it.
    """
    in_ms = _number(headers.get("retry-after-ms"))
    text = headers.get("retry-after")
    wait_s = in_ms / 1000 if in_ms is not None else _number(text)
    if wait_s is None and text is not None:
        wait_s = _seconds_until(text, now)
    return wait_s if wait_s is not None and 0 < wait_s < math.inf else None


def _number(text: str | None) -> float | None:
    return float(text) if text is not None and _NUMBER.fullmatch(text := text.strip()) else None


def _seconds_until(date: str, now: float) -> float | None:
    try:
        moment = parsedate_to_datetime(date)
    except (ValueError, TypeError, IndexError, OverflowError):  # what the parser raises for an unreadable date
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now

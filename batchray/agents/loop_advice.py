"""Advice for errors of asyncio that users meet when sync and async code mix."""

from __future__ import annotations

import re

_MAX_CAUSES = 5
_ADVICE = (
    (
        re.compile(
            r"event loop is already running|cannot be called (from a running|when an) event loop"
            r"|while another loop is running|^Already running asyncio in this thread",
            re.IGNORECASE,
        ),
        "in an `async def`, await the async call (`await agent.run(...)` instead of `agent.run_sync(...)`); or make "
        "the function a plain `def`, which runs in a thread",
    ),
    (
        re.compile(r"bound to a different event loop|attached to a different loop|^Event loop is closed"),
        "an async client belongs to the event loop that uses it first; use one that is made once for a module either "
        "in `async def` or in plain `def` functions, or make it in the function",
    ),
)


def advice_for(error: BaseException) -> str | None:
    """Return what to change in code that raised this error, or an error that it caused; None if it is another error."""
    cause: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if cause is None:
            return None
        if type(cause) is RuntimeError:
            message = str(cause)
            for pattern, advice in _ADVICE:
                if pattern.search(message):
                    return advice
        cause = cause.__cause__ or cause.__context__
    return None

"""Polling: wait until a condition holds, with a time limit that only a defect reaches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

_FIRST_POLL_S, _LONGEST_POLL_S = 0.005, 0.1


def until(look: Callable[[], Result | None], timeout_s: float = 60.0) -> Result:
    """Call `look` until it returns something true, and return that.

    The pauses grow, so that a long wait takes little CPU from what it waits for.
    """
    end, pause_s = time.monotonic() + timeout_s, _FIRST_POLL_S
    while not (result := look()):
        assert time.monotonic() < end, f"the condition did not hold within {timeout_s:g} s"
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, _LONGEST_POLL_S)
    return result


def seconds_until(condition: Callable[[], object], timeout_s: float = 60.0) -> float:
    """Wait until a condition holds, and return how long that took."""
    started = time.monotonic()
    until(condition, timeout_s)
    return time.monotonic() - started


async def run_pending_tasks() -> None:
    """Run the other tasks of this loop until each of them waits for something."""
    for _ in range(100):
        await asyncio.sleep(0)


async def wait_until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Run the other tasks of this loop until a condition holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.001)

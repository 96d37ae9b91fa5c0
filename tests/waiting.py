"""Waiting for what will come about: tests look for it often, with a limit that only a defect reaches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

Seen = TypeVar("Seen")

_LOOK_EVERY_S = 0.02


def until(look: Callable[[], Seen | None], timeout_s: float = 60.0) -> Seen:
    """Look again and again until there is something, and return it."""
    end = time.monotonic() + timeout_s
    while not (seen := look()):
        assert time.monotonic() < end, f"it did not come about within {timeout_s:g} s"
        time.sleep(_LOOK_EVERY_S)
    return seen


def seconds_until(is_so: Callable[[], object], timeout_s: float = 60.0) -> float:
    """Wait until something is so, and return how long that took."""
    started = time.monotonic()
    until(is_so, timeout_s)
    return time.monotonic() - started


async def let_it_run() -> None:
    """Let the others of this loop do what they can do without waiting."""
    for _ in range(100):
        await asyncio.sleep(0)


async def soon(is_so: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Let the others of this loop run until something is so."""
    async with asyncio.timeout(timeout_s):
        while not is_so():
            await asyncio.sleep(0.001)

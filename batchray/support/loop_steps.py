"""Looks at the step that an event loop runs, from another thread: which one, and whether it keeps the loop from others.

A step is what a loop runs without a pause: a task up to its next wait, or a callback.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any, NamedTuple

# The share of the time for which a thread that computes gets a CPU, on a machine with other work.
_COMPUTES = 0.3
_RUN_HANDLE = asyncio.Handle._run.__code__


class StepSample(NamedTuple):
    """A step at one moment: its handle in asyncio, its context, its frames from the innermost, its CPU time."""

    handle: Any
    context: contextvars.Context
    frames: list[FrameType]
    position: tuple[int, int]
    at_s: float
    cpu_s: float


def look_at_step(thread_id: int) -> StepSample | None:
    """Return what the event loop of a thread runs; None if it runs nothing."""
    frame = sys._current_frames().get(thread_id)
    frames: list[FrameType] = []  # the innermost first
    while frame is not None and frame.f_code is not _RUN_HANDLE:
        frames.append(frame)
        frame = frame.f_back
    if frame is None:
        return None
    handle = frame.f_locals.get("self")
    context = getattr(handle, "_context", None)
    if context is None:
        return None
    innermost = frames[0] if frames else frame
    position = (id(innermost), innermost.f_lasti)
    return StepSample(handle, context, frames or [frame], position, time.monotonic(), _cpu_s(thread_id))


def is_blocking(samples: Sequence[StepSample]) -> bool:
    """Whether these samples of one step show that it computes, or stands still, all the time.

    Otherwise its thread hardly gets a CPU, because the machine or the process is busy.
    """
    first, last = samples[0], samples[-1]
    stands_still = all(sample.position == last.position for sample in samples)
    return stands_still or last.cpu_s - first.cpu_s >= _COMPUTES * (last.at_s - first.at_s)


def _cpu_s(thread_id: int) -> float:
    """Return how long a thread has computed; of a system that cannot tell, the time."""
    try:
        return time.clock_gettime(time.pthread_getcpuclockid(thread_id))
    except (AttributeError, OSError):
        return time.monotonic()

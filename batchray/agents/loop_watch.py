"""Finds the request whose code blocks the event loop that it shares with others.

A sync call in an `async def`, such as `time.sleep` or `requests.get`, stops all requests of its loop.  A thread asks
the loop a few times a second to answer.  If it does not, the thread looks at what the loop's thread runs.  A loop that
is merely slow, because the machine or the process is busy, is no request's fault: a request blocks it if the same step
of the loop is still running, and has computed all the time or stands still.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import batchray

_AFTER_S = 1.0
_EVERY_S = 0.25
_MIN_SAMPLES = 3
# The share of the time for which a thread that computes gets a CPU, on a machine with other work.
_COMPUTES = 0.3
_RUN_HANDLE = asyncio.Handle._run.__code__
_INSTALLED = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
_NOT_USERS = (*(f"{path}{os.sep}" for path in (*_INSTALLED, Path(batchray.__file__).parent)), "<frozen")

_owner: contextvars.ContextVar[Owner | None] = contextvars.ContextVar("batchray_owner", default=None)


@dataclass(frozen=True, slots=True)
class Owner:
    """The request whose code runs."""

    job_id: str
    index: int
    agent_id: str


class Blocked(NamedTuple):
    """A request that blocks the event loop that it shares, for how long until now, and in which line of code."""

    owner: Owner
    blocked_s: float
    where: str


class owned_by:  # reads as a function, and is a class because it is entered for every call of a tool
    """A block in which code of a request runs."""

    __slots__ = ("_owner", "_token")

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    def __enter__(self) -> None:
        self._token = _owner.set(self._owner)

    def __exit__(self, *raised: object) -> None:
        with suppress(ValueError):  # a coroutine is thrown away, in another context
            _owner.reset(self._token)


class LoopWatch:
    """Watches the running loop while it is entered, by any number of runs.

    `report` is called in a thread: with a Blocked when a request has blocked the loop for `after_s` seconds, again
    after each such time, and with None when the loop runs again.
    """

    def __init__(
        self, report: Callable[[Blocked | None], None], after_s: float | None = None, every_s: float | None = None
    ) -> None:
        self._report = report
        self._after_s = _AFTER_S if after_s is None else after_s
        self._every_s = _EVERY_S if every_s is None else every_s
        self._n_runs, self._is_wanted = 0, threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> None:
        self._n_runs += 1
        if self._n_runs == 1:
            self._is_wanted.set()
        if self._thread is None:
            arguments = (asyncio.get_running_loop(), threading.get_ident())
            self._thread = threading.Thread(target=self._watch, args=arguments, name="batchray-watch", daemon=True)
            self._thread.start()

    def __exit__(self, *raised: object) -> None:
        self._n_runs -= 1
        if self._n_runs == 0:
            self._is_wanted.clear()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._is_wanted.set()

    def _watch(self, loop: asyncio.AbstractEventLoop, thread_id: int) -> None:
        while self._is_wanted.wait() and not self._closed.is_set():
            answered = threading.Event()
            try:
                loop.call_soon_threadsafe(answered.set)
            except RuntimeError:  # it is closed
                return
            if not answered.wait(self._every_s):
                self._observe(answered, thread_id)
            self._closed.wait(self._every_s)

    def _observe(self, answered: threading.Event, thread_id: int) -> None:
        """Look at a loop that has not answered, until it does."""
        samples: list[_Sample] = []
        reported_at = -1.0
        while not answered.is_set() and not self._closed.is_set():
            sample = _sample(thread_id)
            if samples and (sample is None or not sample.continues(samples[0])):
                samples = []
            if sample is not None:
                samples.append(sample)
                reported_at = self._report_if_blocked(samples, reported_at)
            answered.wait(self._every_s)
        if reported_at >= 0:
            self._report(None)

    def _report_if_blocked(self, samples: list[_Sample], reported_at: float) -> float:
        """Report the step that these samples are of, if it blocks the loop; return when it was last reported."""
        first, last = samples[0], samples[-1]
        lasted_s = last.at_s - first.at_s
        is_due = lasted_s >= self._after_s - self._every_s and last.at_s - reported_at >= self._after_s
        if len(samples) < _MIN_SAMPLES or not is_due:
            return reported_at
        stands_still = all(sample.position == last.position for sample in samples)
        if not stands_still and last.cpu_s - first.cpu_s < _COMPUTES * lasted_s:
            return reported_at  # it hardly gets a CPU
        self._report(Blocked(last.owner, lasted_s + self._every_s, last.where))
        del samples[1:-1]  # of a long block these two are enough
        return last.at_s


class _Sample(NamedTuple):
    """A look at the thread of a loop at one moment, while it runs code of a request."""

    owner: Owner
    handle: Any
    position: tuple[int, int]
    where: str
    at_s: float
    cpu_s: float

    def continues(self, earlier: _Sample) -> bool:
        """Whether the loop still runs the same step."""
        return self.handle is earlier.handle


def _sample(thread_id: int) -> _Sample | None:
    """Look at what a loop's thread runs; None if it is no request's code."""
    frame = innermost = sys._current_frames().get(thread_id)
    while frame is not None and frame.f_code is not _RUN_HANDLE:
        frame = frame.f_back
    if frame is None or innermost is None:
        return None
    handle = frame.f_locals.get("self")  # the step of the loop that runs: of a task, or a callback
    context = getattr(handle, "_context", None)
    owner = context.get(_owner) if context is not None else None
    if owner is None:
        return None
    position = (id(innermost), innermost.f_lasti)
    return _Sample(owner, handle, position, _where(innermost), time.monotonic(), _cpu_s(thread_id))


def _where(innermost: FrameType) -> str:
    """Return the innermost line of a user's own code, or of any code if there is none."""
    frame: FrameType | None = innermost
    while frame is not None and frame.f_code is not _RUN_HANDLE:
        file = frame.f_code.co_filename
        if not file.startswith(_NOT_USERS):
            break
        frame = frame.f_back
    if frame is None or frame.f_code is _RUN_HANDLE:
        frame = innermost
    return f"{frame.f_code.co_qualname} ({Path(frame.f_code.co_filename).name}, line {frame.f_lineno})"


def _cpu_s(thread_id: int) -> float:
    """Return how long a thread has computed; of a system that cannot tell, the time."""
    try:
        return time.clock_gettime(time.pthread_getcpuclockid(thread_id))
    except (AttributeError, OSError):
        return time.monotonic()

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
import sysconfig
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import batchray
from batchray.support.loop_steps import StepSample, is_blocking, look_at_step

_AFTER_S = 1.0
_EVERY_S = 0.25
_MIN_SAMPLES = 3
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
        samples: list[StepSample] = []
        reported_at = -1.0
        while not answered.is_set() and not self._closed.is_set():
            sample = look_at_step(thread_id)
            if samples and (sample is None or sample.handle is not samples[0].handle):
                samples = []
            if sample is not None and (owner := _owner_of(sample)) is not None:
                samples.append(sample)
                reported_at = self._report_if_blocked(owner, samples, reported_at)
            answered.wait(self._every_s)
        if reported_at >= 0:
            self._report(None)

    def _report_if_blocked(self, owner: Owner, samples: list[StepSample], reported_at: float) -> float:
        """Report the step that these samples are of, if it blocks the loop; return when it was last reported."""
        first, last = samples[0], samples[-1]
        lasted_s = last.at_s - first.at_s
        is_due = lasted_s >= self._after_s - self._every_s and last.at_s - reported_at >= self._after_s
        if len(samples) < _MIN_SAMPLES or not is_due or not is_blocking(samples):
            return reported_at
        self._report(Blocked(owner, lasted_s + self._every_s, _where(last.frames)))
        del samples[1:-1]  # of a long block these two are enough
        return last.at_s


def _owner_of(sample: StepSample | None) -> Owner | None:
    return None if sample is None else sample.context.get(_owner)


def _where(frames: Sequence[FrameType]) -> str:
    """Return the innermost line of a user's own code, or of any code if there is none; `frames` begin with it."""
    own = (frame for frame in frames if not frame.f_code.co_filename.startswith(_NOT_USERS))
    frame = next(own, frames[0])
    return f"{frame.f_code.co_qualname} ({Path(frame.f_code.co_filename).name}, line {frame.f_lineno})"

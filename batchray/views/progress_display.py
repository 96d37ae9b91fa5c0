"""Shows a running job to a person: a live bar in a terminal or notebook, plain lines elsewhere."""

from __future__ import annotations

import asyncio
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, Protocol

from batchray.schema.progress import Progress
from batchray.views.notebook_bar import notebook_bar
from batchray.views.plain_text import in_short
from batchray.views.summary import clock
from batchray.views.terminal import LiveLines, bar

_TICK_S = 0.2
_LINE_EVERY_S = 10.0
_RATE_OVER_S = 15.0
# An end is forecast from this many outcomes over this time; fewer say little about the others.
_ETA_MIN_OUTCOMES, _ETA_MIN_S = 5, 2.0
_BAR_COLUMNS, _MIN_BAR_COLUMNS, _TEXT_COLUMNS = 24, 5, 72
_MAX_REASON_CHARS = 160


class Watched(Protocol):
    """The part of a `Job` that the display reads."""

    @property
    def is_done(self) -> bool:
        """Whether it has ended, or no process runs it any more."""
        ...

    @property
    def is_started(self) -> bool:
        """Whether requests may run yet."""
        ...

    @property
    def is_paused(self) -> bool:
        """Whether it starts no more requests until it is unpaused."""
        ...

    @property
    def in_flight(self) -> int:
        """Requests in flight."""
        ...

    @property
    def waits(self) -> Sequence[Mapping[str, Any]]:
        """The providers that hold requests back now, as in `Job.waits`."""
        ...

    @property
    def newest_failure(self) -> Mapping[str, Any] | None:
        """The error of the newest outcome that has one, with `index`, `type` and `message`."""
        ...

    def progress_now(self) -> Progress:
        """Return counts and tokens so far."""
        ...


class View(NamedTuple):
    """A job's state at one moment."""

    total: int
    done: int
    failed: int
    in_flight: int
    tokens: int
    rate: float
    """Outcomes per second, over the last 15 seconds."""
    is_started: bool = True
    """False while the executor is still starting."""
    is_paused: bool = False
    waits: Sequence[Mapping[str, Any]] = ()
    newest_failure: Mapping[str, Any] | None = None
    has_evidence: bool = True
    """Whether enough outcomes have come to forecast the end."""

    @property
    def eta_s(self) -> float:
        """Seconds until the end at this rate; infinite if the rate is 0 or says too little."""
        return (self.total - self.done) / self.rate if self.rate and self.has_evidence else math.inf

    def line(self) -> str:
        """Return the state as one line of text."""
        if not self.is_started:
            return f"{self.total:,} requests accepted, starting"
        parts = [f"{self.done:,} of {self.total:,} done", f"{self.failed:,} failed", f"{self.in_flight:,} in flight"]
        parts.append("paused" if self.is_paused else f"{self.rate:,.1f}/s")
        if self.done < self.total and not self.is_paused and math.isfinite(self.eta_s):
            parts.append(f"ETA {clock(self.eta_s)}")
        return ", ".join([*parts, f"{self.tokens:,} tokens"])

    def notes(self) -> list[str]:
        """Return what holds the job back, and its newest error, each as one line of text."""
        notes = [self._wait_text(wait) for wait in self.waits]
        if (error := self.newest_failure) is not None:
            text = in_short(f"{error['type']}: {error['message']}", _MAX_REASON_CHARS)
            notes.append(f"newest error: request {error['index']:,}: {text}")
        return notes

    def _wait_text(self, wait: Mapping[str, Any]) -> str:
        share = f"{wait['n_waiting']:,} of {self.in_flight:,} in flight wait"
        until = f", next call in {wait['wait_s']:.0f} s" if wait["wait_s"] >= 1 else ""
        kind = str(wait["kind"]).replace("_", " ")
        return f"{wait['provider']} is {kind}: {share}{until} ({in_short(str(wait['reason']), _MAX_REASON_CHARS)})"


def show_progress(job: Watched) -> None:
    """Show a job's progress until it ends: in a notebook, as a bar in a terminal, or as a line every ten seconds."""
    views = _ViewReader(job)
    with _screen() as draw:
        draw(views.read())
        while not views.is_over:
            time.sleep(_TICK_S)
            draw(views.read())


async def show_progress_async(job: Watched) -> None:
    """Show a job's progress from async code; otherwise as `show_progress`."""
    views = _ViewReader(job)
    with _screen() as draw:
        draw(await asyncio.to_thread(views.read))  # on a thread: it may read the store
        while not views.is_over:
            await asyncio.sleep(_TICK_S)
            draw(await asyncio.to_thread(views.read))


class _ViewReader:
    """Reads a job's state again and again, and computes its rate from the last states."""

    def __init__(self, job: Watched) -> None:
        self._job = job
        self._seen: deque[tuple[float, int]] = deque()
        self.is_over = False
        """Whether the last state read is the final one."""

    def read(self) -> View:
        """Return the job's state now."""
        job, seen = self._job, self._seen
        self.is_over = job.is_done
        progress, now = job.progress_now(), time.monotonic()
        seen.append((now, progress.done))
        while now - seen[0][0] > _RATE_OVER_S:
            seen.popleft()
        elapsed, n_new = now - seen[0][0], progress.done - seen[0][1]
        return View(
            progress.total,
            progress.done,
            progress.failed,
            in_flight=0 if self.is_over else job.in_flight,
            tokens=progress.prompt_tokens + progress.completion_tokens,
            rate=n_new / elapsed if elapsed else 0.0,
            is_started=job.is_started,
            is_paused=job.is_paused and not self.is_over,
            waits=() if self.is_over else job.waits,
            newest_failure=job.newest_failure,
            has_evidence=n_new >= _ETA_MIN_OUTCOMES and elapsed >= _ETA_MIN_S,
        )


def _is_notebook() -> bool:
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    shell: Any = get_ipython  # IPython is untyped
    return hasattr(shell(), "kernel")


def _screen() -> AbstractContextManager[Callable[[View], None]]:
    if _is_notebook():
        return _in_notebook()
    # A dumb terminal cannot move its cursor.
    is_capable = sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")
    return _terminal() if is_capable else _lines()


@contextmanager
def _in_notebook() -> Iterator[Callable[[View], None]]:
    with notebook_bar() as draw:
        yield lambda view: draw(view.done / view.total if view.total else 0.0, [view.line(), *view.notes()])


@contextmanager
def _terminal() -> Iterator[Callable[[View], None]]:
    with LiveLines() as live:

        def draw(view: View) -> None:
            share = view.done / view.total if view.total else 0.0
            n_bar = min(_BAR_COLUMNS, live.n_columns - _TEXT_COLUMNS)  # in a narrow terminal the text goes first
            shown = f"{bar(share, n_bar)} " if n_bar >= _MIN_BAR_COLUMNS else ""
            live.draw([shown + view.line(), *view.notes()])

        yield draw


@contextmanager
def _lines() -> Iterator[Callable[[View], None]]:
    last = -math.inf

    def draw(view: View) -> None:
        nonlocal last
        if not view.is_started and last > -math.inf:
            return  # it was said already
        is_last = view.is_started and view.done == view.total  # a retry deletes outcomes first, while it starts
        if last < math.inf and (is_last or time.monotonic() - last >= _LINE_EVERY_S):
            last = math.inf if is_last else time.monotonic()
            text = "; ".join((view.line(), *view.notes()))
            print(text, file=sys.stderr, flush=True)  # noqa: T201  # this is the display

    yield draw

"""Shows a job to a person: a live bar in a terminal or notebook, plain lines elsewhere, a table at its end."""

from __future__ import annotations

import asyncio
import math
import sys
import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from batchray.schema.progress import Percentiles, Progress
from batchray.store import FailureKind, JobRecord

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_TICK_S = 0.2
_LINE_EVERY_S = 10.0
_RATE_OVER_S = 15.0
_N_FAILURES = 8
_MAX_ERROR_CHARS = 72
_TIMING_NOTE = """\
p50, p95: half of the requests, 95 % of them, took at most this long (at most 4.4 % too high)
before its start: since the batch was accepted, including the start of Ray
"""


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
    def in_flight(self) -> int:
        """Requests in flight."""
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

    @property
    def eta_s(self) -> float:
        """Seconds until the end at this rate; infinite if the rate is 0."""
        return (self.total - self.done) / self.rate if self.rate else math.inf

    def line(self) -> str:
        """Return the state as one line of text."""
        if not self.is_started:
            return f"{self.total:,} requests accepted, starting"
        parts = [f"{self.done:,} of {self.total:,} done", f"{self.failed:,} failed", f"{self.in_flight:,} in flight"]
        parts.append(f"{self.rate:,.1f}/s")
        if self.done < self.total and math.isfinite(self.eta_s):
            parts.append(f"ETA {clock(self.eta_s)}")
        return ", ".join([*parts, f"{self.tokens:,} tokens"])


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


def clock(seconds: float) -> str:
    """Return seconds as h:mm:ss or m:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def duration(seconds: float) -> str:
    """Return a duration with a unit that fits its size; a dash for NaN, which means not measured."""
    if math.isnan(seconds):
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"
    return f"{seconds:.2f} s" if seconds < 120 else clock(seconds)


def summary(
    record: JobRecord,
    state: str,
    timing: dict[str, Percentiles],
    failures: Sequence[FailureKind],
    console: Console | None = None,
) -> None:
    """Print a job's outcomes, kinds of failures, durations and tokens; `state` is the word for its state now."""
    if console is None:
        from rich.console import Console

        console = Console(highlight=False)
    console.print(_outcomes_table(record, state))
    if failures:
        console.print(_failures_table(failures))
    console.print(_timing_table(timing))
    console.print(_TIMING_NOTE, style="dim", highlight=False)
    console.print(f"tokens: {record.prompt_tokens:,} in, {record.completion_tokens:,} out", highlight=False)
    if record.total_duration_ns is not None:
        took = duration(record.total_duration_ns / 1e9)
        console.print(f"took: {took} from the first start to the last end", highlight=False)


def _outcomes_table(record: JobRecord, state: str) -> Table:
    table = _table(f"{record.total:,} requests: job {state}", "outcome", "requests", "share")
    for status, count in record.counts.items():
        if count or status in ("succeeded", "errored"):
            table.add_row(status, f"{count:,}", share(count, record.total))
    if record.done < record.total:
        left = record.total - record.done
        table.add_row("not done", f"{left:,}", share(left, record.total))
    return table


def share(count: int, total: int) -> str:
    """Return a share as a percentage.  Only all of them are 100.0%, and only none are 0.0%."""
    if not 0 < count < total:
        return f"{count / max(total, 1):.1%}"
    return f"{min(max(count / total, 0.001), 0.999):.1%}"


def _failures_table(failures: Sequence[FailureKind]) -> Table:
    from rich.text import Text

    table = _table("failures", "stop reason", "requests")
    table.add_column("error")
    for kind in failures[:_N_FAILURES]:
        # Text, since rich would read the brackets of a plain string as markup.
        table.add_row(kind.stop_reason, f"{kind.n_items:,}", Text(_in_short(f"{kind.type}: {kind.example}")))
    if len(failures) > _N_FAILURES:
        table.add_row(f"... {len(failures) - _N_FAILURES} more kinds", "", "")
    return table


def _in_short(message: str) -> str:
    """Return the start of a message as one line without control characters."""
    printable = "".join(char if char.isprintable() else " " for char in message)
    return textwrap.shorten(printable, _MAX_ERROR_CHARS, placeholder=" ...")


def _timing_table(timing: dict[str, Percentiles]) -> Table:
    table = _table("time of a request", "", "p50", "p95", "max")
    meanings = {"queued": "before its start", "ttft": "start to first token", "duration": "start to end"}
    for name, meaning in meanings.items():
        table.add_row(meaning, *(duration(value) for value in (timing[name].p50, timing[name].p95, timing[name].max)))
    return table


def _table(title: str, first: str, *others: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


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
        elapsed = now - seen[0][0]
        rate = (progress.done - seen[0][1]) / elapsed if elapsed else 0.0
        tokens = progress.prompt_tokens + progress.completion_tokens
        in_flight = 0 if self.is_over else job.in_flight
        return View(progress.total, progress.done, progress.failed, in_flight, tokens, rate, job.is_started)


def _is_notebook() -> bool:
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    shell: Any = get_ipython  # IPython is untyped
    return hasattr(shell(), "kernel")


def _screen() -> AbstractContextManager[Callable[[View], None]]:
    if _is_notebook():
        return _notebook()
    return _terminal() if sys.stderr.isatty() else _lines()


@contextmanager
def _terminal() -> Iterator[Callable[[View], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    with Progress(BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True)) as bar:
        task = bar.add_task("starting")
        yield lambda view: bar.update(task, total=view.total, completed=view.done, description=view.line())


@contextmanager
def _notebook() -> Iterator[Callable[[View], None]]:
    from IPython import display

    show: Any = display  # IPython is untyped
    handle = show.display(show.HTML("starting"), display_id=True)

    def draw(view: View) -> None:
        bar = f'<progress max="{view.total}" value="{view.done}" style="width:20em"></progress>'
        handle.update(show.HTML(f"{bar} {view.line()}"))

    yield draw


@contextmanager
def _lines() -> Iterator[Callable[[View], None]]:
    last = -math.inf

    def draw(view: View) -> None:
        nonlocal last
        if last < math.inf and (view.done == view.total or time.monotonic() - last >= _LINE_EVERY_S):
            last = math.inf if view.done == view.total else time.monotonic()
            print(view.line(), file=sys.stderr, flush=True)  # noqa: T201  # this is the display

    yield draw

"""The summary of a job as a person reads it: outcomes, kinds of failures, durations and tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from batchray.schema.progress import Percentiles
from batchray.store import FailureKind, JobRecord
from batchray.views.plain_text import in_short

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_N_FAILURES = 8
TIMING_NOTE = """\
p50, p95: half of the requests, 95 % of them, took at most this long (at most 4.4 % too high)
before its start: since the batch was accepted; on Ray, with Ray's own start
"""


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
    console.print(TIMING_NOTE, style="dim", highlight=False)
    console.print(f"tokens: {record.prompt_tokens:,} in, {record.completion_tokens:,} out", highlight=False)
    if record.total_duration_ns is not None:
        took = duration(record.total_duration_ns / 1e9)
        console.print(f"took: {took} from the first start to the last end", highlight=False)


def _outcomes_table(record: JobRecord, state: str) -> Table:
    shown = table(f"{record.total:,} requests: job {state}", "outcome", "requests", "share")
    for status, count in record.counts.items():
        if count or status in ("succeeded", "errored"):
            shown.add_row(status, f"{count:,}", share(count, record.total))
    if record.done < record.total:
        left = record.total - record.done
        shown.add_row("not done", f"{left:,}", share(left, record.total))
    return shown


def share(count: int, total: int) -> str:
    """Return a share as a percentage.  Only all of them are 100.0%, and only none are 0.0%."""
    if not 0 < count < total:
        return f"{count / max(total, 1):.1%}"
    return f"{min(max(count / total, 0.001), 0.999):.1%}"


def _failures_table(failures: Sequence[FailureKind]) -> Table:
    from rich.text import Text

    shown = table("failures", "stop reason", "requests")
    shown.add_column("error")
    for kind in failures[:_N_FAILURES]:
        # Text, since rich would read the brackets of a plain string as markup.
        shown.add_row(kind.stop_reason, f"{kind.n_items:,}", Text(in_short(f"{kind.type}: {kind.example}")))
    if len(failures) > _N_FAILURES:
        shown.add_row(f"... {len(failures) - _N_FAILURES} more kinds", "", "")
    return shown


def _timing_table(timing: dict[str, Percentiles]) -> Table:
    shown = table("time of a request", "", "p50", "p95", "max")
    meanings = {"queued": "before its start", "ttft": "start to first token", "duration": "start to end"}
    for name, meaning in meanings.items():
        shown.add_row(meaning, *(duration(value) for value in (timing[name].p50, timing[name].p95, timing[name].max)))
    return shown


def table(title: str, first: str, *others: str) -> Table:
    """Return an empty table; the columns after the first are numbers, set to the right."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table

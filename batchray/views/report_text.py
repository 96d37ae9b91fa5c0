"""A job's report in a terminal, and as Markdown."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from batchray.schema.progress import Percentiles
from batchray.views.html import escaped
from batchray.views.plain_text import in_short, plain
from batchray.views.report import FailureGroup, Report, SlowRequest
from batchray.views.summary import TIMING_NOTE, duration, share, table
from batchray.views.trajectory import dollars

if TYPE_CHECKING:
    from rich.console import Console

_TIMED = {"queued": "before its start", "ttft": "start to first token", "duration": "start to end"}
NAME_HEAD = "index (custom_id)"
"""The head of a column of requests, as `request_name` names them."""
_MAX_MESSAGE_CHARS, _N_COLUMNS = 200, 100


def as_text(report: Report) -> str:
    """Return a report as a terminal of 100 columns shows it, without colours."""
    from rich.console import Console

    file = io.StringIO()
    print_report(report, Console(file=file, width=_N_COLUMNS, highlight=False))
    return file.getvalue()


def print_report(report: Report, console: Console) -> None:
    """Print a report: tables, then the commands that can be typed next."""
    from rich.text import Text

    console.print(Text(headline(report), "bold"), soft_wrap=True)
    for title, heads, rows in _tables(report):
        first, *others = heads
        numbers = [head for head in others if head != "error"]
        shown = table(title, first, *numbers)
        if "error" in others:
            shown.add_column("error", overflow="fold")
        for row in rows:
            shown.add_row(*(Text(cell) for cell in row))
        console.print(shown)
    console.print(Text(TIMING_NOTE, "dim"))
    for line in facts(report):
        console.print(Text(line))
    for step in report.next_steps:
        console.print(Text(f"{step.why}: {step.command}"), soft_wrap=True)


def markdown(report: Report) -> str:
    """Return a report as Markdown; what models and users wrote in it is escaped."""
    parts = [f"# {_cell(headline(report))}"]
    for title, heads, rows in _tables(report):
        head = f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}"
        parts.append(f"## {title}\n\n" + "\n".join([head, *(f"| {' | '.join(map(_cell, row))} |" for row in rows)]))
    parts.append("\n".join(f"- {_cell(line)}" for line in facts(report)))
    steps = "\n".join(f"- {step.why}: `{step.command}`" for step in report.next_steps)
    parts.append(f"## Next\n\n{steps}" if steps else "")
    return "\n\n".join(filter(None, parts)) + "\n"


def headline(report: Report) -> str:
    """Return which job it is, and its state."""
    because = f" ({in_short(report.paused_because, _MAX_MESSAGE_CHARS)})" if report.paused_because else ""
    return f"job {report.job_id}: {report.status}{because}, {report.done:,} of {report.total:,} done"


def facts(report: Report) -> list[str]:
    """Return tokens, cost and time, each as one line."""
    lines = [f"tokens: {report.prompt_tokens:,} in, {report.completion_tokens:,} out"]
    if report.cost_usd is not None:
        missing = f", and {report.n_without_cost:,} outcomes of unknown cost" if report.n_without_cost else ""
        lines.append(f"cost: {dollars(report.cost_usd)}{missing}")
    if report.duration_s is not None:
        lines.append(f"took: {duration(report.duration_s)} from the first start to the last end")
    return lines


def outcome_rows(report: Report) -> list[tuple[str, int]]:
    """Return how many items have each outcome; the last row is that of the items without one."""
    rows = [(name, n) for name, n in report.counts.items() if n or name in ("succeeded", "errored")]
    return [*rows, ("not done", report.total - report.done)] if report.done < report.total else rows


def timing_rows(report: Report) -> list[tuple[str, Percentiles]]:
    """Return the durations of requests by their meaning."""
    return [(meaning, report.timing[name]) for name, meaning in _TIMED.items()]


def request_name(request: FailureGroup | SlowRequest) -> str:
    """Return a request's index, and its custom_id in brackets if it has one; the head of its column is `NAME_HEAD`."""
    return f"{request.index}" if request.custom_id is None else f"{request.index} ({in_short(request.custom_id, 40)})"


def failure_text(group: FailureGroup) -> str:
    """Return the error of a group's first request as one line."""
    return in_short(f"{group.type}: {group.message}", _MAX_MESSAGE_CHARS)


def _tables(report: Report) -> Iterator[tuple[str, Sequence[str], Iterable[Sequence[str]]]]:
    """Yield the title of each table, the heads of its columns, and its rows."""
    outcomes = ((name, f"{n:,}", share(n, report.total)) for name, n in outcome_rows(report))
    yield f"{report.total:,} requests", ("outcome", "requests", "share"), outcomes
    if report.failures:
        rows = [
            (group.stop_reason, f"{group.n_items:,}", request_name(group), failure_text(group))
            for group in report.failures
        ]
        if report.n_other_failures:
            rows.append(("", f"{report.n_other_failures:,}", "", "others"))
        title, counted = failure_heads(report)
        yield title, ("stop reason", counted, f"example: {NAME_HEAD}", "error"), rows
    timing = (
        (name, *(duration(value) for value in (each.p50, each.p95, each.max))) for name, each in timing_rows(report)
    )
    yield "time of a request", ("", "p50", "p95", "max"), timing
    if report.slowest:
        slow = (
            (request_name(each), plain(in_short(each.agent_id, 30)), each.status, duration(each.duration_s))
            for each in report.slowest
        )
        yield "slowest requests", (NAME_HEAD, "agent", "outcome", "start to end"), slow


def failure_heads(report: Report) -> tuple[str, str]:
    """Return the title of the failures and the head of their counts, which say if these are those of a sample."""
    if (n_sampled := report.n_sampled) is None:
        return "failures by message", "requests"
    return f"failures: the newest {n_sampled:,} of {report.counts['errored']:,}", f"of these {n_sampled:,}"


def _cell(text: str) -> str:
    """Return a text that means nothing in Markdown."""
    shown = escaped(text).replace("|", "\\|")
    return "".join(f"\\{char}" if char in "`*_[]\\" and char != "\\" else char for char in shown)

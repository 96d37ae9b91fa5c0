"""A job's report in a notebook."""

from __future__ import annotations

from collections.abc import Mapping

from batchray.views.html import AMBER, BLUE, GREEN, GREY, RED, element, escaped, stacked_bar, table
from batchray.views.plain_text import in_short
from batchray.views.report import Report
from batchray.views.report_text import (
    NAME_HEAD,
    facts,
    failure_heads,
    failure_text,
    headline,
    outcome_rows,
    request_name,
    timing_rows,
)
from batchray.views.summary import duration, share

_COLOURS: Mapping[str, str] = {
    "succeeded": GREEN,
    "errored": RED,
    "canceled": AMBER,
    "expired": BLUE,
    "not done": GREY,
}


def report_html(report: Report) -> str:
    """Return a report as HTML of limited size."""
    parts = [element("div", escaped(headline(report)), "font-weight:600"), _outcomes(report)]
    if report.failures:
        parts.append(_failures(report))
    timing = [
        (escaped(name), *(escaped(duration(value)) for value in (each.p50, each.p95, each.max)))
        for name, each in timing_rows(report)
        if each.max == each.max  # not NaN: it was measured
    ]
    if timing:
        parts.append(table(timing, ("time of a request", "p50", "p95", "max")))
    if report.slowest:
        rows = [
            (escaped(request_name(each)), escaped(in_short(each.agent_id)), each.status, duration(each.duration_s))
            for each in report.slowest
        ]
        parts.append(_folded("slowest requests", table(rows, (NAME_HEAD, "agent", "outcome", "start to end"))))
    parts.append(element("div", escaped("; ".join(facts(report))), "opacity:.8"))
    if steps := [(escaped(step.why), element("code", escaped(step.call))) for step in report.next_steps]:
        parts.append(table(steps))
    return element("div", "".join(parts), "max-width:70em;line-height:1.5")


def unreadable_html(title: str, error: Exception) -> str:
    """Return a sentence instead of a report that cannot be read."""
    reason = in_short(f"{type(error).__name__}: {error}", 300)
    return element("div", escaped(f"{title}; it cannot be read now: {reason}"))


def _outcomes(report: Report) -> str:
    rows = outcome_rows(report)
    bar = stacked_bar([(n / max(report.total, 1), _COLOURS[name]) for name, n in rows if name != "not done"], "30em")
    counts = (
        f'<span style="color:{_COLOURS[name]}">&#9632;</span> {n:,} {name} ({share(n, report.total)})'
        for name, n in rows
    )
    return element("div", bar) + element("div", " &nbsp; ".join(counts))


def _failures(report: Report) -> str:
    rows = [
        (f"{group.n_items:,}", escaped(group.stop_reason), escaped(request_name(group)), escaped(failure_text(group)))
        for group in report.failures
    ]
    if report.n_other_failures:
        rows.append((f"{report.n_other_failures:,}", "", "", "others"))
    title, counted = failure_heads(report)
    heads = (counted if report.n_sampled is not None else "failures", "stop reason", f"example: {NAME_HEAD}", "error")
    return (element("div", escaped(title)) if report.n_sampled is not None else "") + table(rows, heads)


def _folded(summary: str, content: str) -> str:
    return f'<details><summary style="cursor:pointer">{summary}</summary>{content}</details>'

"""The measured runs as text and as a table of Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import NamedTuple

from tests.benchmarks.peers.environments import PEERS
from tests.benchmarks.peers.measure import Measured
from tests.benchmarks.peers.works import WORKS, Work

BASELINE = "aiohttp"
MAX_P50_OF_CALM = 1.03
"""The p50 of the requests that are not stragglers, divided by that of the same work without stragglers, at most."""


class Row(NamedTuple):
    """One run: the round that it belongs to, the names of its work and its contender, and its figures."""

    round: str
    work: str
    contender: str
    measured: Measured


def of(rows: Iterable[Row], work: str, contender: str) -> list[Row]:
    """Return the runs of a work by a contender."""
    return [row for row in rows if (row.work, row.contender) == (work, contender)]


def mid(rows: Sequence[Row], value: Callable[[Measured], float | None]) -> float | None:
    """Return the median of the values that there are."""
    values = [each for each in (value(row.measured) for row in rows) if each is not None]
    return median(values) if values else None


def wall_ratio(rows: Sequence[Row], work: str, contender: str) -> float | None:
    """Return the median of the ratios of wall time to the baseline, each within its round."""
    bare_s = {row.round: row.measured.wall_s for row in of(rows, work, BASELINE)}
    ratios = [row.measured.wall_s / bare_s[row.round] for row in of(rows, work, contender) if row.round in bare_s]
    return median(ratios) if ratios else None


def p50_ratio(rows: Sequence[Row], work: Work, contender: str) -> float | None:
    """Return the median of the ratios of p50 without the stragglers to that of the calm work, each within its round."""
    calm_s = {row.round: p50_s for row in of(rows, work.calm, contender) if (p50_s := row.measured.p50_s)}
    pairs = [(row.measured.p50_s, calm_s.get(row.round)) for row in of(rows, work.name, contender)]
    ratios = [p50_s / of_calm_s for p50_s, of_calm_s in pairs if p50_s and of_calm_s]
    return median(ratios) if ratios else None


def heading(work: Work) -> str:
    """Return a work in words."""
    steps = f", {work.n_tool_steps + 1} model calls each" if work.n_tool_steps else ""
    slow = f", {work.n_slow} of them of {work.slow_s:g} s" if work.n_slow else ""
    return f"{work.n:,} requests of {work.latency_s:g} s{steps}{slow}, {work.concurrency:,} at once"


def lines_of(works: Sequence[Work], rows: Sequence[Row]) -> list[str]:
    """Return a block of lines for each work."""
    lines = list[str]()
    for work in works:
        lines.append(f"{work.name}: {heading(work)}; ideal {work.ideal_s:.2f} s")
        for name in PEERS:
            if done := of(rows, work.name, name):
                first, *more = _lines(work, name, done, rows)
                lines += [f"  {name:<18}{first}", *(f"  {'':<18}{line}" for line in more)]
    return lines


def _lines(work: Work, name: str, done: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    to_bare = wall_ratio(rows, work.name, name)
    parts = [
        f"{mid(done, lambda run: run.wall_s):7.2f} s",
        f"{to_bare:5.2f} x {BASELINE}" if to_bare else "",
        f"CPU {_cpu_ms(work, done):6.2f} ms a request",
        f"mock {mid(done, lambda run: run.mock_cpu_s / run.wall_s):4.0%} of a core",
        f"{len(done)} runs",
    ]
    if wrong := [work.n - row.measured.n_right for row in done if row.measured.n_right < work.n]:
        parts.append(f"WITHOUT A RIGHT ANSWER: {wrong}")
    if more := [row.measured.n_calls - work.n_calls for row in done if row.measured.n_calls != work.n_calls]:
        parts.append(f"model calls more than needed: {more}")
    lines = ["  ".join(parts)]
    if ratio := mid(done, lambda run: run.wall_s / run.slowest_s if run.slowest_s else None):
        lines.append(f"wall {ratio:.3f} x the slowest request's own time")
    if ratio := p50_ratio(rows, work, name):
        lines.append(f"p50 of the others {ratio:.3f} x that of {work.calm!r}")
    return [*lines, _overhead(work, done)]


def _cpu_ms(work: Work, done: Sequence[Row]) -> float:
    return median(row.measured.cpu_s for row in done) / work.n * 1e3


def _overhead(work: Work, done: Sequence[Row]) -> str:
    """Where the time goes that is not the model's."""
    n_calls = work.n_tool_steps + 1
    runs = [row.measured for row in done]
    parts = [
        f"first call after {median(run.before_s for run in runs) * 1e3:.0f} ms",
        f"end {median(run.after_s for run in runs) * 1e3:.0f} ms after the last answer",
    ]
    if not work.n_slow and work.latency_s:
        slot_s = median(run.between_s for run in runs) * work.concurrency / work.n
        parts.append(f"a slot {(slot_s - n_calls * work.latency_s) * 1e3:.1f} ms a request beyond its model")
    if p50_s := mid(done, lambda run: run.p50_s):
        over_ms = (p50_s - n_calls * work.latency_s) * 1e3
        parts.append(f"a request itself {over_ms:.1f} ms (p50), {over_ms / n_calls:.1f} ms a step")
    return "; ".join(parts)


def markdown_of(works: Sequence[Work], rows: Sequence[Row]) -> list[str]:
    """Return a table with a column for each work and a line for each contender; ratios are those to the baseline."""
    timed = [work for work in works if work.latency_s]
    titles = [*map(heading, timed), "CPU a request, streamed if it can"]
    ideals = [*(f"{work.ideal_s:.1f} s" for work in timed), ""]
    lines = [_line("", titles), _line("---", ["---"] * len(titles)), _line("the ideal", ideals)]
    for name, peer in PEERS.items():
        if any(row.contender == name for row in rows):
            cells = [_cell(work, name, rows) for work in timed]
            cpu = of(rows, "cpu", name)
            lines.append(_line(peer.title, [*cells, f"{_cpu_ms(WORKS['cpu'], cpu):.2f} ms" if cpu else ""]))
    return lines


def _cell(work: Work, name: str, rows: Sequence[Row]) -> str:
    wall_s, ratio = mid(of(rows, work.name, name), lambda run: run.wall_s), wall_ratio(rows, work.name, name)
    if wall_s is None:
        return ""
    return f"{wall_s:.1f} s" + (f" ({ratio:.2f})" if ratio and name != BASELINE else "")


def _line(first: str, cells: Sequence[str]) -> str:
    return "| " + " | ".join([first, *cells]) + " |"

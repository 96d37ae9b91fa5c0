"""The measured runs as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from tests.benchmarks.peers.measure import Measured
from tests.benchmarks.peers.works import Work

Runs = Mapping[tuple[str, str], Sequence[Measured]]
"""The runs of each work (its name) by each contender."""

BASELINE = "aiohttp"


def mid(runs: Sequence[Measured], value: Callable[[Measured], float | None]) -> float | None:
    """Return the median of the values that there are."""
    values = [each for each in map(value, runs) if each is not None]
    return median(values) if values else None


def ratio(runs: Runs, work: str, contender: str, value: Callable[[Measured], float | None]) -> float | None:
    """Return the median of the ratios to the baseline, each within its round."""
    pairs = zip(runs.get((work, contender), ()), runs.get((work, BASELINE), ()), strict=False)
    values = [mine / base for mine, base in ((value(a), value(b)) for a, b in pairs) if mine and base]
    return median(values) if values else None


def lines_of(works: Sequence[Work], contenders: Sequence[str], runs: Runs) -> list[str]:
    """Return a block of lines for each work."""
    lines = list[str]()
    for work in works:
        steps = f", {work.n_tool_steps + 1} model calls each" if work.n_tool_steps else ""
        slow = f", {work.n_slow} of them of {work.slow_s:g} s" if work.n_slow else ""
        lines.append(
            f"{work.name}: {work.n:,} requests of {work.latency_s:g} s{steps}{slow}, {work.concurrency:,} at once; "
            f"ideal {work.ideal_s:.2f} s"
        )
        for name in contenders:
            if done := runs.get((work.name, name)):
                first, *more = _lines(work, name, done, runs)
                lines += [f"  {name:<18}{first}", *(f"  {'':<18}{line}" for line in more)]
    return lines


def _lines(work: Work, name: str, done: Sequence[Measured], runs: Runs) -> list[str]:
    to_bare = ratio(runs, work.name, name, lambda run: run.wall_s)
    parts = [
        f"{median(run.wall_s for run in done):7.2f} s",
        f"{to_bare:5.2f} x {BASELINE}" if to_bare else "",
        f"CPU {median(run.cpu_s for run in done) / work.n * 1e3:6.2f} ms a request",
        f"mock {median(run.mock_cpu_s / run.wall_s for run in done):4.0%} of a core",
    ]
    if wrong := [work.n - run.n_right for run in done if run.n_right < work.n]:
        parts.append(f"WITHOUT A RIGHT ANSWER: {wrong}")
    if more := [run.n_calls - work.n_calls for run in done if run.n_calls != work.n_calls]:
        parts.append(f"model calls more than needed: {more}")
    lines = ["  ".join(parts)]
    if slowest_s := mid(done, lambda run: run.slowest_s):
        lines.append(f"wall {median(run.wall_s for run in done) / slowest_s:.3f} x the slowest request's own time")
    return [*lines, _overhead(work, done)]


def _overhead(work: Work, done: Sequence[Measured]) -> str:
    """Where the time goes that is not the model's."""
    n_calls = work.n_tool_steps + 1
    parts = [
        f"first call after {median(run.before_s for run in done) * 1e3:.0f} ms",
        f"end {median(run.after_s for run in done) * 1e3:.0f} ms after the last answer",
    ]
    if not work.n_slow and work.latency_s:
        slot_s = median(run.between_s for run in done) * work.concurrency / work.n
        parts.append(f"a slot {(slot_s - n_calls * work.latency_s) * 1e3:.1f} ms a request beyond its model")
    if p50_s := mid(done, lambda run: run.p50_s):
        over_ms = (p50_s - n_calls * work.latency_s) * 1e3
        parts.append(f"a request itself {over_ms:.1f} ms (p50), {over_ms / n_calls:.1f} ms a step")
    return "; ".join(parts)

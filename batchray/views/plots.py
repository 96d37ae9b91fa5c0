"""A picture of a job: throughput over time, outcomes, durations, time to the first token, tokens.

Figures are made without pyplot, so no backend is chosen or switched and no figure stays open.  Outcomes are counted in
bins, so memory does not grow with the job.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

import orjson
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, MultipleLocator, NullFormatter

from batchray.schema.progress import Histogram, Progress
from batchray.store import JobRecord
from batchray.views.html import AMBER, BLUE, GREEN, GREY, RED
from batchray.views.summary import clock, duration

_COLOURS: Mapping[str, str] = {
    "succeeded": GREEN,
    "errored": RED,
    "canceled": AMBER,
    "expired": BLUE,
    "not done": "#d5d8dd",
}
_MAX_BINS, _SHOWN_BINS, _MAX_BARS = 256, 64, 36
_FIRST_BIN_S = 0.01
_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 43_200, 86_400, 604_800)
INK, _FAINT = "#30343a", "#e3e5e8"
_FONT = 9


class NotebookFigure(Figure):
    """A figure that a notebook shows by itself, whichever backend is in use."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=110)
        return file.getvalue()


def job_figure(
    record: JobRecord, status: str, progress: Progress, ends: Iterable[Mapping[tuple[str, str, bytes], int]]
) -> NotebookFigure:
    """Return the figure of a job's outcomes so far; without any it says so.  `ends` are as `Figures.ends` has them."""
    seen = _Seen(_Timeline(_seconds(record.started_at or record.created_at)))
    for counted in ends:
        for end, n in counted.items():
            seen.add(*end, n)
    figure = NotebookFigure(figsize=(12, 6.4), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(2, 3)
    figure.suptitle(
        f"{record.id}: {status}, {progress.done:,} of {record.total:,} done", fontsize=11, color=INK, x=0.01, ha="left"
    )
    _draw_throughput(titled_axes(figure, grid[0, :2], "outcomes per second"), seen.timeline)
    _draw_outcomes(titled_axes(figure, grid[0, 2], "outcomes"), progress.counts, record.total)
    _draw_durations(titled_axes(figure, grid[1, 0], "start to end of a request"), progress.timings["duration"], BLUE)
    _draw_durations(titled_axes(figure, grid[1, 1], "start to first token"), progress.timings["ttft"], AMBER)
    _draw_tokens(titled_axes(figure, grid[1, 2], "tokens of a request"), seen.prompts, seen.completions)
    return figure


@dataclass
class _Timeline:
    """Outcomes over time, in at most 256 bins whose width doubles when time runs out of them."""

    start_s: float
    width_s: float = _FIRST_BIN_S
    succeeded: list[int] = field(default_factory=lambda: [0] * _MAX_BINS)
    others: list[int] = field(default_factory=lambda: [0] * _MAX_BINS)

    def add(self, time_s: float, is_success: bool, n: int = 1) -> None:
        elapsed = max(time_s - self.start_s, 0.0)
        while elapsed >= self.width_s * _MAX_BINS:
            self.succeeded, self.others, self.width_s = _halved(self.succeeded), _halved(self.others), 2 * self.width_s
        (self.succeeded if is_success else self.others)[int(elapsed / self.width_s)] += n

    def shown(self) -> tuple[list[int], list[int], float]:
        """Return the bins up to the last outcome, 64 of them or less, and their width in seconds."""
        good, bad, width_s = self.succeeded, self.others, self.width_s
        while (n := _n_used(good, bad)) > _SHOWN_BINS:
            good, bad, width_s = _halved(good), _halved(bad), 2 * width_s
        return good[:n], bad[:n], width_s


def _halved(bins: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip(bins[::2], bins[1::2], strict=True)] + [0] * (len(bins) // 2)


def _n_used(good: Sequence[int], bad: Sequence[int]) -> int:
    return max((n for n, pair in enumerate(zip(good, bad, strict=True), start=1) if any(pair)), default=0)


@dataclass
class _Seen:
    """The outcomes so far, counted for those panels of the figure that the progress has not."""

    timeline: _Timeline
    prompts: Histogram = field(default_factory=Histogram)
    completions: Histogram = field(default_factory=Histogram)

    def add(self, finished_at: str, status: str, usage: bytes, n_outcomes: int) -> None:
        self.timeline.add(_seconds(finished_at), status == "succeeded", n_outcomes)
        tokens = orjson.loads(usage)
        for histogram, name in ((self.prompts, "prompt_tokens"), (self.completions, "completion_tokens")):
            if n_tokens := tokens.get(name):
                histogram.add(n_tokens, n_outcomes)


@lru_cache(maxsize=1024)  # outcomes are stored many at once
def _seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()


def titled_axes(figure: Figure, place: Any, title: str) -> Axes:
    """Return axes in the style of all figures at a place of a grid, or at (rows, columns, number)."""
    axes = figure.add_subplot(*place) if isinstance(place, tuple) else figure.add_subplot(place)
    axes.set_title(title, fontsize=_FONT + 1, color=INK, loc="left")
    axes.tick_params(labelsize=_FONT, colors=INK, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.grid(axis="y", color=_FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    return axes


def _draw_nothing(axes: Axes, text: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=_FONT + 1)


def _draw_throughput(axes: Axes, timeline: _Timeline) -> None:
    good, bad, width_s = timeline.shown()
    if not good:
        return _draw_nothing(axes, "no outcomes yet")
    edges = [n * width_s for n in range(len(good) + 1)]
    rates = [n / width_s for n in good]
    tops = [(a + b) / width_s for a, b in zip(good, bad, strict=True)]
    axes.stairs(rates, edges, fill=True, color=GREEN, alpha=0.8, label="succeeded")
    if any(bad):
        axes.stairs(tops, edges, baseline=rates, fill=True, color=RED, alpha=0.8, label="others")
        axes.legend(fontsize=_FONT, frameon=False, ncols=2, loc="upper right", bbox_to_anchor=(1, 1.14))
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(bottom=0)
    _label_time(axes, edges[-1])
    axes.set_xlabel("since the start of the job", fontsize=_FONT, color=GREY)
    return None


def _label_time(axes: Axes, span_s: float) -> None:
    """Label an axis of seconds with marks at whole seconds, minutes or hours if it is long enough."""
    step_s = next((step for step in _STEPS_S if span_s / step <= 8), None) if span_s >= _STEPS_S[0] * 4 else None
    if step_s is None:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: round_duration(value) if value else "0"))
    else:
        axes.xaxis.set_major_locator(MultipleLocator(step_s))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: clock(value)))


def _draw_outcomes(axes: Axes, counts: Mapping[str, int], total: int) -> None:
    left = total - sum(counts.values())
    rows = [(name, n) for name, n in [*counts.items(), ("not done", left)] if n]
    if not rows:
        return _draw_nothing(axes, "no requests")
    names = [name for name, _ in rows]
    bars = axes.barh(range(len(rows)), [n for _, n in rows], color=[_COLOURS[name] for name in names], height=0.6)
    axes.set_yticks(range(len(rows)), names)
    axes.bar_label(bars, [f"{n:,}" for _, n in rows], padding=4, fontsize=_FONT, color=INK)
    axes.set_ylim(max(len(rows), 3) - 0.5, -0.5)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.margins(x=0.22)
    return None


def _draw_durations(axes: Axes, histogram: Histogram, colour: str) -> None:
    if not histogram.buckets:
        return _draw_nothing(axes, "not measured")
    _draw_histogram(axes, histogram, colour, scale=1e-9)
    _label_x(axes, round_duration)
    percentiles = histogram.percentiles()
    for name, value, style in (("p50", percentiles.p50, "-"), ("p95", percentiles.p95, "--")):
        axes.axvline(value, ymax=0.82, color=INK, linewidth=1, linestyle=style, label=f"{name} {duration(value)}")
    _legend(axes)
    return None


def _draw_tokens(axes: Axes, prompts: Histogram, completions: Histogram) -> None:
    if not (prompts.buckets or completions.buckets):
        return _draw_nothing(axes, "no tokens")
    for histogram, colour, name in ((prompts, BLUE, "in"), (completions, GREEN, "out")):
        if histogram.buckets:
            _draw_histogram(axes, histogram, colour, scale=1.0, label=name)
    _label_x(axes, lambda n: f"{n:,.0f}" if n >= 1 else "")
    _legend(axes)
    return None


def _legend(axes: Axes) -> None:
    axes.set_ylim(top=axes.get_ylim()[1] * 1.2)  # room for the legend above the bars
    axes.legend(fontsize=_FONT, frameon=False, loc="upper right", ncols=2)


def _draw_histogram(axes: Axes, histogram: Histogram, colour: str, scale: float, label: str | None = None) -> None:
    """Draw the buckets of a histogram, several of them as one bar if the range is wide."""
    first, last = min(histogram.buckets), max(histogram.buckets)
    per_bar = max(math.ceil((last - first + 1) / _MAX_BARS), 2)
    n_bars = (last - first) // per_bar + 1
    heights = [0] * n_bars
    for bucket, n in histogram.buckets.items():
        heights[(bucket - first) // per_bar] += n
    edges = [2.0 ** ((first - 1 + k * per_bar) / 16) * scale for k in range(n_bars + 1)]
    axes.stairs(heights, edges, fill=True, color=colour, alpha=0.55, label=label)
    axes.stairs(heights, edges, color=colour, linewidth=1)
    axes.set_ylabel("requests", fontsize=_FONT, color=GREY)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def _label_x(axes: Axes, form: Callable[[float], str]) -> None:
    """Label a logarithmic axis, which is at least a factor of four wide, so that it has marks."""
    low, high = axes.dataLim.intervalx
    middle, half = math.sqrt(low * high), max(math.sqrt(high / low) * 1.1, 2.0)
    axes.set_xscale("log")
    axes.set_xlim(middle / half, middle * half)
    steps = (1, 2, 5) if half < 10 else (1, 3) if half < 60 else (1,)
    decades = range(math.floor(math.log10(middle / half)), math.ceil(math.log10(middle * half)) + 1)
    marks = [step * 10.0**decade for decade in decades for step in steps]
    axes.xaxis.set_major_locator(FixedLocator([mark for mark in marks if middle / half <= mark <= middle * half]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def round_duration(seconds: float) -> str:
    """Return a duration as an axis shows it, in the largest unit."""
    for size, unit in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "\u00b5s")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"

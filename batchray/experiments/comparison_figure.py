"""A picture of a comparison: the means of its groups with their intervals, durations, and costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from batchray.views.html import AMBER, BLUE, GREEN, GREY
from batchray.views.plain_text import in_short
from batchray.views.plots import INK, NotebookFigure, round_duration, titled_axes
from batchray.views.trajectory import dollars

_MAX_GROUPS = 30
_BAR = 0.6


def comparison_figure(frame: pd.DataFrame) -> NotebookFigure:
    """Return a figure with a row for each of the first 30 groups, and a panel for each measure that they have."""
    shown = frame.head(_MAX_GROUPS)
    panels: dict[str, Callable[[Axes], None]] = {}
    if not shown["score"].isna().all():
        panels["score, with its interval"] = lambda axes: _draw_means(axes, shown, "score", BLUE)
    panels["succeeded"] = lambda axes: _draw_means(axes, shown, "success_rate", GREEN)
    panels["p50 and p95 of the duration"] = lambda axes: _draw_durations(axes, shown)
    if not shown["cost_usd"].isna().all():
        panels["cost"] = lambda axes: _draw_costs(axes, shown)
    height = 1.1 + 0.34 * max(len(shown), 2)
    figure = NotebookFigure(figsize=(1.5 + 3.1 * len(panels), height), layout="constrained", facecolor="white")
    for number, (title, draw) in enumerate(panels.items()):
        axes = titled_axes(figure, (1, len(panels), number + 1), title)
        draw(axes)
        axes.set_yticks(range(len(shown)), _names(shown) if number == 0 else [""] * len(shown))
        axes.set_ylim(max(len(shown), 2) - 0.5, -0.5)
        axes.grid(visible=False)
    return figure


def _names(frame: pd.DataFrame) -> Sequence[str]:
    keys = (key if isinstance(key, tuple) else (key,) for key in frame.index)
    return [in_short(" ".join(map(str, key)), 40).replace("$", r"\$") for key in keys]  # "$" would begin a formula


def _draw_means(axes: Axes, frame: pd.DataFrame, name: str, colour: str) -> None:
    """Draw the mean of each group, with its interval if it has one."""
    means = frame[name].astype(float)
    axes.barh(range(len(frame)), means, _BAR, color=colour, alpha=0.55)
    if f"{name}_low" in frame:
        low, high = (frame[f"{name}_{end}"].astype(float) for end in ("low", "high"))
        axes.errorbar(means, range(len(frame)), xerr=[means - low, high - means], fmt="none", ecolor=INK, capsize=3)
    if name == "success_rate":
        axes.set_xlim(0, 1.02)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))


def _draw_durations(axes: Axes, frame: pd.DataFrame) -> None:
    p50, p95 = frame["p50_s"].astype(float), frame["p95_s"].astype(float)
    axes.barh(range(len(frame)), p95, _BAR, color=GREY, alpha=0.3, label="p95")
    axes.barh(range(len(frame)), p50, _BAR, color=AMBER, alpha=0.7, label="p50")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: round_duration(value) if value > 0 else "0"))
    axes.locator_params(axis="x", nbins=4)


def _draw_costs(axes: Axes, frame: pd.DataFrame) -> None:
    axes.barh(range(len(frame)), frame["cost_usd"].astype(float), _BAR, color=GREY, alpha=0.6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: dollars(value).replace("$", r"\$")))
    axes.locator_params(axis="x", nbins=3)

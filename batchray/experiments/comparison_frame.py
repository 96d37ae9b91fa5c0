"""The frame that `compare` returns: a DataFrame that a notebook shows as a table for people."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from batchray.views.extras import needing
from batchray.views.html import GREEN, GREY, RED, element, escaped, stacked_bar, table
from batchray.views.plain_text import in_short
from batchray.views.summary import duration
from batchray.views.trajectory import dollars

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_ROWS = 50


class Comparison(pd.DataFrame):
    """A DataFrame in all respects; only its HTML differs.  Parts and copies of it are plain ones."""

    @property
    def _constructor(self) -> Callable[..., pd.DataFrame]:
        return pd.DataFrame

    def _repr_html_(self) -> str:
        """Return a table of the columns that were measured, each mean with its interval."""
        return comparison_html(self)

    def figure(self) -> Figure:
        """Return a figure of the means with their intervals, durations and costs.  Needs the extra `batchray[plot]`.

        It is matplotlib's, made without pyplot, as that of `job.plot()`.  Raises ConfigError if matplotlib is not
        installed.
        """
        with needing("matplotlib", "plot"):
            from batchray.experiments.comparison_figure import comparison_figure

        return comparison_figure(self)


def comparison_html(frame: pd.DataFrame) -> str:
    """Return the groups of a comparison as HTML: at most 50 of them, and no column that is empty."""
    heads = [(name, show) for name, needs, show in _COLUMNS if not _is_empty(frame, needs)]
    names = [str(name or "group") for name in frame.index.names]
    rows = [
        [*_names(key), *(show(row) for _, show in heads)]
        for key, (_, row) in zip(frame.index[:_MAX_ROWS], frame.head(_MAX_ROWS).iterrows(), strict=True)
    ]
    shown_heads = [escaped(in_short(name)) for name in [*names, *(name for name, _ in heads)]]
    left = len(frame) - len(rows)
    more = element("div", f"... {left:,} more groups", f"color:{GREY}") if left > 0 else ""
    return element("div", table(rows, shown_heads) + more)


def _is_empty(frame: pd.DataFrame, name: str) -> bool:
    """Whether a column says nothing: it has no values, or differences of a single group."""
    return bool(frame[name].isna().all()) or (name.endswith("difference") and len(frame) < 2)


def _names(key: Hashable) -> Sequence[str]:
    parts = key if isinstance(key, tuple) else (key,)
    return [element("b", escaped(in_short(str(part), 60))) for part in parts]


def _percent(value: Any) -> str:
    return f"{value:.1%}"


def _number(value: Any) -> str:
    return f"{value:.3g}"


def _success(row: Any) -> str:
    share = float(row["success_rate"])
    return f"{stacked_bar([(share, GREEN), (1 - share, RED)], '5em')} {_percent(share)}"


def _difference(name: str, form: Callable[[Any], str]) -> Callable[[Any], str]:
    """Return the function that shows a difference: in colour if its interval leaves out 0."""

    def show(row: Any) -> str:
        mean, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
        if pd.isna(mean):
            return ""
        if mean == low == high == 0:
            return "0"  # the baseline, or a group that is no different in any request
        sign = "+" if mean > 0 else ""
        text = f"{sign}{form(mean)}"
        if pd.isna(low):
            return text
        colour = GREEN if low > 0 else RED if high < 0 else ""
        shown = element("b", text, f"color:{colour}") if colour else text
        return f"{shown} {_interval(low, high, form)}"

    return show


def _mean(row: Any) -> str:
    if pd.isna(row["score"]):
        return ""
    low, high = row["score_low"], row["score_high"]
    return _number(row["score"]) + ("" if pd.isna(low) else f" {_interval(low, high, _number)}")


def _interval(low: Any, high: Any, form: Callable[[Any], str]) -> str:
    return element("span", f"[{form(low)}, {form(high)}]", "opacity:.6;font-size:.9em")


def _plain(name: str, form: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda row: "" if pd.isna(row[name]) else escaped(form(row[name]))


def _tokens(row: Any) -> str:
    return f"{row['prompt_tokens']:,} in, {row['completion_tokens']:,} out"


_COLUMNS: Sequence[tuple[str, str, Callable[[Any], str]]] = (
    ("requests", "requests", _plain("requests", lambda n: f"{n:,}")),
    ("succeeded", "success_rate", _success),
    ("difference", "success_difference", _difference("success_difference", _percent)),
    ("score", "score", _mean),
    ("difference of score", "score_difference", _difference("score_difference", _number)),
    ("tokens", "prompt_tokens", _tokens),
    ("cost", "cost_usd", _plain("cost_usd", dollars)),
    ("p50", "p50_s", _plain("p50_s", duration)),
    ("p95", "p95_s", _plain("p95_s", duration)),
)
"""The heads of the columns, the column of the frame that must not be empty, and what a cell shows of a row."""

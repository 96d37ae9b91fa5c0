"""The frame that `compare` returns: a DataFrame that notebooks and terminals show as a table for people."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import pandas as pd

from batchray.views.extras import needing
from batchray.views.html import GREEN, GREY, RED, element, escaped, stacked_bar, table
from batchray.views.plain_text import in_short
from batchray.views.summary import duration
from batchray.views.trajectory import dollars

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_ROWS, _N_COLUMNS, _MIN_NAME = 50, 120, 10
_GAP = "  "
_NO_ROW = object()
_Justify = Callable[[str, int], str]
_BASELINE, _MINUS = " (baseline)", " minus baseline"


class Comparison(pd.DataFrame):
    """A DataFrame in all respects; only how it is printed and its HTML differ.  Parts and copies of it are plain ones.

    `baseline` is the label of the row that the differences are to; `level` is that of the intervals.
    """

    _metadata: ClassVar[list[str]] = ["baseline", "level"]

    def __init__(self, data: Any = None, *, baseline: Any = _NO_ROW, level: float = 0.95) -> None:
        super().__init__(data)  # type: ignore[call-arg]
        self.baseline, self.level = baseline, level

    @property
    def _constructor(self) -> Callable[..., pd.DataFrame]:
        return pd.DataFrame

    def __repr__(self) -> str:
        """Return the table of `_repr_html_` as text; that of pandas if columns were added or taken away."""
        return comparison_text(self) if self._is_whole else super().__repr__()

    def _repr_html_(self) -> str:
        """Return a table of the columns that were measured, each mean with its interval; that of pandas as `repr`."""
        return comparison_html(self) if self._is_whole else str(pd.DataFrame(self)._repr_html_())  # type: ignore[operator]

    @property
    def _is_whole(self) -> bool:
        return {*self.columns} == COLUMNS

    def figure(self) -> Figure:
        """Return a figure of the means with their intervals, durations and costs.  Needs the extra `batchray[plot]`.

        It is matplotlib's, made without pyplot, as that of `job.plot()`.  Raises ConfigError if matplotlib is not
        installed.
        """
        with needing("matplotlib", "plot"):
            from batchray.experiments.comparison_figure import comparison_figure

        return comparison_figure(self)


def comparison_html(frame: Comparison) -> str:
    """Return the groups of a comparison as HTML: at most 50 of them, and no column that is empty."""
    heads, rows, legend = _table(frame)
    cells = [[*(element("b", escaped(name)) for name in names), *map(_html_of, cells)] for names, cells in rows]
    notes = "".join(element("div", escaped(line), f"color:{GREY}") for line in legend)
    return element("div", table(cells, [*map(escaped, heads)]) + notes)


def comparison_text(frame: Comparison) -> str:
    """Return the same rows, columns and legend as text, of at most 120 columns unless the numbers need more.

    A cell has one line if all of them fit, and otherwise two.
    """
    heads, rows, legend = _table(frame)
    n_names = frame.index.nlevels
    names = [heads[:n_names], *(names for names, _ in rows)]
    numbers = [heads[n_names:], *([cell.lines(" ") for cell in cells] for _, cells in rows)]
    lines = _beside(names, numbers, _GAP)
    if len(lines[0]) > _N_COLUMNS:
        heads = [head.replace(_MINUS, f"\n{_MINUS.strip()}") for head in heads[n_names:]]
        numbers = [heads, *([cell.lines("\n") for cell in cells] for _, cells in rows)]
        room = (_N_COLUMNS - len(_aligned(numbers, str.rjust, " ")[0])) // n_names - 1
        names = [["\n".join(textwrap.wrap(name, max(room, _MIN_NAME))) for name in each] for each in names]
        lines = _beside(names, numbers, " ")
    notes = [part for line in legend for part in textwrap.wrap(line, _N_COLUMNS)]
    return "\n".join([*(line.rstrip() for line in lines), *([""] if notes else []), *notes])


def _beside(names: Sequence[Sequence[str]], numbers: Sequence[Sequence[str]], gap: str) -> list[str]:
    """Return the lines of a table whose first row are the heads, with a rule below it."""
    heights = [
        max(cell.count("\n") + 1 for cell in (*some, *others)) for some, others in zip(names, numbers, strict=True)
    ]
    parts = [_aligned(rows, justify, gap, heights) for rows, justify in ((names, str.ljust), (numbers, str.rjust))]
    lines = [gap.join(pair) for pair in zip(*parts, strict=True)]
    return [*lines[: heights[0]], "-" * len(lines[0]), *lines[heights[0] :]]


def _aligned(rows: Sequence[Sequence[str]], justify: _Justify, gap: str, heights: Sequence[int] = ()) -> list[str]:
    """Return the lines of rows of cells, each column as wide as its widest line and each row as high as is said."""
    heights = heights or [max(cell.count("\n") + 1 for cell in row) for row in rows]
    widths = [max(len(line) for cell in column for line in cell.split("\n")) for column in zip(*rows, strict=True)]
    lines = []
    for row, height in zip(rows, heights, strict=True):
        cells = [[*cell.split("\n"), *[""] * height][:height] for cell in row]
        lines += [gap.join(map(justify, line, widths)) for line in zip(*cells, strict=True)]
    return lines


class _Cell(NamedTuple):
    """The content of a cell: a text, something less important after it, a colour, and the share of a bar before it."""

    text: str = ""
    more: str = ""
    colour: str = ""
    share: float | None = None

    def lines(self, separator: str) -> str:
        """Return the cell as text."""
        return separator.join(filter(None, (self.text, self.more)))


def _table(frame: Comparison) -> tuple[list[str], list[tuple[list[str], list[_Cell]]], list[str]]:
    """Return the heads of a table, the names and cells of each row, and the lines of its legend."""
    columns = [(name, show) for name, needs, show in _COLUMNS if not _is_empty(frame, needs)]
    heads = [in_short(str(name or "group")) for name in frame.index.names] + [name for name, _ in columns]
    rows = [
        (_names(key, is_baseline=_is_same(key, frame.baseline) and len(frame) > 1), [show(row) for _, show in columns])
        for key, (_, row) in zip(frame.index, frame.head(_MAX_ROWS).iterrows(), strict=False)
    ]
    legend = [f"... {len(frame) - len(rows):,} more groups"] if len(frame) > len(rows) else []
    return heads, rows, [*legend, *_legend(frame)]


def _legend(frame: Comparison) -> Iterator[str]:
    has_scores = not _is_empty(frame, "score")
    if len(frame) > 1:
        named = "" if frame.baseline is _NO_ROW else f", {_name(frame.baseline)}"
        pairs = "`pairs` is the number of requests that both have"
        scored = "; differences of the score are over those that both have scored" if has_scores else ""
        yield f"minus baseline: the mean difference to the baseline{named}, request by request; {pairs}{scored}"
    if has_scores or len(frame) > 1:
        yield f"[low, high]: the {frame.level * 100:g} % bootstrap interval of the mean"


def _is_empty(frame: Comparison, name: str) -> bool:
    """Whether a column says nothing: it has no values, or differences of a single group."""
    return bool(frame[name].isna().all()) or (name in _OF_PAIRS and len(frame) < 2)


def _names(key: Hashable, *, is_baseline: bool) -> list[str]:
    parts = [in_short(str(part), 60) for part in (key if isinstance(key, tuple) else (key,))]
    return [*parts[:-1], f"{parts[-1]}{_BASELINE}"] if is_baseline else parts


def _is_same(key: Any, other: Any) -> bool:
    return bool(key == other) or (key != key and other != other)  # NaN is the label of a missing value


def _name(key: Hashable) -> str:
    return " ".join(_names(key, is_baseline=False))


def _html_of(cell: _Cell) -> str:
    text = escaped(cell.text)
    if cell.share is not None:
        text = f"{stacked_bar([(cell.share, GREEN), (1 - cell.share, RED)], '5em')} {text}"
    shown = element("b", text, f"color:{cell.colour}") if cell.colour else text
    return f"{shown} {element('span', escaped(cell.more), 'opacity:.6;font-size:.9em')}" if cell.more else shown


def _percent(value: Any) -> str:
    return f"{value:.1%}"


def _number(value: Any) -> str:
    return f"{value:.3g}"


def _success(row: Any) -> _Cell:
    share = float(row["success_rate"])
    return _Cell(_percent(share), share=share)


def _difference(name: str, form: Callable[[Any], str]) -> Callable[[Any], _Cell]:
    """Return the function that shows a difference: in colour if its interval leaves out 0."""

    def show(row: Any) -> _Cell:
        mean, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
        if pd.isna(mean):
            return _Cell()
        if mean == low == high == 0:
            return _Cell("0")  # the baseline, or a group that is no different in any request
        sign = "+" if mean > 0 else ""
        text = f"{sign}{form(mean)}"
        if pd.isna(low):
            return _Cell(text)
        return _Cell(text, _interval(low, high, form), GREEN if low > 0 else RED if high < 0 else "")

    return show


def _mean(row: Any) -> _Cell:
    if pd.isna(row["score"]):
        return _Cell()
    low, high = row["score_low"], row["score_high"]
    return _Cell(_number(row["score"]), "" if pd.isna(low) else _interval(low, high, _number))


def _interval(low: Any, high: Any, form: Callable[[Any], str]) -> str:
    return f"[{form(low)}, {form(high)}]"


def _plain(name: str, form: Callable[[Any], str]) -> Callable[[Any], _Cell]:
    return lambda row: _Cell() if pd.isna(row[name]) else _Cell(form(row[name]))


def _pairs(row: Any) -> _Cell:
    n_scored, n = row["score_pairs"], row["pairs"]
    return _Cell(f"{n:,}", "" if n_scored in (0, n) else f"({n_scored:,} scored)")


def _tokens(row: Any) -> _Cell:
    return _Cell(f"{row['prompt_tokens']:,} in,", f"{row['completion_tokens']:,} out")


_COLUMNS: Sequence[tuple[str, str, Callable[[Any], _Cell]]] = (
    ("requests", "requests", _plain("requests", lambda n: f"{n:,}")),
    ("succeeded", "success_rate", _success),
    (f"success{_MINUS}", "success_difference", _difference("success_difference", _percent)),
    ("score", "score", _mean),
    (f"score{_MINUS}", "score_difference", _difference("score_difference", _number)),
    ("pairs", "pairs", _pairs),
    ("tokens", "prompt_tokens", _tokens),
    ("cost", "cost_usd", _plain("cost_usd", dollars)),
    ("p50", "p50_s", _plain("p50_s", duration)),
    ("p95", "p95_s", _plain("p95_s", duration)),
)
"""The heads of the columns, the column of the frame that must not be empty, and what a cell shows of a row."""

_OF_PAIRS = ("success_difference", "score_difference", "pairs")
_WITH_INTERVAL = ("score", "success_difference", "score_difference")
COLUMNS = frozenset(
    (
        *("requests", "success_rate", "scored", "pairs", "score_pairs"),
        *(f"{name}{end}" for name in _WITH_INTERVAL for end in ("", "_low", "_high")),
        *("prompt_tokens", "completion_tokens", "cost_usd", "p50_s", "p95_s"),
    )
)
"""The columns that `compare` makes."""

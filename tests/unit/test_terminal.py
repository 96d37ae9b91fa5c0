"""The lines at the bottom of a terminal: drawn in place, cut to the width, below what others print."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchray.views.terminal import LiveLines, bar, fitted, rows_of
from tests.builders.screen import Screen

LINES = st.lists(st.text("ab ", min_size=1, max_size=40).map(lambda text: f"|{text}|"), min_size=1, max_size=3)


@given(st.lists(st.tuples(st.integers(2, 50), LINES, st.booleans()), max_size=12))
def test_new_lines_replace_the_drawn_ones_at_any_width(moments: list[tuple[int, list[str], bool]]) -> None:
    screen, printed, shown = Screen(30), [], [""]
    with LiveLines(screen, lambda: screen.n_columns) as live:
        for number, (width, lines, has_warning) in enumerate(moments):
            screen.n_columns = width
            if has_warning:
                with live.above():
                    screen.write(f"w{number}\n")
                printed.append(f"w{number}")
            live.draw(lines)
            shown = [fitted(line, width - 1) for line in lines]
            assert all(len(line) < width for line in shown)
            assert screen.lines == [*printed, *shown]
    assert screen.lines == ([*printed, *shown, ""] if moments else [""])


def test_a_line_is_cut_by_the_width_of_its_characters() -> None:
    assert fitted("abcdef", 6) == "abcdef"
    assert fitted("abcdef", 5) == "abcd\u2026"
    assert fitted("\u6f22\u5b57\u6f22\u5b57", 6) == "\u6f22\u5b57\u2026"
    assert fitted("abc", 0) == ""


def test_rows_are_counted_at_the_present_width() -> None:
    assert rows_of([0, 10, 11, 20], 10) == 1 + 1 + 2 + 2


@pytest.mark.parametrize(("share", "n_full"), [(0.0, 0), (0.999, 9), (1.0, 10), (0.5, 5)])
def test_a_bar_is_full_only_at_the_end(share: float, n_full: int) -> None:
    assert bar(share, 10) == "\u2501" * n_full + "\u2500" * (10 - n_full)


@pytest.mark.parametrize("name", ["", "batchray"])
def test_warnings_are_printed_above_the_lines_and_the_handlers_are_put_back(name: str) -> None:
    screen, root = Screen(80), logging.getLogger(name)
    handler = logging.StreamHandler(screen)
    handler.setFormatter(logging.Formatter("batchray: %(message)s"))
    root.addHandler(handler)
    try:
        with LiveLines(screen, lambda: 80) as live:
            live.draw(["1 of 2 done"])
            logging.getLogger("batchray.test").warning("something is slow")
            assert screen.lines == ["batchray: something is slow", "1 of 2 done"]
        assert handler in root.handlers
        logging.getLogger("batchray.test").warning("over")
        assert screen.lines == ["batchray: something is slow", "1 of 2 done", "batchray: over", ""]
    finally:
        root.removeHandler(handler)

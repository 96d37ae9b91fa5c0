"""A few lines at the bottom of a terminal that are drawn again in place, while other output passes above them."""

from __future__ import annotations

import logging
import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from shutil import get_terminal_size
from types import TracebackType
from typing import IO, Self

_FULL, _EMPTY = "\u2501", "\u2500"
_CLEAR_BELOW = "\x1b[J"


def bar(share: float, n_columns: int) -> str:
    """Return a bar of `n_columns` characters, filled to `share`, from 0 to 1."""
    n_full = math.floor(share * n_columns)
    return _FULL * n_full + _EMPTY * (n_columns - n_full)


def fitted(line: str, n_columns: int) -> str:
    """Return a line cut to a terminal's columns, in which wide characters count two."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(line) <= n_columns:
        return line
    return set_cell_size(line, max(n_columns - 1, 0)).rstrip() + "\u2026" if n_columns > 0 else ""


def rows_of(widths: Sequence[int], n_columns: int) -> int:
    """Return how many rows lines of these widths take up in a terminal of `n_columns`, which wraps them."""
    return sum(max(math.ceil(width / max(n_columns, 1)), 1) for width in widths)


class LiveLines:
    """Lines at the bottom of a terminal, each cut to its width.

    Other output to standard error from this process, such as a warning, is printed above them.  After the block the
    last lines stay.  If the terminal becomes narrower it wraps what is drawn, so the rows are counted at its new width.
    """

    def __init__(self, file: IO[str] | None = None, n_columns: Callable[[], int] | None = None) -> None:
        self._file = file if file is not None else sys.stderr
        self._n_columns = n_columns or (lambda: get_terminal_size().columns)
        self._widths: list[int] = []
        self._lines: list[str] = []
        self._lock = threading.RLock()
        self._replaced: list[tuple[logging.Logger, logging.Handler, logging.Handler]] = []

    @property
    def n_columns(self) -> int:
        """The width of the terminal now."""
        return self._n_columns()

    def draw(self, lines: Sequence[str]) -> None:
        """Replace what is drawn."""
        from rich.cells import cell_len

        with self._lock:
            n_columns = self._n_columns() - 1  # a full last column would wrap in some terminals
            shown = [fitted(line, n_columns) for line in lines]
            if shown == self._lines and max(self._widths, default=0) <= n_columns:
                return
            self._file.write(self._clearing() + "\n".join(shown))
            self._file.flush()
            self._lines, self._widths = shown, [cell_len(line) for line in shown]

    def __enter__(self) -> Self:
        root, own = logging.getLogger(), logging.getLogger("batchray")
        has_any = root.handlers or own.handlers
        found = [(logger, handler) for logger in (root, own) for handler in logger.handlers]
        for logger, handler in found if has_any else [(root, logging.lastResort)]:
            if isinstance(handler, logging.StreamHandler) and handler.stream is self._file:
                above = _Above(handler, self.above)
                self._replaced.append((logger, handler, above))
                logger.removeHandler(handler)
                logger.addHandler(above)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for logger, handler, above in self._replaced:
            logger.removeHandler(above)
            if handler is not logging.lastResort:
                logger.addHandler(handler)
        self._replaced.clear()
        if self._lines:
            self._file.write("\n")
            self._file.flush()

    @contextmanager
    def above(self) -> Iterator[None]:
        """Take the lines away inside this block, for output that stays above them."""
        with self._lock:
            lines = self._lines
            self._file.write(self._clearing())
            self._lines, self._widths = [], []
            try:
                yield
            finally:
                self.draw(lines)

    def _clearing(self) -> str:
        """Return what moves the cursor to the first row that is drawn, and clears from there."""
        if not self._lines:
            return ""
        n_up = rows_of(self._widths, self._n_columns()) - 1
        return "\r" + (f"\x1b[{n_up}A" if n_up else "") + _CLEAR_BELOW


class _Above(logging.Handler):
    """A log handler that prints through another one, above the live lines."""

    def __init__(self, inner: logging.Handler, above: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__(inner.level)
        self._inner, self._get_above = inner, above

    def emit(self, record: logging.LogRecord) -> None:
        with self._get_above():
            self._inner.handle(record)

"""A terminal that understands the output of `LiveLines`, and that wraps its lines again when it is resized."""

from __future__ import annotations

import io
import re

_TOKEN = re.compile(r"\x1b\[(\d*)([AJ])|\r|\n|[^\x1b\r\n]+")


class Screen(io.StringIO):
    """Holds the lines that were written, whatever the width at which they are shown."""

    def __init__(self, n_columns: int) -> None:
        super().__init__()
        self.n_columns = n_columns
        self.lines = [""]
        self._row = 0  # of the cursor, in the lines as they are wrapped now, from the last line upwards

    def write(self, text: str) -> int:
        """Show a text."""
        for token in _TOKEN.finditer(text):
            if token[2] == "A":
                self._row += int(token[1] or 1)
            elif token[2] == "J":
                self._clear_below()
            elif token[0] == "\n":
                self.lines.append("")
            elif token[0] != "\r":
                assert self._row == 0, "text is written over other lines"
                self.lines[-1] += token[0]
        return len(text)

    def _clear_below(self) -> None:
        while self._row > 0 or self.lines[-1]:
            n_rows = max(-(-len(self.lines[-1]) // self.n_columns), 1)
            self._row -= n_rows
            if self._row <= -1:
                assert self._row == -1, "the cursor is inside a line that is wrapped"
                self._row = 0
                self.lines[-1] = ""
                return
            self.lines.pop()

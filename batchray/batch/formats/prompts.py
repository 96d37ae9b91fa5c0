"""Prompts made of the columns of a row, by a template such as "Answer: {question}"."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from string import Formatter
from typing import Any, NamedTuple

from batchray.errors import BatchFormatError

_FORMATTER = Formatter()
_ITEMS = re.compile(r"\[[^\]]*\]")


class _Piece(NamedTuple):
    """A text, and the value behind it: `field` is what is in the braces, `column` the column that it begins with."""

    text: str
    field: str | None
    column: str
    conversion: str | None
    spec: str


class Prompt:
    """A template with the names of columns in braces, in the format of `str.format`.

    `{when.year}` is fine; `{text.upper}`, a method, and `{text.__class__}` are refused.
    """

    def __init__(self, template: str, columns: Sequence[str]) -> None:
        self._pieces = [_piece(*parsed, columns) for parsed in _parsed(template)]
        self.columns = list(dict.fromkeys(piece.column for piece in self._pieces if piece.field is not None))
        if not self.columns:
            raise BatchFormatError(f"prompt names no column; write one in braces, such as {{{columns[0]}}}")

    def of(self, row: Mapping[str, Any]) -> str:
        """Return the prompt of a row.  Raises BatchFormatError with the column whose value cannot be written."""
        return "".join(piece.text + ("" if piece.field is None else _written(piece, row)) for piece in self._pieces)


def missing_column(name: str, columns: Collection[str], what: str) -> BatchFormatError:
    """Return the error for a column that a table does not have."""
    close = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return BatchFormatError(f"{what}: there is no column {name!r}{hint} the columns are: {listed(columns)}")


def listed(columns: Collection[str]) -> str:
    """Return the names of columns as text, of many the first."""
    return ", ".join([name[:60] for name in columns][:12]) + (", ..." if len(columns) > 12 else "")


def has_attribute(field: str) -> bool:
    """Whether a field of a template asks for an attribute."""
    return "." in _ITEMS.sub("", field)


def _has_private_attribute(field: str) -> bool:
    """Whether it asks for one such as `{text.__class__}`, which would be the same for every row."""
    return "._" in _ITEMS.sub("", field)


def _parsed(template: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(_FORMATTER.parse(template))
    except ValueError as error:
        reason = f"prompt: {str(error).lower()}; write {{{{ and }}}} for braces that are not a column"
        raise BatchFormatError(reason) from None


def _piece(text: str, field: str | None, spec: str | None, conversion: str | None, columns: Sequence[str]) -> _Piece:
    if field is None or field in columns:
        return _Piece(text, field, field or "", conversion, spec or "")
    column = field.partition("[")[0].partition(".")[0]
    if column not in columns:
        raise missing_column(field, columns, "prompt")
    if _has_private_attribute(field):
        allowed = f"write a column, such as {{{column}}}, or an item of one, such as {{{column}[name]}}"
        raise BatchFormatError(f"prompt: {{{field[:60]}}} is an attribute of a value; {allowed}")
    return _Piece(text, field, column, conversion, spec or "")


def _written(piece: _Piece, row: Mapping[str, Any]) -> str:
    value, field = row[piece.column], piece.field or ""
    try:
        if field != piece.column:
            value, _ = _FORMATTER.get_field(field, (), row)
        if value is None:
            raise BatchFormatError("is empty (null), and the prompt needs it", path=f"column {piece.column!r}")
        if callable(value):
            raise TypeError("it is a method, not a value")
        return format(_FORMATTER.convert_field(value, piece.conversion), piece.spec)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        reason = f"cannot be written as {{{field}{':' if piece.spec else ''}{piece.spec}}}: {error}"
        raise BatchFormatError(reason, path=f"column {piece.column!r}") from None

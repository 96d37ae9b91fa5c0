"""Reads tables of text: CSV, and rows of JSON."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel

from batchray.batch.formats.arrow import PART_BYTES, PART_ROWS, check_names
from batchray.batch.formats.column_types import Rows, UntypedTable
from batchray.batch.source import BOM, readable, remedy
from batchray.batch.split import MAX_REQUEST_BYTES
from batchray.batch.strict_json import strict_json
from batchray.errors import BatchFormatError

_QUOTED = re.compile(r'"[^"]*"')


def csv_rows(stream: BinaryIO, delimiter: str | None, directory: Path) -> Generator[Rows]:
    """Yield the rows of CSV with a header.

    CSV has only text.  A column is read as integers, numbers or booleans if each of its texts is one and is written the
    usual way, so that none is changed by it: 007 and 1.50 stay texts.  An empty cell is null.  Without a `delimiter` it
    is the most frequent of comma, semicolon and tab in the header.  Raises BatchFormatError with the line.
    """
    with UntypedTable(directory) as table:
        with stream, _long_cells():
            _add_csv(table, stream, delimiter)
        yield from table.parts()


def _add_csv(table: UntypedTable, stream: BinaryIO, delimiter: str | None) -> None:
    texts = _text_lines(stream)
    start = list(_to_header(texts))
    delimiter = delimiter or max(",;\t", key=_QUOTED.sub("", start[-1] if start else "").count)
    reader = csv.reader(itertools.chain(start, texts), delimiter=delimiter, strict=True)
    header = next((names for _ in start if any(names := [name.strip() for name in _next_line(reader) or []])), [])
    _check_header(header)
    for lines, rows in _csv_parts(reader, header):
        columns = zip(header, zip(*rows, strict=True), strict=True)
        table.add_texts({name: [cell or None for cell in cells] for name, cells in columns}, lines)


def _to_header(lines: Iterator[str]) -> Iterator[str]:
    """Yield the lines up to the first that is not blank."""
    for line in lines:
        yield line
        if line.strip():
            return


def _text_lines(stream: BinaryIO) -> Iterator[str]:
    """Yield the lines of a stream.  Raises BatchFormatError for one that is not UTF-8, and for damaged packed data."""
    with readable():
        for number, line in enumerate(stream, start=1):
            try:
                yield line.removeprefix(BOM).decode() if number == 1 else line.decode()
            except UnicodeDecodeError as error:
                raise BatchFormatError(f"not UTF-8: {error.reason}; save it as UTF-8", line=number) from None


def _check_header(header: Sequence[str]) -> None:
    if not header:
        raise BatchFormatError("the batch is empty")
    if "" in header:
        raise BatchFormatError(f"column {header.index('') + 1} of the header has no name", line=1)
    check_names(list(header))


def _next_line(reader: Any) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        reason = "lines end with CR alone; end them with LF" if "new-line character" in str(error) else error
        raise BatchFormatError(f"not CSV: {reason}", line=reader.line_num) from None


def _csv_parts(reader: Any, header: Sequence[str]) -> Iterator[tuple[list[int], list[list[str]]]]:
    """Yield rows with their lines, those without any cell left out."""
    lines: list[int] = []
    rows: list[list[str]] = []
    n_chars, line = 0, reader.line_num + 1
    while (row := _next_line(reader)) is not None:
        if row and len(row) != len(header):
            cells = "1 cell" if len(row) == 1 else f"{len(row)} cells"
            raise BatchFormatError(f"has {cells}, and the header {len(header)}", line=line)
        if row:
            rows.append(row)
            lines.append(line)
            n_chars += sum(map(len, row))
        line = reader.line_num + 1
        if len(rows) == PART_ROWS or n_chars >= PART_BYTES:
            yield lines, rows
            lines, rows, n_chars = [], [], 0
    if rows:
        yield lines, rows


@contextmanager
def _long_cells() -> Iterator[None]:
    """Raise the limit of the module csv for cells, which is one for the process."""
    limit = csv.field_size_limit(MAX_REQUEST_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def object_rows(objects: Iterable[Any], directory: Path) -> Generator[Rows]:
    """Yield the rows of an iterable of mappings; a text is a row with an `input`.  Raises BatchFormatError."""
    with UntypedTable(directory) as table:
        add_objects(table, objects)
        yield from table.parts()


def add_objects(table: UntypedTable, objects: Iterable[Any], first: int = 0) -> int:
    """Add rows to a table; `first` is the number of the first.  Returns how many."""
    n_rows = 0
    for part in itertools.batched(objects, PART_ROWS) if hasattr(itertools, "batched") else _batched(objects):
        table.add_objects([_row(row, first + n_rows + i) for i, row in enumerate(part)])
        n_rows += len(part)
    return n_rows


def _batched(objects: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    iterator = iter(objects)
    while part := tuple(itertools.islice(iterator, PART_ROWS)):
        yield part


def _row(row: Any, number: int) -> Mapping[str, Any]:
    if isinstance(row, str):
        return {"input": row}
    if isinstance(row, BaseModel):
        return row.model_dump(mode="json", exclude_unset=True)
    if not isinstance(row, Mapping):
        raise BatchFormatError(f"a row is a mapping of columns to values, not {type(row).__name__}", row=number)
    return row


def json_rows(lines: Generator[tuple[int, bytes]], directory: Path, *, has_lines: bool = True) -> Generator[Rows]:
    """Yield the rows of JSON objects, which come with their numbers: lines of a file, or positions in an array."""
    with closing(lines), UntypedTable(directory) as table:
        numbers: list[int] = []
        rows: list[Any] = []
        n_bytes = 0
        for number, line in lines:
            rows.append(_json_row(line, number, has_lines=has_lines))
            numbers.append(number)
            n_bytes += len(line)
            if len(rows) == PART_ROWS or n_bytes >= PART_BYTES:
                table.add_objects(rows, numbers if has_lines else None)
                numbers, rows, n_bytes = [], [], 0
        if rows:
            table.add_objects(rows, numbers if has_lines else None)
        yield from table.parts()


def _json_row(line: bytes, number: int, *, has_lines: bool) -> dict[str, Any]:
    try:
        if len(line) > MAX_REQUEST_BYTES:
            raise BatchFormatError(f"a row of more than {MAX_REQUEST_BYTES >> 20} MiB")
        row = strict_json(line)
        if isinstance(row, str):
            return {"input": row}
        if not isinstance(row, dict):
            raise BatchFormatError(f"a row is a JSON object, not {type(row).__name__}")
    except BatchFormatError as error:
        if not has_lines:
            raise error.at(row=number) from None
        raise BatchFormatError(error.reason + remedy(line, error.reason, number), number, path=error.path) from None
    return row

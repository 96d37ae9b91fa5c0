"""Finds one schema for rows that come without one: rows of JSON, of CSV, of Python objects, frames in parts.

All rows are read before the schema is known, so that a number in the first row and a text in the last are no surprise.
Meanwhile they are in a temporary file.
"""

from __future__ import annotations

import pickle
import re
import tempfile
from collections.abc import Container, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from batchray.batch.formats.arrow import arrow, check_names
from batchray.batch.formats.carried import JSON_FIELD, decode, encode, values_of
from batchray.batch.formats.json_texts import is_missing, json_text
from batchray.errors import BatchFormatError

_EXACT = 2**53  # larger integers are not all exact as floats
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_BOOLEANS = ({"true", "false"}, {"True", "False"}, {"TRUE", "FALSE"})


class Rows(NamedTuple):
    """A part of a table: `batch` is an Arrow RecordBatch, whose first row is row `first` of the table.

    `lines` are the lines of the file that the rows begin on; None for input without lines.  In a table of several files
    `file` is the one that the rows are in, and `file_first` is the row of it that comes first.  `missing` has the
    positions of rows that came without a column; they are null in `batch`.
    """

    first: int
    batch: Any
    lines: Sequence[int] | None = None
    file: str | None = None
    file_first: int = 0
    missing: Mapping[str, Container[int]] = MappingProxyType({})

    def placed(self, error: BatchFormatError, position: int) -> BatchFormatError:
        """Return an error with the place of a row of this part."""
        if self.lines is not None:
            return error.at(line=self.lines[position])
        if self.file is not None:
            return error.at(row=self.file_first + position, file=self.file)
        return error.at(row=self.first + position)


def without_unions(rows: Rows) -> Rows:
    """Return rows with JSON for the columns of unions, which no format of a table but Arrow's own has."""
    pa = arrow()
    batch = rows.batch
    if not any("union<" in str(field.type) for field in batch.schema):
        return rows
    arrays = list(batch.columns)
    for number, (field, array) in enumerate(zip(batch.schema, batch.columns, strict=True)):
        if "union<" in str(field.type):
            texts = [_text_of(value, field.name, rows.first + i) for i, value in enumerate(values_of(array, field))]
            arrays[number] = pa.array(texts, pa.string())
    return rows._replace(batch=pa.RecordBatch.from_arrays(arrays, schema=schema_without_unions(batch.schema)))


def schema_without_unions(schema: Any) -> Any:
    """Return the schema of what `without_unions` returns."""
    pa = arrow()
    json_or = [pa.field(f.name, pa.string(), metadata=JSON_FIELD) if "union<" in str(f.type) else f for f in schema]
    return pa.schema(json_or)


def _text_of(value: Any, column: str, row: int) -> str | None:
    """Return a value as JSON.  Raises BatchFormatError with its place."""
    try:
        return json_text(value, column, "in a union")
    except BatchFormatError as error:
        raise error.at(row=row) from None


class UntypedTable:
    """Takes parts of a table in any types, keeps them on disk, and gives them back in one schema."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115  # closed with the table
        self._kinds: dict[str, _Kind] = {}
        self._n_rows = self._n_parts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete the file."""
        self._file.close()

    def add_objects(self, rows: Sequence[Mapping[str, Any]], lines: Sequence[int] | None = None) -> None:
        """Add rows of Python values."""
        names = dict.fromkeys(name for row in rows for name in row)
        short = [i for i, row in enumerate(rows) if len(row) < len(names)]
        missing = {str(name): {i for i in short if name not in rows[i]} for name in names} if short else {}
        self.add_values({name: [row.get(name) for row in rows] for name in names}, len(rows), lines, missing)

    def add_values(
        self,
        columns: Mapping[str, Any],
        n_rows: int,
        lines: Sequence[int] | None = None,
        missing: Mapping[str, Container[int]] = MappingProxyType({}),
    ) -> None:
        """Add `n_rows` rows, by column: lists of Python values, series of pandas, or arrays of Arrow."""
        found = [self._column(str(name), values, lines) for name, values in columns.items()]
        self._write([field for field, _ in found], [array for _, array in found], n_rows, lines, dict(missing))

    def add_texts(self, columns: Mapping[str, Sequence[str | None]], lines: Sequence[int]) -> None:
        """Add rows of texts, by column, whose types are found out."""
        pa = arrow()
        for name, values in columns.items():
            self._kind(name).add_texts([value for value in values if value is not None])
        arrays = [pa.array(values, pa.string()) for values in columns.values()]
        self._write([pa.field(name, pa.string()) for name in columns], arrays, len(lines), lines, {})

    def parts(self) -> Generator[Rows]:
        """Yield all rows in their order, in one schema."""
        pa = arrow()
        schema, first = pa.schema([kind.field(name) for name, kind in self._kinds.items()]), 0
        self._file.seek(0)
        for _ in range(self._n_parts):
            lines, n_rows, data, missing = pickle.load(self._file)
            batch = decode(data)
            given = {field.name: (field, column) for field, column in zip(batch.schema, batch.columns, strict=True)}
            arrays = []
            for name, kind in self._kinds.items():
                if name not in given:
                    missing[name] = range(n_rows)
                    arrays.append(pa.nulls(n_rows, schema.field(name).type))
                elif kind.is_json and given[name][0].metadata != JSON_FIELD:
                    field, array = given[name]
                    arrays.append(_json_texts(values_of(array, field), name, first, lines))
                else:
                    arrays.append(given[name][1].cast(schema.field(name).type))
            yield Rows(first, pa.RecordBatch.from_arrays(arrays, schema=schema), lines, missing=missing)
            first += n_rows

    def _write(
        self,
        fields: list[Any],
        arrays: list[Any],
        n_rows: int,
        lines: Sequence[int] | None,
        missing: dict[str, Container[int]],
    ) -> None:
        pa = arrow()
        check_names([field.name for field in fields])
        batch = pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
        pickle.dump((lines, n_rows, encode(batch), missing), self._file)
        self._n_rows += n_rows
        self._n_parts += 1

    def _kind(self, name: str) -> _Kind:
        return self._kinds.setdefault(name, _Kind())

    def _column(self, name: str, values: Any, lines: Sequence[int] | None) -> tuple[Any, Any]:
        """Return values as an Arrow array with its field; values of several types become texts of JSON."""
        pa = arrow()
        kind = self._kind(name)
        if not kind.is_json:
            array = _typed(values)
            if array is not None:
                kind.add(array)
                return pa.field(name, array.type), array
            kind.is_json = True
        if isinstance(values, pa.Array):
            values = values.to_pylist()
        return pa.field(name, pa.string(), metadata=JSON_FIELD), _json_texts(values, name, self._n_rows, lines)


def _json_texts(values: Iterable[Any], name: str, first: int, lines: Sequence[int] | None) -> Any:
    """Return the values of a column from row `first` on as texts of JSON.  Raises BatchFormatError with the place."""
    texts: list[str | None] = []
    try:
        for value in values:
            texts.append(json_text(value, name))  # noqa: PERF401  # an error needs their number
    except BatchFormatError as error:
        position = len(texts)
        raise error.at(row=first + position) if lines is None else error.at(line=lines[position]) from None
    return arrow().array(texts, arrow().string())


def _typed(values: Any) -> Any:
    """Return values as an Arrow array; None if they have no type in common, or would not come back as they were."""
    pa = arrow()
    if isinstance(values, pa.Array):
        return None if "union<" in str(values.type) else values  # no format but Arrow's own has unions
    values = _without_periods(values)
    try:
        array = pa.array(values, from_pandas=not isinstance(values, list))
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return None
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    is_list = isinstance(values, list)
    if not is_list and pa.types.is_nested(array.type):  # pandas' NaN is a missing value, but not within a list
        array = pa.array([None if is_missing(value) else value for value in values], array.type)
    if (is_list or str(values.dtype) == "object") and not _has_one_type(array.type, values):
        return None
    return array if not is_list or _is_exact(array, values) else None


def _without_periods(values: Any) -> Any:
    """Return a series of pandas with texts such as 2024-01 for periods, of which Arrow keeps only a number."""
    kind = getattr(values, "dtype", None)
    kind = getattr(getattr(kind, "categories", None), "dtype", kind)
    return values.map(str, na_action="ignore") if str(kind).startswith("period[") else values


def _has_one_type(kind: Any, values: Any) -> bool:
    """Whether Arrow made its type of values of one: no text became bytes, no time a date, no local time one of UTC."""
    if not _is_kind(kind, "binary", "large_binary", "date32", "timestamp"):
        return True
    return len({(type(each), getattr(each, "tzinfo", None) is None) for each in values if not is_missing(each)}) <= 1


def _is_exact(array: Any, values: list[Any]) -> bool:
    """Whether the values of an array are those that it was made of."""
    pa = arrow()
    kind = array.type
    if "struct<>" in str(kind):  # Parquet has no type for it
        return False
    if not pa.types.is_nested(kind):
        return True
    try:  # a struct gives each row the keys of all rows
        found = array.to_pylist()
        return bool(found == values or repr(found) == repr(values))  # NaN is equal to nothing
    except ValueError:  # arrays of numpy, which have no single answer
        return not pa.types.is_struct(kind)


def _is_kind(kind: Any, *names: str) -> bool:
    return any(getattr(arrow().types, f"is_{name}")(kind) for name in names)


def united_type(first: Any, second: Any) -> Any:
    """Return the type in which pyarrow unites two, perhaps with a loss; None if there is none."""
    pa = arrow()
    try:
        pair = [pa.schema([("x", each)]) for each in (first, second)]
        return pa.unify_schemas(pair, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        return None


def _is_binary(kind: Any) -> bool:
    return _is_kind(kind, "binary", "large_binary", "fixed_size_binary", "binary_view")


class _Kind:
    """The types of one column so far."""

    def __init__(self) -> None:
        self.type: Any = None
        self.is_json = False
        self._has_inexact = False
        self._texts: set[str] = set()

    def add(self, array: Any) -> None:
        """Take note of an array of Arrow."""
        pa = arrow()
        kind = array.type
        if self.is_json or pa.types.is_null(kind):
            return
        if pa.types.is_integer(kind) and array.null_count < len(array):
            least, most = (bound.as_py() for bound in _bounds(array))
            self._has_inexact = self._has_inexact or not -_EXACT <= least <= most <= _EXACT
        if self.type is not None and not self.type.equals(kind):
            kind = self._common(kind)
        self.type, self.is_json = kind, kind is None

    def add_texts(self, texts: Sequence[str]) -> None:
        """Take note of what a column of texts could be."""
        self.type = arrow().string()
        if texts and "text" not in self._texts:
            self._texts.add(_kind_of_texts(texts))

    def _common(self, kind: Any) -> Any:
        """Return the type that has all values so far and those of another type; None if there is none."""
        pa = arrow()
        numbers = [pa.types.is_integer(each) or pa.types.is_floating(each) for each in (self.type, kind)]
        if all(numbers) and self._has_inexact and any(map(pa.types.is_floating, (self.type, kind))):
            return None
        if any(map(_is_binary, (self.type, kind))) and not all(map(_is_binary, (self.type, kind))):
            return None  # a text would become bytes
        common = united_type(self.type, kind)
        return None if "struct<" in str(common) else common

    def field(self, name: str) -> Any:
        """Return the field of the schema."""
        pa = arrow()
        if self.is_json:
            return pa.field(name, pa.string(), metadata=JSON_FIELD)
        return pa.field(name, self._final if self.type is not None else pa.null())

    @property
    def _final(self) -> Any:
        pa = arrow()
        if not self._texts:
            return self.type
        if self._texts == {"integer"}:
            return pa.int64()
        if self._texts <= {"integer", "number"}:
            return pa.float64()
        is_boolean = len(self._texts) == 1 and self._texts < {"true", "True", "TRUE"}
        return pa.bool_() if is_boolean else pa.string()


def _bounds(array: Any) -> Sequence[Any]:
    import pyarrow.compute

    found = pyarrow.compute.min_max(array)
    return found["min"], found["max"]


def _kind_of_texts(texts: Sequence[str]) -> str:
    """Return what all of these texts are, if no text is lost by it: an integer, a number, a boolean, or a text."""
    if all(map(_INTEGER.fullmatch, texts)):
        return "integer"
    for words in _BOOLEANS:
        if words.issuperset(texts):
            return min(words, key=len)
    return "number" if all(map(_is_number, texts)) else "text"


def _is_number(text: str) -> bool:
    if _INTEGER.fullmatch(text):
        return abs(int(text)) <= _EXACT
    try:
        return repr(float(text)) == text and text[-1].isdigit()
    except ValueError:
        return False

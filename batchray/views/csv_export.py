"""Results as CSV: the columns of their tables, with JSON for nested ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from batchray.schema.json_values import json_value
from batchray.views.export_formats import Target
from batchray.views.line_exports import config_errors_for, opened
from batchray.views.result_tables import ResultTables

if TYPE_CHECKING:
    import pyarrow as pa


_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def write_csv(target: Target, tables: ResultTables) -> None:
    """Write the results of this moment in index order.  An absent value is empty, an empty text is `""`.

    Raises ConfigError if the place cannot be written to.
    """
    import pyarrow as pa
    from pyarrow.csv import CSVWriter

    flat = pa.schema([pa.field(field.name, _written_type(field.type)) for field in tables.schema])
    with config_errors_for(target), opened(target) as file, CSVWriter(file, flat) as writer:
        for table in tables.tables():
            writer.write_table(pa.Table.from_arrays([_column(each) for each in table.columns], schema=flat))


def _written_type(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    if pa.types.is_duration(kind):
        return pa.float64()
    if pa.types.is_dictionary(kind):
        return _written_type(kind.value_type)
    return kind if _is_plain(kind) else pa.string()


def _is_plain(kind: pa.DataType) -> bool:
    """Return whether CSV has a usual form for values of a type."""
    from pyarrow import types

    is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
    is_text = types.is_string(kind) or types.is_large_string(kind)
    return is_number or is_text or types.is_boolean(kind) or (types.is_temporal(kind) and not types.is_duration(kind))


def _column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column in the type in which it is written: durations as seconds, and categories as their values."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        return _column(column.cast(column.type.value_type))
    if pa.types.is_duration(column.type):
        counts = column.cast(pa.int64()).to_pylist()
        per_second = _PER_SECOND[column.type.unit]
        return pa.chunked_array([[None if n is None else n / per_second for n in counts]], pa.float64())
    if _is_plain(column.type):
        return column
    return pa.chunked_array([[_text(value) for value in column.to_pylist()]], pa.string())


def _text(value: Any) -> str | None:
    """Return a value as the text that it has in JSON; a text as it is."""
    found = json_value(value)
    return found if found is None or isinstance(found, str) else orjson.dumps(found).decode()

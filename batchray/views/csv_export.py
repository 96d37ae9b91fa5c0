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

    return kind if _is_plain(kind) else pa.string()


def _is_plain(kind: pa.DataType) -> bool:
    """Return whether CSV has a usual form for values of a type."""
    from pyarrow import types

    is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
    is_text = types.is_string(kind) or types.is_large_string(kind)
    return is_number or is_text or types.is_boolean(kind) or (types.is_temporal(kind) and not types.is_duration(kind))


def _column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa

    if _is_plain(column.type):
        return column
    return pa.chunked_array([[_text(value) for value in column.to_pylist()]], pa.string())


def _text(value: Any) -> str | None:
    """Return a value as the text that it has in JSON; a text as it is."""
    found = json_value(value)
    return found if found is None or isinstance(found, str) else orjson.dumps(found).decode()

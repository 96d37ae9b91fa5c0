"""Parts of a table as they are stored: Arrow IPC streams with one record batch each, compressed.

Every type of Arrow comes back as it went in.  A column without one type (a text here, a number there, objects of
different keys) is stored as JSON, which the metadata of its field says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from batchray.batch.formats.arrow import arrow

JSON_FIELD = {b"batchray": b"json"}
"""The metadata of a field whose texts are JSON."""


def encode(batch: Any) -> bytes:
    """Return a RecordBatch in the form in which it is stored."""
    pa = arrow()
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd" if pa.Codec.is_available("zstd") else None)
    small = pa.RecordBatch.from_arrays([_without_unused(column) for column in batch.columns], schema=batch.schema)
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(small)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def decode(data: bytes) -> Any:
    """Return the RecordBatch that `encode` was given."""
    with arrow().ipc.open_stream(data) as reader:
        return reader.read_next_batch()


def _without_unused(column: Any) -> Any:
    """Return a column of categories with the categories that occur in it: a large table may have a million of them."""
    pa = arrow()
    if not pa.types.is_dictionary(column.type) or len(column.dictionary) <= len(column):
        return column
    kind = column.type
    used = column.cast(kind.value_type).dictionary_encode()
    return pa.DictionaryArray.from_arrays(used.indices.cast(kind.index_type), used.dictionary, ordered=kind.ordered)


def rows_of(batch: Any) -> list[dict[str, Any]]:
    """Return the rows of a RecordBatch as Python values, by column."""
    columns = [values_of(column, field) for column, field in zip(batch.columns, batch.schema, strict=True)]
    names = batch.schema.names
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def values_of(column: Any, field: Any) -> Sequence[Any]:
    """Return the values of a column as Python values; those of a JSON column parsed."""
    if (field.metadata or {}).get(b"batchray") == b"json":
        return [None if text is None else orjson.loads(text) for text in column.to_pylist()]
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except OverflowError:  # times outside the years 1 to 9999
        return [_value_or_text(value) for value in column]
    except ValueError:  # nanoseconds, which only pandas has a type for
        return _in_microseconds(column).to_pylist()  # type: ignore[no-any-return]


def _value_or_text(value: Any) -> Any:
    """Return a value of Arrow, as text if Python has none for it."""
    try:
        return value.as_py()
    except OverflowError:
        return value.cast(arrow().string()).as_py()


def _in_microseconds(column: Any) -> Any:
    """Return a column of times or durations in the finest unit that Python has."""
    pa = arrow()
    kind = column.type
    if pa.types.is_timestamp(kind):
        return column.cast(pa.timestamp("us", kind.tz), safe=False)
    if pa.types.is_duration(kind):
        return column.cast(pa.duration("us"), safe=False)
    return column.cast(pa.time64("us"), safe=False) if pa.types.is_time(kind) else column

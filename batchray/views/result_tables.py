"""Results as Arrow tables: one explicit schema, in blocks of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from batchray.batch.formats.arrow import array_of
from batchray.store import StoredResult
from batchray.views.carried import CarriedRows
from batchray.views.extras import needing
from batchray.views.frames import own_names
from batchray.views.result_columns import COLUMNS, result_columns
from batchray.views.result_pages import START, ReadPage, ResultCursor, ResultOrder, ResultPosition
from batchray.views.results import ResultViews

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK_ROWS = 2_000
_BLOCK_BYTES = 2 * 1024 * 1024
"""About the size of a block, which becomes a row group of Parquet."""


class ResultTables:
    """Builds tables of the results that `read` returns.

    The columns are those of `rows`, the table that the job was made of, in the types in which they came; then `index`
    and the columns of `result_columns.COLUMNS`, with JSON for what is neither a text nor a number.
    """

    def __init__(self, views: ResultViews, rows: CarriedRows, read: ReadPage) -> None:
        with needing("pyarrow", "data"):
            import pyarrow as pa

        self._views, self._rows, self._read = views, rows, read
        types = {"string": pa.string(), "Int64": pa.int64(), "Float64": pa.float64(), object: pa.string()}
        carried = rows.schema
        fields = [("index", pa.int64()), *((name, types[kind]) for name, kind in COLUMNS.items())]
        names = own_names([name for name, _ in fields], carried.names if carried is not None else ())
        own = pa.schema([pa.field(names[name], kind) for name, kind in fields])
        self._own, self._has_rows = own, carried is not None
        self.schema: pa.Schema = pa.schema([*(carried or ()), *own])

    def table(self) -> pa.Table:
        """Return all results of this moment in index order."""
        import pyarrow as pa

        return pa.concat_tables([self.schema.empty_table(), *self.tables()])

    def tables(self) -> Iterator[pa.Table]:
        """Yield all results of this moment in index order, in blocks."""
        return (table for table, _ in self.after(START, "index"))

    def after(self, position: ResultPosition, order: ResultOrder) -> Iterator[tuple[pa.Table, ResultPosition]]:
        """Yield the results after a position, in blocks, each with the position at its end."""
        import pyarrow as pa

        cursor = ResultCursor(order, position)
        block: list[pa.Table] = []
        n_rows, n_bytes = 0, 0
        for page in cursor.pages(self._read):
            block.append(self._page(page))
            n_rows, n_bytes = n_rows + len(page), n_bytes + block[-1].nbytes
            if n_rows >= _BLOCK_ROWS or n_bytes >= _BLOCK_BYTES:
                yield pa.concat_tables(block), cursor.position
                block, n_rows, n_bytes = [], 0, 0
        if block:
            yield pa.concat_tables(block), cursor.position

    def _page(self, stored: Sequence[StoredResult]) -> pa.Table:
        """Return the table of a page.  Its rows are Python values only here: those need many times the memory."""
        import pyarrow as pa

        columns = zip(self._own, (None, *COLUMNS.values()), result_columns(self._views, stored), strict=True)
        arrays = [
            array_of(_as_json(values) if kind is object else values, field.type) for field, kind, values in columns
        ]
        own = pa.Table.from_arrays(arrays, schema=self._own)
        if not self._has_rows:
            return own
        carried = self._rows.take([each.index for each in stored])
        return pa.Table.from_arrays([*carried.columns, *own.columns], schema=self.schema)


def _as_json(column: Sequence[Any]) -> list[str | None]:
    return [None if value is None else orjson.dumps(value).decode() for value in column]

"""The rows of the table that a job was made of, by the index of their item."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import TYPE_CHECKING, Any

from batchray.batch.formats.arrow import array_of
from batchray.batch.formats.carried import decode, rows_of
from batchray.store import CarriedColumns

if TYPE_CHECKING:
    import pyarrow as pa

_KEPT_PARTS = 8
"""Parts in memory: results come in nearly the order of the items, but a slow item may be far behind."""


class CarriedRows:
    """Reads carried rows as they are needed, and keeps the parts of the table that were read last.

    `read` returns the part with an item's row, as `Items.carried_columns` does, or None if the job carries none.
    """

    def __init__(self, read: Callable[[int], CarriedColumns | None]) -> None:
        self._read = read
        self._parts: OrderedDict[int, _Part] = OrderedDict()
        self._last: _Part | None = None
        self._is_empty: bool | None = None

    @property
    def schema(self) -> pa.Schema | None:
        """The columns of the table with their types; None if the job was not made of a table."""
        part = self._part(0)
        return None if part is None else part.batch.schema

    def row(self, index: int) -> dict[str, Any] | None:
        """Return an item's row as Python values; None if the job was not made of a table."""
        part = self._part(index)
        return None if part is None else part.rows[index - part.first]

    def take(self, indices: Iterable[int]) -> pa.Table:
        """Return the rows of items in the given order, in the types in which they came.

        Costs least if indices come in their order: each part is decoded once.  Raises ValueError if the job was not
        made of a table.
        """
        import pyarrow as pa

        if (schema := self.schema) is None:
            raise ValueError("the job was not made of a table")
        batches = []
        for part, of_part in groupby(indices, self._part):
            assert part is not None
            positions = [index - part.first for index in of_part]
            is_run = positions == list(range(positions[0], positions[-1] + 1))
            rows = (
                part.batch.slice(positions[0], len(positions))
                if is_run
                else part.batch.take(array_of(positions, pa.int64()))
            )
            batches.append(rows)
        return pa.Table.from_batches(batches, schema=schema)

    def _part(self, index: int) -> _Part | None:
        """Return the part with an item's row."""
        if self._last is not None and 0 <= index - self._last.first < self._last.n_rows:
            return self._last  # that of nearly all rows of a page
        found = next((part for part in reversed(self._parts.values()) if 0 <= index - part.first < part.n_rows), None)
        if found is None and not self._is_empty:
            found = self._load(index)
        if found is not None:
            self._parts.move_to_end(found.first)
        self._last = found
        return found

    def _load(self, index: int) -> _Part | None:
        stored = self._read(index)
        self._is_empty = stored is None
        if stored is None:
            return None
        self._parts[stored.first] = part = _Part(stored)
        if len(self._parts) > _KEPT_PARTS:
            self._parts.popitem(last=False)
        return part


class _Part:
    """Some rows of the table; `first` is the index of the first one's item."""

    def __init__(self, stored: CarriedColumns) -> None:
        self.first, self.n_rows = stored.first, stored.n_rows
        self.batch = decode(stored.data)
        self._rows: list[dict[str, Any]] | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows as Python values, made when the first is asked for."""
        if self._rows is None:
            self._rows = rows_of(self.batch)
        return self._rows

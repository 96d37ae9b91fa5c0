"""Results as a pandas frame."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from batchray.views.carried import CarriedRows
from batchray.views.extras import needing
from batchray.views.result_columns import COLUMNS

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


def to_frame(pages: Iterable[Sequence[list[Any]]], rows: CarriedRows | None = None) -> pd.DataFrame:
    """Return a frame with one row per item, indexed by its position in the batch.  Durations are in seconds.

    `pages` are of `result_columns`.  The columns and their types are the same for every job, one without results
    included.  Those of `rows`, the table that the job was made of, come first; their integers and booleans are nullable
    too.
    """
    with needing("pandas", "pandas"):
        import pandas as pd

    indexes: list[int] = []
    columns: list[list[Any]] = [[] for _ in COLUMNS]
    for page in pages:
        for column, values in zip((indexes, *columns), page, strict=True):
            column.extend(values)
    index = pd.Index(indexes, dtype="int64", name="index")
    kinds = zip(COLUMNS.items(), columns, strict=True)
    made = {name: pd.Series(values, index=index, dtype=kind) for (name, kind), values in kinds}
    if rows is None or rows.schema is None:
        return pd.DataFrame(made, index=index)
    carried = _carried_frame(rows.take(indexes))
    carried.index = index
    names = own_names(list(COLUMNS), list(carried.columns))
    return pd.concat([carried, pd.DataFrame(made, index=index).rename(columns=names)], axis="columns")


def _carried_frame(table: pa.Table) -> pd.DataFrame:
    """Return a table as a frame with nullable integers and booleans: a null makes floats and objects of pandas' own.

    Integers inside lists and structs are Python's, which a null does not change.
    """
    import pandas as pd
    import pyarrow as pa

    nullable = {
        pa.bool_(): pd.BooleanDtype(),
        pa.int8(): pd.Int8Dtype(),
        pa.int16(): pd.Int16Dtype(),
        pa.int32(): pd.Int32Dtype(),
        pa.int64(): pd.Int64Dtype(),
        pa.uint8(): pd.UInt8Dtype(),
        pa.uint16(): pd.UInt16Dtype(),
        pa.uint32(): pd.UInt32Dtype(),
        pa.uint64(): pd.UInt64Dtype(),
    }
    made: pd.DataFrame = _in_units_of_pandas(table).to_pandas(types_mapper=nullable.get, integer_object_nulls=True)
    return made


def _in_units_of_pandas(table: pa.Table) -> pa.Table:
    """Return a table with times of day in microseconds: pandas has Python's, which know no nanoseconds."""
    import pyarrow as pa

    for number, field in enumerate(table.schema):
        if pa.types.is_time64(field.type):
            table = table.set_column(number, field.name, table.column(number).cast(pa.time64("us"), safe=False))
    return table


def own_names(names: Sequence[str], carried: Collection[str]) -> dict[str, str]:
    """Return the names of our columns in a table that has `carried` ones: `result_text` if there is a `text`."""
    found = {}
    for name in names:
        own = name
        while own in carried:
            own = f"result_{own}"
        found[name] = own
    return found

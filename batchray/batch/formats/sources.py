"""Reads tables that have a schema: Parquet, Arrow, saved datasets, and objects of pandas, Ray, datasets and Arrow."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from batchray.batch.formats.arrow import PART_BYTES, PART_ROWS, arrow, check_names
from batchray.batch.formats.column_types import Rows, UntypedTable, schema_without_unions, united_type, without_unions
from batchray.batch.places import Place
from batchray.errors import BatchFormatError


def table_of_object(source: Any, directory: Path) -> Generator[Rows] | None:
    """Return the rows of a frame, a dataset or a table; None for an object that is not a table.

    Takes a pandas DataFrame, a Ray Dataset, a Hugging Face Dataset, a table or reader of pyarrow, and what has Arrow's
    stream interface, such as a Polars DataFrame.  `directory` holds temporary files.
    """
    kind = f"{type(source).__module__.partition('.')[0]}.{type(source).__name__}"
    if kind == "pandas.DataFrame":
        return _untyped(_frame_parts(source), directory)
    if kind in ("datasets.DatasetDict", "datasets.IterableDatasetDict"):
        raise BatchFormatError(f"a {type(source).__name__} has several splits; pass one, such as dataset['train']")
    if hasattr(source, "iter_batches") and hasattr(source, "iter_rows"):  # a Ray Dataset
        return _untyped(source.iter_batches(batch_size=PART_ROWS, batch_format="pyarrow"), directory)
    if kind == "datasets.Dataset":
        return _typed(source.with_format("arrow").iter(PART_ROWS))
    if kind == "datasets.IterableDataset":
        return _untyped(source.with_format("arrow").iter(PART_ROWS), directory)
    if hasattr(source, "__arrow_c_stream__"):
        return None if kind.endswith(".Series") else _typed(arrow().RecordBatchReader.from_stream(source))
    return _typed([source]) if hasattr(source, "__arrow_c_array__") and hasattr(source, "to_pylist") else None


def parquet_rows(file: Any) -> Generator[Rows]:
    """Yield the rows of an open Parquet file."""
    arrow()
    import pyarrow.parquet

    with readable("Parquet"):
        parquet = pyarrow.parquet.ParquetFile(file)
        yield from _typed(parquet.iter_batches(_rows_at_once(parquet.metadata), use_threads=False))


def _rows_at_once(metadata: Any) -> int:
    """Return how many rows of a Parquet file are read at once, so that large rows make small parts."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    row_bytes = max((group.total_byte_size // max(group.num_rows, 1) for group in groups), default=0)
    return max(1, min(PART_ROWS, PART_BYTES // max(row_bytes, 1)))


def arrow_rows(file: BinaryIO) -> Generator[Rows]:
    """Yield the rows of an Arrow IPC file (Feather) or stream."""
    pa = arrow()
    with readable("Arrow"):
        reader = _arrow_reader(file)
        is_file = isinstance(reader, pa.ipc.RecordBatchFileReader)
        yield from _typed((reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader)


def _arrow_reader(file: BinaryIO) -> Any:
    pa = arrow()
    head = file.read(6)
    file.seek(0)
    return pa.ipc.open_file(file) if head == b"ARROW1" else pa.ipc.open_stream(file)


READERS: dict[str | None, Callable[[Any], Generator[Rows]]] = {"parquet": parquet_rows, "arrow": arrow_rows}
"""The formats that are read at any position of a file."""


def files_rows(files: Sequence[Place], kind: str) -> Generator[Rows]:
    """Yield the rows of several files of Parquet or Arrow one after another, in one schema.

    Raises BatchFormatError if their columns differ, or have types that no lossless promotion unites.
    """
    schema = _common_schema(files, _SCHEMAS[kind])
    first = 0
    for place in files:
        with _errors_name(place), place.open() as file:
            for rows in READERS[kind](file):
                yield Rows(first, _in_schema(rows.batch, schema), file=place.shown, file_first=rows.first)
                first += rows.batch.num_rows


@contextmanager
def _errors_name(place: Place) -> Iterator[None]:
    try:
        yield
    except BatchFormatError as error:
        raise error.at(file=place.shown) from None


def _parquet_schema(file: Any) -> Any:
    """Return the schema of a Parquet file; None for one without rows, whose columns may have no types."""
    import pyarrow.parquet

    with readable("Parquet"):
        parquet = pyarrow.parquet.ParquetFile(file)
        return parquet.schema_arrow if parquet.metadata.num_rows else None


def _arrow_schema(file: BinaryIO) -> Any:
    with readable("Arrow"):
        return _arrow_reader(file).schema


_SCHEMAS: dict[str, Callable[[Any], Any]] = {"parquet": _parquet_schema, "arrow": _arrow_schema}


def _common_schema(files: Sequence[Place], schema_of: Callable[[Any], Any]) -> Any:
    """Return the columns of the first file in types that hold those of all; None if no file has rows."""
    pa = arrow()
    fields: dict[str, Any] = {}
    givers: dict[str, Place] = {}  # the file that a column has its type from
    for place in files:
        with _errors_name(place), place.open() as file:
            if (schema := schema_of(file)) is None:
                continue
            check_names(schema.names)
            found = {field.name: field for field in schema_without_unions(schema)}
            if fields and (different := fields.keys() ^ found.keys()):
                name = min(different)
                has = "is missing, and it is in" if name in fields else "is not in"
                other = givers.get(name) or next(iter(givers.values()))
                raise BatchFormatError(f"{has} {other.name}; give all files the same columns", path=_column(name))
            for name, field in found.items():
                before = fields.setdefault(name, field)
                fields[name] = _common_field(before, field, givers.get(name, place))
                if not fields[name].type.equals(before.type) or name not in givers:
                    givers[name] = place
    return pa.schema(list(fields.values())) if fields else None


def _common_field(before: Any, field: Any, giver: Place) -> Any:
    """Return a column that holds the values of both.  Raises BatchFormatError if there is no such type."""
    pair = [before.type, field.type]
    if not before.type.equals(field.type):
        pair = [_without_categories(each) for each in pair]
    common = None if _loses(*pair) else united_type(*pair)
    if common is None:
        reason = f"has type {field.type}, and {before.type} in {giver.name}; write all files with one type"
        raise BatchFormatError(reason, path=_column(field.name))
    return before.with_type(common).with_nullable(before.nullable or field.nullable)


_KINDS = (("string", "text"), ("binary", "bytes"), ("decimal", "decimal"), ("float", "float"), ("double", "float"))
_LOSSES = ({"text", "bytes"}, {"decimal", "float"})


def _loses(first: Any, second: Any) -> bool:
    """Whether pyarrow unites two types, or those inside of them, in one that does not hold their values as they are."""
    types = arrow().types
    if types.is_nested(first) and types.is_nested(second):
        own, other = ([each.field(i) for i in range(each.num_fields)] for each in (first, second))
        if types.is_struct(first) and types.is_struct(second):
            return any(_loses(a.type, b.type) for a in own for b in other if a.name == b.name)
        return len(own) == len(other) and any(_loses(a.type, b.type) for a, b in zip(own, other, strict=True))
    kinds = {next((kind for part, kind in _KINDS if part in str(each)), "") for each in (first, second)}
    return kinds in _LOSSES


def _without_categories(kind: Any) -> Any:
    return kind.value_type if arrow().types.is_dictionary(kind) else kind


def _column(name: str) -> str:
    return f"column {name!r}"


def _in_schema(batch: Any, schema: Any) -> Any:
    """Return a part of a file in the common schema.  Raises BatchFormatError if a value would change."""
    pa = arrow()
    if batch.schema.equals(schema):
        return batch
    arrays = []
    for field in schema:
        column = batch.column(field.name)
        try:
            arrays.append(column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            reason = f"has type {column.type}, and other files {field.type}: {' '.join(str(error).split())[:200]}"
            raise BatchFormatError(reason, path=_column(field.name)) from None
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def dataset_files(directory: Place) -> list[Place]:
    """Return the files of a directory that `save_to_disk` of Hugging Face datasets wrote, or of Parquet files.

    Raises BatchFormatError for another directory, and for one with several splits.
    """
    names = directory.names()
    if "dataset_dict.json" in names:
        splits = json.loads(directory.child("dataset_dict.json").read()).get("splits", [])
        raise BatchFormatError(f"has several splits; name the directory of one: {', '.join(splits)}")
    if "state.json" in names:
        state = json.loads(directory.child("state.json").read())
        return [directory.child(each["filename"]) for each in state["_data_files"]]
    if files := sorted(name for name in names if name.endswith((".parquet", ".pq"))):
        return [directory.child(name) for name in files]
    raise BatchFormatError("is a directory without Parquet files, and not one that save_to_disk of datasets wrote")


def _typed(batches: Iterable[Any]) -> Generator[Rows]:
    """Yield parts of tables or batches that have one schema."""
    first = 0
    for batch in batches:
        check_names(batch.schema.names)
        for part in _parts(batch):
            yield without_unions(Rows(first, part))
            first += part.num_rows


def _untyped(tables: Iterable[Any], directory: Path) -> Generator[Rows]:
    """Yield parts of tables whose schemas may differ, such as those of a Ray Dataset."""
    with UntypedTable(directory) as untyped:
        for table in tables:
            if isinstance(table, _FramePart):
                untyped.add_values(table.columns, table.n_rows)
                continue
            check_names(table.schema.names)
            for part in _parts(table):
                untyped.add_values(dict(zip(part.schema.names, part.columns, strict=True)), part.num_rows)
        yield from untyped.parts()


def _parts(table: Any) -> Iterator[Any]:
    """Yield RecordBatches of at most PART_ROWS rows and about PART_BYTES."""
    pa = arrow()
    batches = table.to_batches() if isinstance(table, pa.Table) else [table]
    for batch in batches:
        row_bytes = batch.get_total_buffer_size() // max(batch.num_rows, 1) if batch.num_rows <= PART_ROWS else 1
        row_bytes = batch.nbytes // batch.num_rows if batch.num_rows else row_bytes
        n_rows = max(1, min(PART_ROWS, PART_BYTES // max(row_bytes, 1)))
        for start in range(0, batch.num_rows, n_rows):
            yield batch.slice(start, n_rows)


class _FramePart:
    """Some rows of a pandas DataFrame, by column."""

    def __init__(self, frame: Any) -> None:
        self.columns = {str(name): frame[name] for name in frame.columns}
        self.n_rows = len(frame)


def _frame_parts(frame: Any) -> Iterator[_FramePart]:
    """Yield the rows of a DataFrame in parts; the levels of its index that have a name are columns too."""
    check_names([str(name) for name in frame.columns])
    for start in range(0, len(frame), PART_ROWS):
        yield _FramePart(with_index(frame.iloc[start : start + PART_ROWS]))


def with_index(frame: Any) -> Any:
    """Return a DataFrame with the named levels of its index as columns.

    A level with the name of a column is left out: `set_index(..., drop=False)` makes such copies.
    """
    levels = [level for level, name in enumerate(frame.index.names) if name is not None and name not in frame.columns]
    return frame.reset_index(level=levels) if levels else frame


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Raise BatchFormatError for a file that is not what it seems, or damaged."""
    pa = arrow()
    try:
        yield
    except BatchFormatError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BatchFormatError(f"cannot be read as {what}: {reason}") from None

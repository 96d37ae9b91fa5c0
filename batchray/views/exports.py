"""Results written as Parquet: one file, or a directory of parts that a later call continues.

`_manifest.json` in the directory names the parts that are complete, and where the next one begins.  A part gets its
name only once it is whole, and is named in the manifest after that; what is not in the manifest is written again, and
so is everything from the first part on that is missing or damaged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from batchray.batch.places import Place, place_of
from batchray.errors import BatchFormatError, ConfigError
from batchray.store import JobRecord, Store
from batchray.views.export_places import delete, make_directory, writing
from batchray.views.result_pages import START, ResultOrder, ResultPosition
from batchray.views.result_tables import ResultTables

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "_manifest.json"
_FORMAT = 1
_PART_ROWS = 100_000
_PART = re.compile(r"part-\d{5,}\.parquet")
_PART_BYTES = 256 * 1024 * 1024

Block = tuple["pa.Table", ResultPosition]


@dataclass(frozen=True, slots=True)
class Export:
    """The common facts of the parts of a directory: the job, since when it runs, and the order of the rows.

    A retry deletes outcomes, so that parts from before it are not continued.
    """

    job_id: str
    opened_at: str
    is_ended: bool

    @classmethod
    def of(cls, store: Store, job: JobRecord) -> Export:
        """Return the export of a job as it is now."""
        return cls(job.id, store.jobs.opened_at(job), job.is_ended)

    @property
    def order(self) -> ResultOrder:
        """Index order of a job that has ended; of one that runs, the order in which results come."""
        return "index" if self.is_ended else "finish"


def write_parquet(path: str | Path, tables: ResultTables, export: Export) -> None:
    """Write the results of this moment.  Raises ConfigError if the place cannot be written to."""
    try:
        place = place_of(path)
        if place.name.endswith(".parquet") and not place.is_directory():
            _write_part(place, tables.schema, tables.after(START, "index"))
        else:
            _Directory(place, tables, export).write()
    except BatchFormatError as error:
        raise ConfigError(error.reason, error.file or str(path)) from None
    except NotImplementedError as error:  # pyarrow's, with the type
        raise ConfigError(f"Parquet cannot hold a column; to_arrow can: {error}", str(path)) from None
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror or error}", str(path)) from None


class _Directory:
    """A directory with the parts of one job."""

    def __init__(self, place: Place, tables: ResultTables, export: Export) -> None:
        self._place, self._tables, self._export = place, tables, export
        self._parts: list[dict[str, Any]] = []
        self._order, self._position = export.order, START

    def write(self) -> None:
        """Continue the parts that are there, or begin."""
        make_directory(self._place)
        self._continue()
        blocks = self._tables.after(self._position, self._order)
        block = next(blocks, None)
        while block is not None:
            name = f"part-{len(self._parts):05d}.parquet"
            written = _write_part(self._place.child(name), self._tables.schema, _blocks_of_part(block, blocks))
            end = written.position
            self._parts.append({"file": name, "rows": written.n_rows, "index": end.index, "seq": end.seq})
            self._position = end
            self._save()
            block = next(blocks, None)
        self._save()

    def _continue(self) -> None:
        """Read the manifest.  Parts that are not continued are deleted; anything else than an export is refused."""
        names = self._place.names()
        if MANIFEST not in names:
            if others := [name for name in names if not name.startswith((".", "part-"))]:
                raise ConfigError(f"holds something else than an export, such as {others[0]!r}", self._place.shown)
            return
        try:
            found = orjson.loads(self._place.child(MANIFEST).read())
            job_id, opened_at, order = found["job"], found["opened_at"], found["order"]
            parts, position = list(found["parts"]), ResultPosition(found["index"], found["seq"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise ConfigError(
                "cannot be read as the manifest of an export", f"{self._place.shown}/{MANIFEST}"
            ) from None
        if job_id != self._export.job_id:
            raise ConfigError(f"holds an export of job {job_id}; name another directory", self._place.shown)
        if opened_at == self._export.opened_at and found.get("columns") == self._columns:
            self._order = order
            self._parts = list(takewhile(lambda part: part["file"] in names and self._is_whole(part), parts))
            if len(self._parts) == len(parts):
                self._position = position
            elif self._parts and "seq" in self._parts[-1]:
                self._position = ResultPosition(self._parts[-1]["index"], self._parts[-1]["seq"])
            else:  # an older version noted only the position at the end of all parts
                self._parts, self._order = [], self._export.order
        self._delete_others(names)

    def _is_whole(self, part: Mapping[str, Any]) -> bool:
        """Whether the file of a part can be read and has the rows that the manifest says.  Reads only its end."""
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        with self._place.child(part["file"]).open() as file:
            try:
                return bool(ParquetFile(file).metadata.num_rows == part["rows"])
            except (ArrowException, OSError):  # OSError: the metadata at its end cannot be parsed
                return False

    def _delete_others(self, names: Sequence[str]) -> None:
        """Delete the parts that are not continued, which a reader of the directory would take for results."""
        kept = {part["file"] for part in self._parts}
        others = [name for name in names if _PART.fullmatch(name) and name not in kept]
        if others:
            self._save()
        for name in others:
            delete(self._place.child(name))

    @property
    def _columns(self) -> dict[str, str]:
        return {field.name: str(field.type) for field in self._tables.schema}

    def _save(self) -> None:
        content = {
            "format": _FORMAT,
            "job": self._export.job_id,
            "opened_at": self._export.opened_at,
            "is_complete": self._export.is_ended,
            "order": self._order,
            "index": self._position.index,
            "seq": self._position.seq,
            "rows": sum(part["rows"] for part in self._parts),
            "parts": self._parts,
            "columns": self._columns,
        }
        with writing(self._place.child(MANIFEST)) as file:
            file.write(orjson.dumps(content, option=orjson.OPT_INDENT_2))


@dataclass(frozen=True, slots=True)
class _Written:
    """A part: its rows, and the position at its end."""

    n_rows: int
    position: ResultPosition


def _blocks_of_part(first: Block, others: Iterator[Block]) -> Iterator[Block]:
    """Yield the blocks of one part."""
    n_rows, n_bytes, block = 0, 0, first
    while True:
        yield block
        n_rows, n_bytes = n_rows + block[0].num_rows, n_bytes + block[0].nbytes
        if n_rows >= _PART_ROWS or n_bytes >= _PART_BYTES:
            return
        following = next(others, None)
        if following is None:
            return
        block = following


def _write_part(place: Place, schema: pa.Schema, blocks: Iterator[Block]) -> _Written:
    from pyarrow.parquet import ParquetWriter

    n_rows, last = 0, START
    with writing(place) as file, ParquetWriter(file, schema, compression="zstd") as writer:
        for table, position in blocks:
            writer.write_table(table)
            n_rows, last = n_rows + table.num_rows, position
    return _Written(n_rows, last)

"""Opens the input of a batch in the format that its name, its first bytes or the caller says."""

from __future__ import annotations

import contextlib
import io
import itertools
import shutil
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from io import IOBase, TextIOBase
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NamedTuple, Self, TypeVar, cast

import orjson

from batchray.batch.formats.arrow import PART_ROWS
from batchray.batch.formats.column_types import Rows, UntypedTable
from batchray.batch.formats.options import NO_OPTIONS, TABLES, InputOptions
from batchray.batch.formats.provider_batches import ENTRIES, Entries, provider_batch
from batchray.batch.formats.row_requests import TablePart, table_parts
from batchray.batch.formats.sources import READERS, dataset_files, files_rows, table_of_object
from batchray.batch.formats.text_rows import add_objects, csv_rows, json_rows, object_rows
from batchray.batch.parse import Batch, batch_of, object_request
from batchray.batch.places import Place, place_of
from batchray.batch.rules import KnownAgent, RequestRules
from batchray.batch.source import check_is_text, first_bytes, is_packed, open_stream, readable, unpacked
from batchray.batch.split import JsonDocument, Lines, split_stream
from batchray.batch.spool import Spool
from batchray.errors import BatchFormatError, EmptyBatchError
from batchray.schema import AgentRequest

_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
_CONTENT = ("input", "messages")
_PACKED = (".gz", ".zst")
_MAGIC = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}


T = TypeVar("T")


class Table(NamedTuple):
    """A batch that is a table: its requests in parts, with the rows that they carry.  Can be iterated once."""

    parts: Generator[TablePart]


@dataclass(slots=True)
class _Input:
    """The options and rules for reading an input.  `is_row`: its first entry has no content of a request."""

    options: InputOptions
    agents: Mapping[str, KnownAgent]
    rules: RequestRules
    directory: Path
    is_row: bool = False

    def table(self, rows: Generator[Rows]) -> Table:
        return Table(table_parts(rows, self.options, self.rules))

    def recognize(self, first: Any) -> None:
        """Take note of the batch of another API whose first entry this is, or which the caller says it is."""
        options, agents = self.options, self.agents
        if options.format in ENTRIES:
            converter: Entries | None = ENTRIES[options.format](agents, options.agent, self.rules.unused)
        elif options.format in (None, "json") and not options.maps_rows:
            converter = provider_batch(first, agents, options.agent, self.rules.unused)
        else:
            converter = None
        self.rules.convert = None if converter is None else converter.request
        self.is_row = options.format in (None, "json", "jsonl") and _is_row(first)

    @property
    def has_rows(self) -> bool:
        """Whether objects of our own format are rows of a table: by what the caller says of them, or by their keys."""
        is_mapped = self.options.maps_rows or self.options.agent is not None
        return (is_mapped or self.is_row) and self.rules.convert is None


def _is_row(first: Any) -> bool:
    """Return whether an object has keys of its own, and none that a request has for its input, nor one like it.

    If it names its agent, a usual name of the input in other APIs is a mistake in a request.
    """
    if not isinstance(first, Mapping) or not all(isinstance(key, str) for key in first):
        return False
    own = [key for key in first if key not in AgentRequest.model_fields]
    names = _CONTENT if "agent_id" in first else (*_CONTENT, "agent_id")
    is_request = any(get_close_matches(key.lower(), names, 1, 0.75) for key in first)
    is_mistake = "agent_id" in first and any(key in AgentRequest.other_names for key in own)
    return bool(own) and not is_request and not is_mistake


def open_batch(
    source: Any, agents: Mapping[str, KnownAgent], directory: Path, options: InputOptions = NO_OPTIONS
) -> Batch | Table:
    """Return the batch in `source`, in the format that it has; requests are validated during iteration.

    `source` is a path or an address, an open binary file, a table or a frame, or an iterable of requests or rows.
    `agents` are those that requests may name, by id.  `directory` holds temporary files.
    Raises BatchFormatError, here or during iteration, with the file and the line or row.
    """
    options.check(agents)
    given = _Input(options, agents, RequestRules(agents), directory)
    if isinstance(source, str | Path):
        place = place_of(source)
        try:
            return _with_file(_batch_at(place, given), place.shown)
        except BatchFormatError as error:
            raise error.at(file=error.file or place.shown) from None
    if isinstance(source, TextIOBase):
        raise BatchFormatError("an open file must be open in binary mode")
    if isinstance(source, IOBase):
        return _batch_in(cast(BinaryIO, source), "", given)
    if (rows := table_of_object(source, directory)) is not None:
        return given.table(rows)
    if options.format in TABLES:
        raise BatchFormatError(f"format {options.format!r} is that of a file, not of a {type(source).__name__}")
    if not isinstance(source, Iterable) or isinstance(source, Mapping | bytes | bytearray | memoryview):
        return batch_of(source, given.rules)  # it is refused with the reason
    objects = iter(source)
    first = list(itertools.islice(objects, 1))
    given.recognize(first[0] if first else None)
    objects = itertools.chain(first, objects)
    is_table = given.has_rows or (bool(first) and isinstance(first[0], str))
    return given.table(object_rows(objects, directory)) if is_table else batch_of(objects, given.rules)


class ObjectInput:
    """Takes the requests or rows of a batch one at a time, and gives them back checked."""

    def __init__(self, agents: Mapping[str, KnownAgent], directory: Path, options: InputOptions = NO_OPTIONS) -> None:
        options.check(agents)
        self._given = _Input(options, agents, RequestRules(agents), directory)
        self._table: UntypedTable | None = None
        self._directory, self._spool = directory, Spool(directory)
        self._rows: list[Any] = []
        self._n_rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.close()
        if self._table is not None:
            self._table.close()

    def add(self, each: Any) -> None:
        """Take a request or a row.  Raises BatchFormatError."""
        if not self._n_rows:
            self._given.recognize(each)
            self._table = UntypedTable(self._directory) if self._given.has_rows else None
        self._n_rows += 1
        if self._table is None:
            try:
                self._spool.add(object_request(each, self._given.rules))
            except BatchFormatError as error:
                raise error.at(index=self._n_rows - 1) from None
            return
        self._rows.append(each)
        if len(self._rows) == PART_ROWS:
            self._add_rows(self._table)

    def _add_rows(self, table: UntypedTable) -> None:
        add_objects(table, self._rows, self._n_rows - len(self._rows))
        self._rows = []

    def batch(self) -> Batch | Table:
        """Return the whole batch, which is on disk until this object is closed."""
        if not self._n_rows:
            raise EmptyBatchError("the batch is empty")
        if self._table is None:
            return Batch(iter(self._spool), unused=self._given.rules.unused)
        self._add_rows(self._table)
        return self._given.table(self._table.parts())


def _batch_at(place: Place, given: _Input) -> Batch | Table:
    if place.is_directory():
        files = dataset_files(place)
        return given.table(files_rows(files, "arrow" if files[0].name.endswith(".arrow") else "parquet"))
    return _batch_in(place.open(), place.name, given)


def _batch_in(stream: BinaryIO, name: str, given: _Input) -> Batch | Table:
    """Return the batch in an open file of this name."""
    try:
        head, stream = first_bytes(stream)
        if is_packed(head):
            head, stream = first_bytes(unpacked(head, stream))
        elif _format_of(head, name, given.options.format) not in READERS:
            check_is_text(head, stream, name)
        return _read(stream, _format_of(head, name, given.options.format), given)
    except BaseException:
        stream.close()
        raise


def _format_of(head: bytes, name: str, said: str | None) -> str | None:
    """Return the format of a file by what the caller says, its first bytes, or its name; None if nothing tells it."""
    found = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if said is not None and found not in (None, said):
        raise BatchFormatError(f"is {found}, not {said}")
    suffixes = [suffix for suffix in PurePath(name.lower()).suffixes if suffix not in _PACKED]
    return said or found or _SUFFIXES.get(suffixes[-1] if suffixes else "")


def _read(stream: BinaryIO, kind: str | None, given: _Input) -> Batch | Table:
    if kind in READERS:
        file = _seekable(stream, given.directory)
        return given.table(_closing(READERS[kind](file), file, stream))
    if kind == "datasets":
        raise BatchFormatError("format datasets is that of a directory, not of a file")
    text = open_stream(stream)
    if kind in ("csv", "tsv"):
        return given.table(csv_rows(text, "\t" if kind == "tsv" else None, given.directory))
    found = split_stream(text, is_lines=kind == "jsonl", is_document=kind == "json" and given.options.format == "json")
    given.recognize(_first_object(found))
    if not given.has_rows:
        return batch_of(found, given.rules)
    if isinstance(found, Lines):
        return given.table(json_rows(found.numbered, given.directory))
    numbered = ((index, bytes(raw)) for index, raw in enumerate(found.requests))
    return given.table(json_rows(numbered, given.directory, has_lines=False))


def _first_object(found: Lines | JsonDocument) -> Any:
    first = found.first if isinstance(found, Lines) else bytes(found.requests[0]) if found.requests else b""
    try:
        return orjson.loads(first)
    except orjson.JSONDecodeError:
        return None


def _seekable(stream: BinaryIO, directory: Path) -> BinaryIO:
    """Return a stream that can be read at any position: itself, or a temporary copy."""
    raw = stream.raw if isinstance(stream, io.BufferedReader) else stream
    is_packed_file = not isinstance(raw, io.FileIO | io.BytesIO) and isinstance(stream, io.BufferedIOBase)
    if stream.seekable() and not is_packed_file:  # to go back in unpacked data is to unpack them again
        return stream
    directory.mkdir(parents=True, exist_ok=True)
    copy = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115  # it is closed when nothing reads it any more
    with readable():
        shutil.copyfileobj(stream, copy)
    copy.seek(0)
    return cast(BinaryIO, copy)


def _closing(rows: Generator[Rows], *files: BinaryIO) -> Generator[Rows]:
    with contextlib.ExitStack() as opened:
        for file in files:
            opened.enter_context(file)
        yield from rows


def _with_file(batch: Batch | Table, file: str) -> Batch | Table:
    """Return the batch with the file in its errors."""
    if isinstance(batch, Table):
        return Table(_named(batch.parts, file))
    return batch._replace(requests=_named(batch.requests, file))


def _named(each: Iterator[T], file: str) -> Generator[T]:
    try:
        yield from each
    except BatchFormatError as error:
        raise error.at(file=error.file or file) from None

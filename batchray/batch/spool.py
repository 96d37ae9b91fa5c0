"""Validated requests on disk, until their job is stored."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

import orjson


class Spool:
    """Validated requests in a temporary file, deleted when the spool is closed.  Can be iterated repeatedly.

    It also keeps the rows of the table that they were made of.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115  # closed with the spool
        self._carried = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115  # closed with the spool

    def add(self, request: RawRequest) -> None:
        """Append a request."""
        head = orjson.dumps([request.agent_id, request.custom_id, len(request.body)])
        self._file.write(head + b"\n" + request.body)

    def add_carried(self, first: int, n_rows: int, data: bytes) -> None:
        """Append the rows that the requests `first` to `first + n_rows - 1` were made of, encoded."""
        self._carried.write(orjson.dumps([first, n_rows, len(data)]) + b"\n" + data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete the files."""
        self._file.close()
        self._carried.close()

    def __iter__(self) -> Iterator[RawRequest]:
        self._file.seek(0)
        while head := self._file.readline():
            agent_id, custom_id, n_bytes = orjson.loads(head)
            yield RawRequest(agent_id, custom_id, self._file.read(n_bytes))

    def carried(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield the first row, the number of rows and the data of each part that `add_carried` was given."""
        self._carried.seek(0)
        while head := self._carried.readline():
            first, n_rows, n_bytes = orjson.loads(head)
            yield first, n_rows, self._carried.read(n_bytes)


class RawRequest(NamedTuple):
    """One validated request: its unchanged JSON, and the ids that the store keeps in columns."""

    agent_id: str
    custom_id: str | None
    body: bytes

"""The database behind the store: its connections, transactions, and the one thread that writes."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import quote

import sqlalchemy as sa

from batchray.errors import StoreError
from batchray.store.tables import SCHEMA_VERSION, metadata
from batchray.threads import DaemonThread

P = ParamSpec("P")
T = TypeVar("T")

CHUNK = 500
"""Rows read or written at a time."""
PAGE_BYTES = 8 * 1024 * 1024
"""About so many bytes of requests and messages are read or written at a time."""


class Database:
    """One SQLite file in a data directory.  Blocking and plain; `call` runs a method on the writer's thread."""

    def __init__(self, file: Path, *, is_writer: bool) -> None:
        self.data_dir = file.parent
        mode = "rwc" if is_writer else "ro"
        self._engine = _engine(f"file:{quote(str(file.absolute()))}?mode={mode}", is_writer=is_writer)
        self._writer = DaemonThread("batchray-store")

    async def call(self, method: Callable[P, T], /, *args: P.args, **keywords: P.kwargs) -> T:
        """Run a blocking method on the writer's thread.  A cancelled wait lets it finish."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._writer, lambda: method(*args, **keywords))

    def close(self) -> None:
        """Finish what is being written, then close."""
        self._writer.shutdown()
        self._engine.dispose()

    def create_schema(self) -> None:
        """Create the tables that are missing.  Raises StoreError where a newer version made them."""
        with self._engine.begin() as connection:
            self._check_version(connection)
            metadata.create_all(connection)
            connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def check_version(self) -> None:
        """Raise StoreError where a newer version made the tables."""
        with self._reading() as connection:
            self._check_version(connection)

    def checkpoint(self) -> None:
        """Move what is in the write-ahead log into the database file, as far as readers allow."""
        with self._translated(), self._engine.connect() as connection:
            cursor = connection.connection.cursor()  # outside of a transaction, where SQLAlchemy would begin one
            cursor.execute("PRAGMA wal_checkpoint(PASSIVE)")
            cursor.close()

    def _check_version(self, connection: sa.Connection) -> None:
        version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        if version > SCHEMA_VERSION:
            raise StoreError(f"{self.data_dir} was written by a newer version of batchray; upgrade to read it")

    def _page(self, query: sa.Select[Any], build: Callable[..., T], size: Callable[[T], int]) -> Iterator[T]:
        """Yield rows until about `PAGE_BYTES` of them, so that large requests make short pages."""
        budget = PAGE_BYTES
        with self._reading() as connection:
            for row in connection.execution_options(yield_per=50).execute(query):
                built = build(*row)
                yield built
                budget -= size(built)
                if budget <= 0:
                    return

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        with self._translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self._translated(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DatabaseError as error:
            raise StoreError(f"the store in {self.data_dir} failed: {error.orig}") from error


def chunks(rows: Iterable[T], size: Callable[[T], int] = lambda row: 0) -> Iterator[list[T]]:
    """Cut `rows` into lists of at most `CHUNK`, and of about `PAGE_BYTES`."""
    chunk: list[T] = []
    n_bytes = 0
    for row in rows:
        chunk.append(row)
        n_bytes += size(row)
        if len(chunk) == CHUNK or n_bytes >= PAGE_BYTES:
            yield chunk
            chunk, n_bytes = [], 0
    if chunk:
        yield chunk


_WRITER = (
    "page_size = 8192",  # of a new file; requests and messages are long, and half as many pages are less work
    "journal_mode = WAL",
    "synchronous = FULL",  # an acknowledged job or outcome survives a power cut, not just a crash
    "journal_size_limit = 67108864",
    "cache_size = -8192",
)
_READER = ("query_only = 1", "cache_size = -2048")


def _engine(uri: str, *, is_writer: bool) -> sa.Engine:
    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(uri, uri=True, timeout=10, isolation_level=None, check_same_thread=False)
        for pragma in _WRITER if is_writer else _READER:
            connection.execute(f"PRAGMA {pragma}")
        return connection

    pool = sa.pool.StaticPool if is_writer else sa.pool.NullPool
    engine = sa.create_engine("sqlite://", creator=connect, poolclass=pool)
    # sqlite3 begins transactions by itself only before some statements; SQLAlchemy's documentation gives this remedy.
    begin = "BEGIN IMMEDIATE" if is_writer else "BEGIN"
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine

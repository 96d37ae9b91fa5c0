"""SQLite in the data directory.

One connection writes, on one thread, and it alone makes checkpoints: SQLite before 3.51.3 can lose a WAL reset when two
connections do (sqlite.org/wal.html, "the WAL-reset bug").  Readers open the file read-only, in this process or others.
"""

from __future__ import annotations

import functools
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from itertools import chain, count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from batchray.errors import BatchrayError, StoreCorruptError, StoreError, StoreFullError, StoreUnavailableError
from batchray.store.records import ItemPage

_BUSY_S = 10.0
"""How long a statement waits for another program's lock before it fails and is retried."""
_MAX_CHECKED_BYTES = 64 * 1024 * 1024
"""A file up to this size is checked completely when it is opened; a larger one would delay the start."""
# About 4 MiB, and as much again in the log: well below the reserve, which may be all the space that there is.
_SHRINK_PAGES = 512
_MAX_COMPILED = 500  # SQLAlchemy's default

_ROWS_AT_ONCE = 100
# Python 3.12.0 to 3.12.3 take ?1 for a named parameter, and warn at each one in a sequence (CPython issue 117995).
_BINDS_BY_NAME = (3, 12) <= sys.version_info < (3, 12, 4)
_NAMES = [str(number) for number in range(1, 4 + 3 * _ROWS_AT_ONCE)]

_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
# A quota or a limit that is reached comes as a failed write, and a disk that allocates late as a failed sync.
_FULL = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_SHMSIZE,
    sqlite3.SQLITE_IOERR_TRUNCATE,
)


class Sqlite:
    """One SQLite file.  See `Backend`."""

    is_shared = False
    errors: tuple[type[Exception], ...] = (sa.exc.DatabaseError, sqlite3.DatabaseError)

    def __init__(self, file: Path, *, is_writer: bool) -> None:
        self._file, self.name = file, str(file.parent)
        # The writer has one connection, which one thread may use at a time.
        self.alone: AbstractContextManager[Any] = threading.RLock() if is_writer else nullcontext()
        mode = "rwc" if is_writer else "ro"
        self.engine = _engine(f"file:{quote(str(file.absolute()))}?mode={mode}", is_writer=is_writer)

    def insert(self, table: sa.Table) -> sqlite.Insert:
        """Return an INSERT with ON CONFLICT."""
        return sqlite.insert(table)

    def insert_items(self, connection: sa.Connection, job: int, first: int, page: ItemPage) -> None:
        """Insert a page of a job's items, of which the first has this index."""
        n_rows = len(page.requests)
        have_one_agent = len(set(page.agent_ids)) == 1
        have_custom_ids = page.custom_ids.count(None) < n_rows
        agent_id = page.agent_ids[:1] if have_one_agent else ()
        are_bound = ((page.agent_ids, not have_one_agent), (page.custom_ids, have_custom_ids), (page.requests, True))
        columns: list[Sequence[Any]] = [column for column, is_bound in are_bound if is_bound]

        def insert(start: int, end: int, at_once: int) -> None:
            rows: list[Any] = [
                (job, first + n, *agent_id, *chain.from_iterable(column[n : n + at_once] for column in columns))
                for n in range(start, end, at_once)
            ]
            if _BINDS_BY_NAME:
                rows = [dict(zip(_NAMES, row, strict=False)) for row in rows]
            if rows:
                connection.exec_driver_sql(_insert_items(at_once, have_one_agent, have_custom_ids), rows)

        n_rest = n_rows % _ROWS_AT_ONCE
        insert(0, n_rows - n_rest, _ROWS_AT_ONCE)
        insert(n_rows - n_rest, n_rows, 1)

    def failure(self, error: Exception) -> BatchrayError:
        """Translate an error of SQLite."""
        cause = getattr(error, "orig", error)
        code = getattr(cause, "sqlite_errorcode", 0)
        if code & 0xFF in _CORRUPT:
            return StoreCorruptError(str(self._file), str(cause))
        message = f"the store in {self.name} failed: {cause}"
        if code in _FULL:
            return StoreFullError(message)
        return StoreUnavailableError(message) if code & 0xFF in _BUSY else StoreError(message)

    def prepare(self, connection: sa.Connection) -> None:
        """Raise StoreCorruptError if the file is damaged, as far as a quick check finds out."""
        if self._file.stat().st_size <= _MAX_CHECKED_BYTES:
            found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
            if found != "ok":
                raise StoreCorruptError(str(self._file), found.splitlines()[-1])

    def version(self, connection: sa.Connection) -> int:
        """Return the version of its tables; 0 if there are none."""
        return int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())

    def set_version(self, connection: sa.Connection, version: int) -> None:
        """Store the version of its tables."""
        if self.version(connection) != version:  # a disk that is full can be opened too
            connection.exec_driver_sql(f"PRAGMA user_version = {version}")

    def now(self, connection: sa.Connection) -> float:
        """Return the time of this machine."""
        return time.time()

    @contextmanager
    def relaxed(self) -> Iterator[None]:
        """Leave the sync of the log to the next commit, or to the checkpoint."""
        self._run("PRAGMA synchronous = NORMAL")
        try:
            yield
        finally:
            self._run("PRAGMA synchronous = FULL")

    def limit_lock_wait(self, connection: sa.Connection) -> None:
        """Do nothing: a transaction waits when it begins, and for other programs only."""

    def checkpoint(self) -> None:
        """Move the contents of the write-ahead log into the database file, as far as readers allow."""
        self._run("PRAGMA wal_checkpoint(PASSIVE)")

    def shrink(self) -> bool:
        """Cut free pages off the file's end, and truncate the log if no reader uses it."""
        self._run_script(f"PRAGMA incremental_vacuum({_SHRINK_PAGES})")
        self._run("PRAGMA busy_timeout = 0")
        try:
            self._run("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            self._run(f"PRAGMA busy_timeout = {_BUSY_S * 1000:.0f}")
        is_incremental = self._run("PRAGMA auto_vacuum") == [(2,)]
        return is_incremental and self._run("PRAGMA freelist_count") != [(0,)]

    def corruption(self, connection: sa.Connection) -> list[str]:
        """Return the findings of SQLite's integrity check."""
        found = connection.exec_driver_sql("PRAGMA integrity_check").scalars()
        return [line for line in found if line != "ok"]

    def close(self) -> None:
        """Close its connections."""
        self.engine.dispose()

    def _run_script(self, script: str) -> None:
        """Run statements completely: `execute` runs only the first step of one that returns no rows."""
        with self.engine.connect() as connection, closing(connection.connection.cursor()) as cursor:
            cursor.executescript(script)

    def _run(self, statement: str) -> list[Any]:
        """Run a statement outside of a transaction, which SQLAlchemy would begin."""
        with self.engine.connect() as connection, closing(connection.connection.cursor()) as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())


@functools.cache
def _insert_items(n_rows: int, have_one_agent: bool, have_custom_ids: bool) -> str:
    """Return the statement that inserts `n_rows` items.

    Its parameters are the job, the index of the first item, the agent if they have one or else the agent of each; the
    custom ids if there are any; the requests.  By hand, with many rows and few parameters: compiling, mappings, a
    statement for each row, and a parameter for each value cost more than SQLite itself.
    """
    numbers = count(4 if have_one_agent else 3)

    def column() -> list[str]:
        return [f"?{next(numbers)}" for _ in range(n_rows)]

    agents = ["?3"] * n_rows if have_one_agent else column()
    custom_ids = column() if have_custom_ids else ["NULL"] * n_rows
    columns = zip(range(n_rows), agents, custom_ids, column(), strict=True)
    rows = (f"(?1, ?2 + {row}, {agent}, {custom_id}, {request})" for row, agent, custom_id, request in columns)
    return f"INSERT INTO items (job, idx, agent_id, custom_id, request) VALUES {', '.join(rows)}"


_WRITER = (
    "page_size = 8192",  # of a new file; requests and messages are long, and half as many pages are less work
    "auto_vacuum = INCREMENTAL",  # of a new file: what retention deletes is returned to the disk in small steps
    "journal_mode = WAL",
    "synchronous = FULL",  # an acknowledged job or outcome survives a power cut, not just a crash
    "journal_size_limit = 67108864",
    "cache_size = -8192",
)
_READER = ("query_only = 1", "cache_size = -2048")


@functools.cache
def _compiler() -> tuple[sa.Dialect, Any]:
    """Return the dialect of all engines of this process, and its compiled statements.

    A process opens a file for each job, and to read one: to compile the same statements each time takes longer than to
    execute them.
    """
    engine = sa.create_engine("sqlite://", poolclass=sa.pool.NullPool)
    with engine.connect():  # which initializes the dialect, and is closed
        return engine.dialect, sa.util.LRUCache(_MAX_COMPILED)


def _engine(uri: str, *, is_writer: bool) -> sa.Engine:
    def connect() -> Any:
        connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        for pragma in _WRITER if is_writer else _READER:
            connection.execute(f"PRAGMA {pragma}")
        return connection

    pool = sa.pool.StaticPool if is_writer else sa.pool.NullPool
    dialect, compiled = _compiler()
    engine = sa.Engine(pool(connect), dialect, sa.make_url("sqlite://"), execution_options={"compiled_cache": compiled})
    # sqlite3 begins transactions by itself only before some statements; SQLAlchemy's documentation gives this remedy.
    begin = "BEGIN IMMEDIATE" if is_writer else "BEGIN"
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine

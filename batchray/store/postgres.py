"""PostgreSQL by URL: several servers on one database, each job run by one of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from batchray.errors import (
    BatchFormatError,
    BatchrayError,
    ConfigError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from batchray.store.records import ItemPage

_SCHEMA_LOCK = 0x62617463  # of pg_advisory_xact_lock: any number that is ours
_CONNECTION = {
    "connect_timeout": 5,
    # A database server that vanishes without closing its connections is noticed within half a minute.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
# SQLSTATE classes and codes, of PostgreSQL's documentation, appendix A.  Errors that may pass:
# lost connections, a shutdown or start, a conflict with another transaction, too many connections, a standby.
_UNAVAILABLE = ("08", "57P", "40001", "40P01", "53300", "55P03", "25006")
_FULL = "53100"
_LOCK_MS = 2000
# By hand: compiling it for each chunk, and a mapping for each row, cost as much as the database itself.
_INSERT_ITEM = "INSERT INTO items (job, idx, agent_id, custom_id, request) VALUES (%s, %s, %s, %s, %s)"


class Postgres:
    """One PostgreSQL database.  See `Backend`."""

    is_shared = True
    alone: AbstractContextManager[Any] = nullcontext()
    errors: tuple[type[Exception], ...] = (sa.exc.DBAPIError, sa.exc.TimeoutError)

    def __init__(self, url: str, *, is_writer: bool, is_pooled: bool = True) -> None:
        try:
            parsed = sa.make_url(url)
        except sa.exc.ArgumentError:
            raise ConfigError("database_url is not of the form postgresql+psycopg://user@host/database") from None
        if parsed.drivername not in ("postgresql", "postgresql+psycopg"):
            raise ConfigError(f"database_url: {parsed.drivername!r} is not supported; give postgresql+psycopg://...")
        self.name = parsed.render_as_string(hide_password=True)
        options: dict[str, object] = dict(_CONNECTION)
        if not is_writer:
            options["options"] = "-c default_transaction_read_only=on"
        try:
            pool: dict[str, Any] = (
                {"pool_pre_ping": True, "max_overflow": 15} if is_pooled else {"poolclass": sa.pool.NullPool}
            )
            self.engine = sa.create_engine(parsed.set(drivername="postgresql+psycopg"), connect_args=options, **pool)
        except ImportError:
            raise ConfigError("database_url needs psycopg: pip install 'batchray[postgres]'") from None

    def insert(self, table: sa.Table) -> postgresql.Insert:
        """Return an INSERT with ON CONFLICT."""
        return postgresql.insert(table)

    def insert_items(self, connection: sa.Connection, job: int, first: int, page: ItemPage) -> None:
        """Insert a page of a job's items, of which the first has this index."""
        rows = list(zip(itertools.repeat(job), itertools.count(first), *page, strict=False))
        connection.exec_driver_sql(_INSERT_ITEM, rows)

    def failure(self, error: Exception) -> BatchrayError:
        """Translate an error of PostgreSQL."""
        cause = getattr(error, "orig", error)
        state = getattr(cause, "sqlstate", None)
        message = f"the store in {self.name} failed: {' '.join(str(cause).split())}"
        if isinstance(error, sa.exc.DataError):  # such as a NUL inside a text
            return BatchFormatError(f"the database cannot hold it: {cause}")
        if state == _FULL:
            return StoreFullError(message)
        # Without a state the server did not answer: the connection is lost, or there was none.
        is_lost = state is None and isinstance(error, sa.exc.OperationalError | sa.exc.TimeoutError)
        is_lost = is_lost or getattr(error, "connection_invalidated", False)
        if is_lost or (state or "").startswith(_UNAVAILABLE):
            return StoreUnavailableError(message)
        return StoreError(message)

    def prepare(self, connection: sa.Connection) -> None:
        """Lock, so that servers that start together create the tables one after another."""
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_SCHEMA_LOCK})")
        connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS schema_version (version bigint NOT NULL)")

    def version(self, connection: sa.Connection) -> int:
        """Return the version of its tables; 0 if there are none."""
        if connection.exec_driver_sql("SELECT to_regclass('schema_version')").scalar_one() is None:
            return 0
        return int(connection.exec_driver_sql("SELECT coalesce(max(version), 0) FROM schema_version").scalar_one())

    def set_version(self, connection: sa.Connection, version: int) -> None:
        """Store the version of its tables."""
        if self.version(connection) != version:
            connection.exec_driver_sql("DELETE FROM schema_version")
            connection.exec_driver_sql(f"INSERT INTO schema_version VALUES ({version})")

    def now(self, connection: sa.Connection) -> float:
        """Return the time of the database's machine, the one clock that all servers share."""
        return float(connection.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())").scalar_one())

    @contextmanager
    def relaxed(self) -> Iterator[None]:
        """Do nothing: a commit of PostgreSQL holds up no other one."""
        yield

    def limit_lock_wait(self, connection: sa.Connection) -> None:
        """Wait for locks for a few seconds at most; the error is then a StoreUnavailableError."""
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {_LOCK_MS}")

    def checkpoint(self) -> None:
        """Do nothing: PostgreSQL schedules its own checkpoints."""

    def shrink(self) -> bool:
        """Do nothing: PostgreSQL has autovacuum."""
        return False

    def corruption(self, connection: sa.Connection) -> list[str]:
        """Return nothing: PostgreSQL has its own tools, such as pg_amcheck."""
        return []

    def close(self) -> None:
        """Close its connections; one that a thread still reads with is closed when the thread gives it back."""
        # `dispose` leaves out those in use, and their pool, to which they go back, is never used again.
        sa.event.listen(self.engine.pool, "checkin", lambda connection, entry: entry.close())
        self.engine.dispose()

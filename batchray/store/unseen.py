"""Rows that no query shows: those of a job or a file that is being stored or deleted, in several transactions.

Such a row belongs to no user, and its id begins with `storing-` or `deleted-`.  A process that stores something shows
with each piece that it still does.  Rows of one that does not, or of an earlier process on a data directory, are to be
deleted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import sqlalchemy as sa

from batchray.errors import KeyInUseError, StoreError, StoreUnavailableError
from batchray.store.database import Database
from batchray.store.queries import starts_with
from batchray.store.tables import DELETED, jobs
from batchray.support.failpoints import failpoint

logger = logging.getLogger(__name__)

PIECE_BYTES = 1536 * 1024
"""About how many bytes a transaction stores: other writes wait for it, a few milliseconds on a quick disk."""
_STORING, _DELETED = "storing-", f"{DELETED}-"
_ALIVE_S = 60.0
"""How long a process that stores something may be silent; a piece takes much less."""


class Part(NamedTuple):
    """Something that belongs to a new row: what stores it, given the row's key, and its size in bytes."""

    store: Callable[[sa.Connection, int], None]
    n_bytes: int


class NewRow:
    """The row of a job or a file while that is being stored.  Its `created_at` shows meanwhile that it still is."""

    def __init__(self, database: Database, table: sa.Table, new_id: str, values: Mapping[str, Any]) -> None:
        """`values` are those of columns that must have one, besides the ones that this class knows."""
        self._database, self._table, self._id, self._values = database, table, new_id, values
        self._key_column = _key_column(table)
        self._key: int | None = None
        self._piece: Future[int] | None = None

    def store(self, parts: Iterable[Part], purge: Callable[[], bool]) -> int:
        """Store what belongs to the row, in pieces if it is large, and return the row's key.

        `parts` are iterated on this thread and stored on the writer's, a piece while the next one is iterated; the last
        one calls `complete`, and has no size.
        All of it is on disk when this returns.  An error leaves nothing that is seen, and `purge` deletes the rest.
        """
        try:
            pending, n_bytes = list[Part](), 0
            for part in parts:
                pending.append(part)
                n_bytes += part.n_bytes
                if n_bytes >= PIECE_BYTES:
                    self._finish_piece()
                    self._piece = self._database.write_piece_soon(partial(self._store, parts=pending))
                    pending, n_bytes = [], 0
            self._finish_piece()
            key = self._database.write(partial(self._store_last, parts=pending))
        except BaseException:
            self.discard(purge)
            raise
        failpoint("after-commit")
        return key

    def _finish_piece(self) -> None:
        """Wait until the piece that is being stored is committed.  Raises the error of its transaction."""
        if self._piece is not None:
            self._key = self._piece.result()
            self._piece = None
            failpoint("piece-stored")

    def _store(self, connection: sa.Connection, parts: Iterable[Part]) -> int:
        key = self._hold(connection)
        for part in parts:
            part.store(connection, key)
        return key

    def _store_last(self, connection: sa.Connection, parts: Iterable[Part]) -> int:
        # Or the lock of a row with the same idempotency key would hold up all writes of this process.
        self._database.backend.limit_lock_wait(connection)
        key = self._store(connection, parts)
        failpoint("before-commit")
        return key

    def _hold(self, connection: sa.Connection) -> int:
        """Insert the row, or show that its content is still being stored; return its key."""
        now = _clock(self._database, connection)
        if self._key is None:
            row = {**self._values, "id": f"{_STORING}{self._id}", "user_id": "", "created_at": now}
            inserted = connection.execute(sa.insert(self._table).values(**row)).inserted_primary_key
            return int(inserted[0])  # type: ignore[index]
        self._update(connection, self._key, {"created_at": now})
        return self._key

    def complete(self, connection: sa.Connection, key: int, values: Mapping[str, Any]) -> None:
        """Give the row its id, user and idempotency key: it is seen from now on.  Raises KeyInUseError."""
        try:
            self._update(connection, key, {"id": self._id, **values})
        except sa.exc.IntegrityError:
            raise KeyInUseError(f"{self._id}: another one came with the same idempotency key") from None

    def discard(self, purge: Callable[[], bool]) -> None:
        """Forget an incomplete row, and purge it on the writer's thread, between other calls."""
        if self._piece is not None and self._piece.exception() is None:  # which waits for it
            self._key = self._piece.result()
        if self._key is None:
            return
        key = self._key
        try:
            self._database.write(lambda connection: forget(connection, self._table, self._is_storing(key)))
            self._database.repeat_soon(purge)
        except StoreError as error:  # it is purged when nothing was stored for a while
            logger.warning("what was stored of %s cannot be deleted now: %s", self._id, error)

    def _update(self, connection: sa.Connection, key: int, values: Mapping[str, Any]) -> None:
        updating = sa.update(self._table).where(self._is_storing(key)).values(**values)
        if not connection.execute(updating).rowcount:
            raise StoreUnavailableError(f"storing {self._id} took too long between two pieces; send it again")

    def _is_storing(self, key: int) -> sa.ColumnElement[bool]:
        return sa.and_(self._key_column == key, self._table.c.id == f"{_STORING}{self._id}")


def is_gone(database: Database, connection: sa.Connection, table: sa.Table) -> sa.ColumnElement[bool]:
    """Select rows that are to be deleted: forgotten, or stored by a process that has stopped."""
    is_silent = table.c.created_at < _clock(database, connection, ago_s=_ALIVE_S)
    return sa.and_(table.c.user_id == "", sa.or_(starts_with(table.c.id, _DELETED), is_silent))


def forget(connection: sa.Connection, table: sa.Table, wanted: sa.ColumnElement[bool]) -> bool:
    """Take the id and the user of rows away, so that they are deleted; False if that was done before."""
    values = {"id": sa.literal(_DELETED) + sa.cast(_key_column(table), sa.String), "user_id": "", **_hidden(table)}
    is_known = sa.not_(starts_with(table.c.id, _DELETED))
    return connection.execute(sa.update(table).where(wanted, is_known).values(**values)).rowcount > 0


def purge_left(database: Database, table: sa.Table, purge: Callable[[], bool]) -> None:
    """Purge on the writer's thread what earlier processes have left, if there is any.

    In a data directory that is also all that is not stored completely.
    """
    with database.transaction() as connection:
        if not database.is_shared:
            forget(connection, table, sa.and_(table.c.user_id == "", starts_with(table.c.id, _STORING)))
        wanted = sa.select(_key_column(table)).where(is_gone(database, connection, table)).limit(1)
        found = connection.execute(wanted).first()
    if found is not None:
        database.repeat_soon(purge)


def _hidden(table: sa.Table) -> dict[str, Any]:
    return {"idempotency_key": None, **({"kind": DELETED} if table is jobs else {})}


def _key_column(table: sa.Table) -> sa.Column[int]:
    return next(iter(table.primary_key.columns))


def _clock(database: Database, connection: sa.Connection, ago_s: float = 0.0) -> str:
    """Return the time by the database's clock, which all of its processes share."""
    return datetime.fromtimestamp(database.backend.now(connection) - ago_s, UTC).isoformat(timespec="microseconds")

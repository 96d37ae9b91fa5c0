"""The tables of files: what clients have uploaded, in parts, so that all servers on a database can read it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from typing import NamedTuple

import sqlalchemy as sa

from batchray.store.database import Database
from batchray.store.queries import between
from batchray.store.records import SortOrder, utc_now
from batchray.store.tables import file_parts, files
from batchray.store.unseen import NewRow, Part, forget, is_gone, purge_left

PART_BYTES = 256 * 1024
"""The size of a part of a file."""

_PARTS_AT_ONCE = 16
_COLUMNS = [column for column in files.c if column.name != "idempotency_key"]


class NewFile(NamedTuple):
    """A file as it is created.  `expires_at` is ISO 8601 in UTC; None is never.

    `idempotency_key` is unique for a user; `digest` is that of what came with it.
    """

    id: str
    filename: str
    purpose: str
    n_bytes: int
    expires_at: str | None = None
    idempotency_key: str | None = None
    digest: str | None = None


class StoredFile(NamedTuple):
    """A file that a client has uploaded, without its content.  `file` is its position among all files."""

    file: int
    id: str
    user_id: str
    created_at: str
    expires_at: str | None
    purpose: str
    filename: str
    n_bytes: int
    digest: str | None


class Files:
    """Files that clients have uploaded.  Each belongs to one user.  An expired file is unknown."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, user_id: str, new: NewFile, content: Iterable[bytes]) -> StoredFile:
        """Store a file and return it.  It is on disk when this returns.

        `content` are its parts, iterated on this thread.  They are stored in pieces, between which other writes run;
        the file is known when all of them are.  Raises StoreFullError if the disk is full, and KeyInUseError for a
        second file of one idempotency key.
        """
        self._database.room.check()
        given = {**new._asdict(), "idempotency_key": None}
        row, created_at = NewRow(self._database, files, new.id, given), utc_now()
        values = {"user_id": user_id, "created_at": created_at, "idempotency_key": new.idempotency_key}

        def complete(connection: sa.Connection, key: int) -> None:
            forget(connection, files, _is_expired())  # a key of an expired file may come again
            row.complete(connection, key, values)

        key = row.store(chain(_parts(content), [Part(complete, 0)]), self.purge)
        del given["idempotency_key"]
        return StoredFile(file=key, user_id=user_id, created_at=created_at, **given)

    def find_by_idempotency_key(self, user_id: str, idempotency_key: str) -> StoredFile | None:
        """Return the file that a user created with this key, or None."""
        of_key = sa.and_(files.c.user_id == user_id, files.c.idempotency_key == idempotency_key)
        with self._database.reading() as connection:
            row = connection.execute(sa.select(*_COLUMNS).where(of_key, _is_unexpired())).first()
        return StoredFile(*row) if row else None

    def find(self, file_id: str, user_id: str) -> StoredFile | None:
        """Return a user's file, or None."""
        query = sa.select(*_COLUMNS).where(files.c.id == file_id, files.c.user_id == user_id, _is_unexpired())
        with self._database.reading() as connection:
            row = connection.execute(query).first()
        return StoredFile(*row) if row else None

    def listed(
        self, user_id: str, order: SortOrder, limit: int, after: int | None = None, purpose: str | None = None
    ) -> list[StoredFile]:
        """Return a user's files by the time of their creation, those after the one whose `file` is `after`."""
        query = sa.select(*_COLUMNS).where(files.c.user_id == user_id, _is_unexpired())
        if purpose is not None:
            query = query.where(files.c.purpose == purpose)
        query = between(query, files.c.file, order, after, None)
        query = query.order_by(files.c.file.desc() if order == "desc" else files.c.file).limit(limit)
        with self._database.reading() as connection:
            return [StoredFile(*row) for row in connection.execute(query)]

    def part(self, file: int, number: int) -> bytes | None:
        """Return a part of a file, or None behind its last one."""
        query = sa.select(file_parts.c.data).where(file_parts.c.file == file, file_parts.c.part == number)
        with self._database.reading() as connection:
            data = connection.execute(query).scalar()
        return None if data is None else bytes(data)

    def content(self, file: StoredFile) -> Iterator[bytes]:
        """Yield the parts of a file; fewer bytes than `file.n_bytes` if it is deleted meanwhile."""
        number = 0
        while (part := self.part(file.file, number)) is not None:
            yield part
            number += 1

    def forget(self, file_id: str, user_id: str) -> bool:
        """Make a file unknown, so that `purge` deletes it; False if the user has no such file."""
        wanted = sa.and_(files.c.id == file_id, files.c.user_id == user_id, _is_unexpired())
        with self._database.transaction() as connection:
            return forget(connection, files, wanted)

    def purge_left(self) -> None:
        """Purge what earlier processes have left, between other calls."""
        purge_left(self._database, files, self.purge)

    def purge(self) -> bool:
        """Delete a part of a file that was forgotten, has expired or is incomplete; return whether there may be more.

        Its row is deleted last: after a crash the rest is found, and never belongs to another file with the same key.
        """
        with self._database.transaction() as connection:
            forget(connection, files, _is_expired())
            # Locked, or of two processes on one database one could take the other's part for the end of the file.
            oldest = sa.select(files.c.file).where(is_gone(self._database, connection, files))
            oldest = oldest.order_by(files.c.file).limit(1).with_for_update(skip_locked=True)
            key = connection.execute(oldest).scalar()
            if key is None:
                return False
            forget(connection, files, files.c.file == key)
            of_file = file_parts.c.file == key
            first = sa.select(file_parts.c.part).where(of_file).order_by(file_parts.c.part).limit(_PARTS_AT_ONCE)
            numbers = list(connection.execute(first).scalars())
            if numbers:
                connection.execute(sa.delete(file_parts).where(of_file, file_parts.c.part <= numbers[-1]))
            else:
                connection.execute(sa.delete(files).where(files.c.file == key))
        return True


def _is_unexpired() -> sa.ColumnElement[bool]:
    return sa.or_(files.c.expires_at.is_(None), files.c.expires_at > utc_now())


def _is_expired() -> sa.ColumnElement[bool]:
    return sa.and_(files.c.user_id != "", files.c.expires_at <= utc_now())


def _parts(content: Iterable[bytes]) -> Iterator[Part]:
    for number, data in enumerate(content):
        yield Part(partial(_insert_part, number=number, data=data), len(data))


def _insert_part(connection: sa.Connection, key: int, number: int, data: bytes) -> None:
    connection.execute(sa.insert(file_parts).values(file=key, part=number, data=data))

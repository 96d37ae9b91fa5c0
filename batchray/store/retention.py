"""Deletes jobs some time after their end, in transactions so short that other writers hardly wait."""

from __future__ import annotations

import time
from typing import Any

import sqlalchemy as sa

from batchray.store.database import CHUNK, PAGE_BYTES, Database
from batchray.store.records import JobRecord
from batchray.store.tables import DELETED, callbacks, jobs, metadata
from batchray.store.unseen import forget, is_gone, purge_left

_UNSENT_S = 30 * 24 * 3600.0
"""How long a job is kept for a due callback that no server sends: there may be no server, or it may come back."""


class Retention:
    """Deletes jobs that ended long ago, and returns their disk space."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def prune(self, ended_before: str) -> bool:
        """Delete a part of the oldest job that ended before a time; return whether there may be more to do.

        A job whose callback is still to be sent is kept until then.

        From the first part on the job has no id and no user, so that it is unknown.  Its row is deleted last: after a
        crash the rest is found, and never belongs to another job with the same key.
        """
        unsent = sa.select(callbacks.c.job).where(callbacks.c.due_at > time.time() - _UNSENT_S)
        is_settled = sa.and_(jobs.c.kind != DELETED, jobs.c.job.not_in(unsent))
        return self._delete_part(jobs.c.completed_at < ended_before, or_if=is_settled)

    def forget(self, job: JobRecord) -> bool:
        """Make an ended job unknown, so that `purge` deletes it; False if it is gone or was reopened."""
        with self._database.transaction() as connection:
            same = sa.and_(jobs.c.id == job.id, jobs.c.completed_at.is_not(None))
            return forget(connection, jobs, sa.and_(jobs.c.job == job.key, same))

    def purge(self, key: int | None = None) -> bool:
        """Delete a part of a job that was forgotten, or of any such job; return whether there may be more to do.

        A job whose process stopped while it stored it is one, too.
        """
        return self._delete_part(sa.true() if key is None else jobs.c.job == key)

    def purge_left(self) -> None:
        """Purge what earlier processes have left, between other calls."""
        purge_left(self._database, jobs, self.purge)

    def _delete_part(self, of_these: sa.ColumnElement[bool], or_if: sa.ColumnElement[bool] | None = None) -> bool:
        """Delete a part of the oldest of these jobs that is gone, or that meets another condition."""
        with self._database.transaction() as connection:
            is_deletable = is_gone(self._database, connection, jobs)
            wanted = sa.and_(of_these, is_deletable if or_if is None else sa.or_(is_deletable, or_if))
            # Locked, or of two processes on one database one could take the other's part for the end of the job.
            oldest = sa.select(jobs.c.job).where(wanted).order_by(jobs.c.job).limit(1)
            key = connection.execute(oldest.with_for_update(skip_locked=True)).scalar()
            if key is None:
                return False
            forget(connection, jobs, jobs.c.job == key)
            parts = [table for table in metadata.sorted_tables if "job" in table.c and table is not jobs]
            if not any(_delete_part(connection, table, key) for table in parts):
                connection.execute(sa.delete(jobs).where(jobs.c.job == key))
        return True

    def shrink(self) -> bool:
        """Return a part of the space of deleted rows to the disk; return whether there is more."""
        with self._database.translate_errors():
            return self._database.backend.shrink()


def _delete_part(connection: sa.Connection, table: sa.Table, key: int) -> bool:
    """Delete rows of a job, about one page of them; False if there are none."""
    of_job = table.c.job == key
    if "idx" not in table.c:
        return connection.execute(sa.delete(table).where(of_job)).rowcount > 0
    last, budget = None, PAGE_BYTES
    for index, size in connection.execute(_sizes(table).where(of_job)):
        last, budget = index, budget - size
        if budget <= 0:
            break
    if last is None:
        return False
    connection.execute(sa.delete(table).where(of_job, table.c.idx <= last))
    return True


def _sizes(table: sa.Table) -> sa.Select[Any]:
    blobs = [column for column in table.c if isinstance(column.type, sa.LargeBinary)]
    size: Any = sum((sa.func.coalesce(sa.func.length(column), 0) for column in blobs), sa.literal(0))
    return sa.select(table.c.idx, size).order_by(table.c.idx).limit(CHUNK)

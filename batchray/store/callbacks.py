"""The callback outbox: callbacks still to be sent, and the result of the newest attempt at each."""

from __future__ import annotations

from typing import Any, NamedTuple

import sqlalchemy as sa

from batchray.store.database import Database
from batchray.store.leases import Leases
from batchray.store.records import JobRecord, job_record
from batchray.store.tables import DELETED, callbacks, jobs, leases


class DueCallback(NamedTuple):
    """A callback that is due, with its job as it is now."""

    job: JobRecord
    n_attempts: int


class Callbacks:
    """The callback outbox.  `Jobs.end` writes a row in the transaction that ends the job."""

    def __init__(self, database: Database, leases: Leases) -> None:
        self._database, self._leases = database, leases

    def due(self, now: float, limit: int) -> list[DueCallback]:
        """Return the callbacks that are due, longest overdue first.  `now` is Unix time."""
        with self._database.reading() as connection:
            return _due(connection, _due_query(now, limit))

    def claim(self, now: float, limit: int) -> list[DueCallback]:
        """Return the due callbacks that this process may send, on a shared database, and take their leases."""
        with self._database.transaction() as connection:
            ours = self._leases.claim_callbacks(connection, now, limit)
            query = _due_query(now, limit).join(leases, leases.c.job == jobs.c.job).where(ours)
            return _due(connection, query)

    def next_due_at(self) -> float | None:
        """Return when the next callback is due, in Unix time; None if there is none."""
        with self._database.reading() as connection:
            return connection.execute(sa.select(sa.func.min(callbacks.c.due_at))).scalar()

    def count(self) -> int:
        """Return how many callbacks are still to be delivered."""
        with self._database.reading() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(callbacks)).scalar_one()

    def record(
        self,
        job_id: str,
        completed_at: str,
        *,
        sent_at: str,
        status_code: int | None,
        error: str | None,
        next_at: float | None,
    ) -> None:
        """Store the result of an attempt and when the next one is due; None: nothing more is sent.

        If the job was reopened after the end that the callback reports, nothing is stored: its next end has a callback
        of its own.
        """
        with self._database.transaction() as connection:
            same_end = sa.and_(jobs.c.id == job_id, jobs.c.completed_at == completed_at)
            job = sa.select(jobs.c.job).where(same_end).scalar_subquery()
            connection.execute(
                sa.update(jobs)
                .where(same_end)
                .values(callback_sent_at=sent_at, callback_status_code=status_code, callback_error=error)
            )
            if next_at is None:
                connection.execute(sa.delete(callbacks).where(callbacks.c.job == job))
            else:
                connection.execute(
                    sa.update(callbacks)
                    .where(callbacks.c.job == job)
                    .values(due_at=next_at, n_attempts=callbacks.c.n_attempts + 1)
                )


def _due_query(now: float, limit: int) -> sa.Select[Any]:
    return (
        sa.select(jobs, callbacks.c.n_attempts)
        .join(callbacks, callbacks.c.job == jobs.c.job)
        .where(callbacks.c.due_at <= now, jobs.c.kind != DELETED)
        .order_by(callbacks.c.due_at)
        .limit(limit)
    )


def _due(connection: sa.Connection, query: sa.Select[Any]) -> list[DueCallback]:
    rows = [dict(row) for row in connection.execute(query).mappings()]
    return [DueCallback(n_attempts=row.pop("n_attempts"), job=job_record(row)) for row in rows]

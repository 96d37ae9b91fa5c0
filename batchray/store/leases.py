"""Who leads a job: one process at a time, until its lease runs out."""

from __future__ import annotations

from typing import Any

import orjson
import sqlalchemy as sa

from batchray.errors import LeaseLostError
from batchray.store.database import Database
from batchray.store.records import JobRecord
from batchray.store.tables import callbacks, jobs, leases

LEASE_S = 15.0
"""How long a leader may be silent before another takes over; it renews three times in that time."""
_SENDING_S = 60.0
"""How long a callback is left to the server that has begun to send it; longer than an attempt takes."""


class Leases:
    """Which process may run a job, and until when.

    A shared database takes, renews and expires leases by the database's clock.  A data directory has one process at a
    time: there a lease only counts its leaders, so that late writes of an earlier one are refused.
    """

    def __init__(self, database: Database, leader: str, duration_s: float = LEASE_S) -> None:
        self._database, self.leader, self.duration_s = database, leader, duration_s

    def renew(self, job: JobRecord) -> dict[str, Any]:
        """Renew a lease; returns what others ask of the job's leader.  Raises LeaseLostError where another has it."""
        mine = sa.and_(leases.c.job == job.key, leases.c.epoch == job.epoch)
        with self._database.transaction() as connection:
            until = self._database.backend.now(connection) + self.duration_s
            renewed = connection.execute(sa.update(leases).where(mine).values(until=until))
            if not renewed.rowcount:
                raise LeaseLostError(job.id)
            wishes = connection.execute(sa.select(leases.c.wishes).where(mine)).scalar_one()
        return orjson.loads(wishes)  # type: ignore[no-any-return]

    def requested(self, job: JobRecord) -> dict[str, Any]:
        """Return what others ask of the job's leader, without renewing its lease; otherwise as `renew_lease`."""
        query = sa.select(leases.c.wishes).where(leases.c.job == job.key, leases.c.epoch == job.epoch)
        with self._database.reading() as connection:
            wishes = connection.execute(query).scalar()
        if wishes is None:
            raise LeaseLostError(job.id)
        return orjson.loads(wishes)  # type: ignore[no-any-return]

    def release(self, job: JobRecord) -> None:
        """Let another process go on with a job at once.  Of one that has ended the callback is still ours to send."""
        unended = sa.select(jobs.c.job).where(jobs.c.job == job.key, jobs.c.completed_at.is_(None))
        with self._database.transaction() as connection:
            connection.execute(
                sa.update(leases).where(leases.c.job.in_(unended), leases.c.epoch == job.epoch).values(until=0.0)
            )

    def request(self, job: JobRecord, **wishes: Any) -> None:
        """Add to what is asked of a job's leader, who hears of it within a second; or else the next leader does.

        A job that was started here is asked as long as it is led here: what was for that run is not for a later one.
        """
        this = leases.c.job == job.key
        if job.epoch:
            this &= leases.c.epoch == job.epoch
        with self._database.transaction() as connection:
            asked = connection.execute(sa.select(leases.c.wishes).where(this).with_for_update()).scalar()
            merged = orjson.dumps({**orjson.loads(asked or b"{}"), **wishes})
            connection.execute(sa.update(leases).where(this).values(wishes=merged))

    def running_job_ids(self) -> set[str]:
        """Return the ids of the jobs that a process leads now."""
        with self._database.reading() as connection:
            query = sa.select(jobs.c.id).join(leases, leases.c.job == jobs.c.job)
            live = leases.c.until > self._database.backend.now(connection)
            return set(connection.execute(query.where(jobs.c.completed_at.is_(None), live)).scalars())

    def reserve(self, connection: sa.Connection, key: int) -> None:
        """Leave a job that is to run to this process, for as long as a lease lasts; then to whoever comes first.

        What an earlier leader still hands in is refused from now on, and what was asked of it is not for this run.
        """
        until = self._database.backend.now(connection) + self.duration_s
        values = {"epoch": leases.c.epoch + 1, "leader": self.leader, "until": until, "wishes": b"{}"}
        connection.execute(sa.update(leases).where(leases.c.job == key).values(**values))

    def lock(self, connection: sa.Connection, job_id: str) -> sa.Row[Any] | None:
        """Return a job's lease, which is then nobody else's to change.

        Whoever changes both locks it before the job's row: in another order, two of them would wait for each other.
        """
        of_job = sa.select(jobs.c.job).where(jobs.c.id == job_id).scalar_subquery()
        return connection.execute(sa.select(leases).where(leases.c.job == of_job).with_for_update()).first()

    def take(self, connection: sa.Connection, job: JobRecord, held: sa.Row[Any] | None) -> int:
        """Lead a job, whose lease is locked, and return the epoch.  Raises LeaseLostError.

        A cancel stays that an earlier leader was asked for, and may not have heard of; the rest was for that one only.
        """
        now = self._database.backend.now(connection)
        if held is not None and self._database.is_shared and held.until > now and held.leader != self.leader:
            raise LeaseLostError(job.id)
        values: dict[str, Any] = {"leader": self.leader, "until": now + self.duration_s}
        if held is None:  # a job of before there were leases
            connection.execute(sa.insert(leases).values(job=job.key, epoch=1, wishes=b"{}", **values))
            return 1
        asked = orjson.loads(held.wishes)
        values["wishes"] = orjson.dumps({name: wish for name, wish in asked.items() if name == "is_canceled"})
        connection.execute(sa.update(leases).where(leases.c.job == job.key).values(epoch=held.epoch + 1, **values))
        return int(held.epoch) + 1

    def check(self, connection: sa.Connection, job: JobRecord) -> None:
        """Raise LeaseLostError where another leads a job that this process once led."""
        if job.epoch:
            query = sa.select(leases.c.epoch).where(leases.c.job == job.key).with_for_update()
            if connection.execute(query).scalar() != job.epoch:
                raise LeaseLostError(job.id)

    def claim_callbacks(self, connection: sa.Connection, due_at: float, limit: int) -> sa.ColumnElement[bool]:
        """Take the leases of ended jobs whose callbacks are due and that nobody sends; returns which are ours."""
        now = self._database.backend.now(connection)
        due = sa.select(callbacks.c.job).where(callbacks.c.due_at <= due_at).order_by(callbacks.c.due_at).limit(limit)
        free = sa.or_(leases.c.leader == self.leader, leases.c.until <= now)
        connection.execute(
            sa.update(leases).where(leases.c.job.in_(due), free).values(leader=self.leader, until=now + _SENDING_S)
        )
        return sa.and_(leases.c.leader == self.leader, leases.c.until > now)

"""Leases: one process at a time leads a job, until its lease expires."""

from __future__ import annotations

from typing import Any

import orjson
import sqlalchemy as sa

from batchray.errors import LeaseLostError
from batchray.store.database import Database
from batchray.store.records import JobRecord, LedJob
from batchray.store.tables import callbacks, jobs, leases

LEASE_S = 15.0
"""How long a leader may be silent before another takes over.  It renews three times in that time."""
_SENDING_S = 60.0
"""How long a callback belongs to the server that has begun to send it; longer than an attempt takes."""

_LOCKED_EPOCH = sa.select(leases.c.epoch).where(leases.c.job == sa.bindparam("of_job")).with_for_update()


class Leases:
    """Which process may run a job, and until when.

    A shared database takes, renews and expires leases by the database's clock.  A data directory has one process at a
    time: there a lease only counts its leaders, so that late writes of an earlier one are refused.
    """

    def __init__(self, database: Database, leader: str, duration_s: float = LEASE_S) -> None:
        self._database, self.leader, self.duration_s = database, leader, duration_s

    def renew(self, job: LedJob) -> dict[str, Any]:
        """Renew a lease, and return what is asked of the job's leader.  Raises LeaseLostError if another has it."""
        with self._database.transaction() as connection:
            until = self._database.backend.now(connection) + self.duration_s
            renewed = connection.execute(sa.update(leases).where(_is_held(job)).values(until=until))
            if not renewed.rowcount:
                raise LeaseLostError(job.id)
            requests = connection.execute(sa.select(leases.c.control_requests).where(_is_held(job))).scalar_one()
        return orjson.loads(requests)  # type: ignore[no-any-return]

    def requested(self, job: LedJob) -> dict[str, Any]:
        """Return what is asked of the job's leader without renewing the lease; otherwise as `renew`."""
        with self._database.reading() as connection:
            requests = connection.execute(sa.select(leases.c.control_requests).where(_is_held(job))).scalar()
        if requests is None:
            raise LeaseLostError(job.id)
        return orjson.loads(requests)  # type: ignore[no-any-return]

    def asked(self, job: JobRecord) -> dict[str, Any]:
        """Return what is asked of the job's leader, whichever process that is."""
        with self._database.reading() as connection:
            query = sa.select(leases.c.control_requests).where(leases.c.job == job.key)
            return orjson.loads(connection.execute(query).scalar() or b"{}")  # type: ignore[no-any-return]

    def release(self, job: LedJob) -> None:
        """Expire a lease, so that another process can take the job at once.  An ended job keeps its callback here."""
        unended = sa.select(jobs.c.job).where(jobs.c.job == job.key, jobs.c.completed_at.is_(None))
        with self._database.transaction() as connection:
            connection.execute(
                sa.update(leases).where(leases.c.job.in_(unended), leases.c.epoch == job.epoch).values(until=0.0)
            )

    def request(self, job: JobRecord, **requests: Any) -> None:
        """Add to what is asked of a job's leader.  It reads that within a second; if there is none, the next one does.

        With a `LedJob` only its own lease is asked: a request for this run is not for a later one.
        """
        this = _is_held(job) if isinstance(job, LedJob) else leases.c.job == job.key
        with self._database.transaction() as connection:
            asked = connection.execute(sa.select(leases.c.control_requests).where(this).with_for_update()).scalar()
            merged = orjson.dumps({**orjson.loads(asked or b"{}"), **requests})
            connection.execute(sa.update(leases).where(this).values(control_requests=merged))

    def running_job_ids(self) -> set[str]:
        """Return the ids of the jobs that a process leads now."""
        with self._database.reading() as connection:
            query = sa.select(jobs.c.id).join(leases, leases.c.job == jobs.c.job)
            live = leases.c.until > self._database.backend.now(connection)
            return set(connection.execute(query.where(jobs.c.completed_at.is_(None), live)).scalars())

    def reserve(self, connection: sa.Connection, key: int) -> None:
        """Reserve a job for this process until the lease expires, before any process has started it.

        Late writes of an earlier leader are refused from now on.  Requests to that leader are dropped.
        """
        until = self._database.backend.now(connection) + self.duration_s
        values = {"epoch": leases.c.epoch + 1, "leader": self.leader, "until": until, "control_requests": b"{}"}
        connection.execute(sa.update(leases).where(leases.c.job == key).values(**values))

    def offer(self, job_id: str) -> None:
        """Give up this process's reservation of a job that it cannot start now, so that any process may start it."""
        with self._database.transaction() as connection:
            held = self.lock(connection, job_id)
            unstarted = sa.select(jobs.c.job).where(jobs.c.id == job_id, jobs.c.status == "created")
            job = connection.execute(unstarted).scalar()
            if held is not None and held.leader == self.leader and job is not None:
                connection.execute(sa.update(leases).where(leases.c.job == job).values(until=0.0))

    def lock(self, connection: sa.Connection, job_id: str) -> sa.Row[Any] | None:
        """Lock a job's lease for the rest of the transaction and return it; None if there is no such job.

        A transaction that changes both locks the lease before the job's row: the other order could deadlock.
        """
        of_job = sa.select(jobs.c.job).where(jobs.c.id == job_id).scalar_subquery()
        return connection.execute(sa.select(leases).where(leases.c.job == of_job).with_for_update()).first()

    def take(self, connection: sa.Connection, job: JobRecord, held: sa.Row[Any]) -> LedJob:
        """Take a job's locked lease.  Raises LeaseLostError while another process has it.

        A cancel stays in force: the earlier leader may not have read it.  Other requests were for that leader only.
        """
        now = self._database.backend.now(connection)
        if self._database.is_shared and held.until > now and held.leader != self.leader:
            raise LeaseLostError(job.id)
        asked = orjson.loads(held.control_requests)
        values = {
            "epoch": held.epoch + 1,
            "leader": self.leader,
            "until": now + self.duration_s,
            "control_requests": orjson.dumps({name: asked[name] for name in asked if name == "is_canceled"}),
        }
        connection.execute(sa.update(leases).where(leases.c.job == job.key).values(**values))
        return LedJob.of(job, held.epoch + 1)

    def check(self, connection: sa.Connection, job: LedJob) -> None:
        """Fence a write: lock the lease, and raise LeaseLostError if another process has taken it."""
        if connection.execute(_LOCKED_EPOCH, {"of_job": job.key}).scalar() != job.epoch:
            raise LeaseLostError(job.id)

    def claim_callbacks(self, connection: sa.Connection, due_at: float, limit: int) -> sa.ColumnElement[bool]:
        """Take the leases of ended jobs whose callbacks are due and not being sent; returns which are ours."""
        now = self._database.backend.now(connection)
        due = sa.select(callbacks.c.job).where(callbacks.c.due_at <= due_at).order_by(callbacks.c.due_at).limit(limit)
        free = sa.or_(leases.c.leader == self.leader, leases.c.until <= now)
        connection.execute(
            sa.update(leases).where(leases.c.job.in_(due), free).values(leader=self.leader, until=now + _SENDING_S)
        )
        return sa.and_(leases.c.leader == self.leader, leases.c.until > now)


def _is_held(job: LedJob) -> sa.ColumnElement[bool]:
    """Select a job's lease if it has not been taken since."""
    return sa.and_(leases.c.job == job.key, leases.c.epoch == job.epoch)

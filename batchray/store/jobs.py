"""Jobs: created whole or not at all, started, ended once, reopened, listed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
import sqlalchemy as sa

from batchray.errors import JobEndedError, JobNotEndedError, UnknownJobError
from batchray.schema.progress import Progress
from batchray.store.creation import Creation
from batchray.store.database import Database, chunks
from batchray.store.leases import Leases
from batchray.store.queries import between, starts_with
from batchray.store.records import (
    CarriedColumns,
    ItemPage,
    JobRecord,
    LedJob,
    NewItem,
    NewJob,
    SortOrder,
    job_record,
    utc_now,
)
from batchray.store.tables import (
    DELETED,
    callbacks,
    checkpoints,
    jobs,
    leases,
    reopenings,
    run_options,
)
from batchray.store.tallies import forget_failures
from batchray.store.turns import end_turns
from batchray.store.unseen import PIECE_BYTES
from batchray.support.failpoints import failpoint

# Without the agents' settings, which may be long.
_COLUMNS = [column for column in jobs.c if column.name != "agents"]


class Jobs:  # more than 20 methods: one for each query about jobs
    """The jobs table: jobs are created whole, started, ended once, and listed."""

    def __init__(self, database: Database, leases: Leases) -> None:
        self._database, self._leases = database, leases

    def create(self, new: NewJob, new_items: Iterable[NewItem], carried: Iterable[CarriedColumns] = ()) -> int:
        """Create a job with its items and return how many.  They are on disk when this returns.

        `carried` are the rows of the table that the items were made of.  An error of either leaves nothing.  Both are
        iterated on this thread.  A large job is stored in pieces, see `Creation`.

        Raises StoreFullError if the disk is full, KeyInUseError for a second job of one idempotency key, and
        StoreUnavailableError while another process is creating the first one.
        """
        chunked = chunks(new_items, lambda item: len(item.request), PIECE_BYTES)
        return self.create_paged(new, (ItemPage(*zip(*chunk, strict=True)) for chunk in chunked), carried)

    def create_paged(self, new: NewJob, pages: Iterable[ItemPage], carried: Iterable[CarriedColumns] = ()) -> int:
        """Create a job with items that come in pages; otherwise as `create`."""
        self._database.room.check()
        return Creation(self._database, self._leases, new).store(pages, carried)

    def start(self, job_id: str) -> LedJob:
        """Take a job's lease and mark it as running.  Writes of its earlier leaders are refused from now on.

        Raises UnknownJobError, JobEndedError, and LeaseLostError while another process leads it.
        """
        now = utc_now()
        values = {"status": "running", "updated_at": now, "started_at": sa.func.coalesce(jobs.c.started_at, now)}
        return self._take(job_id, {**values, "paused_because": None})

    def pause(self, job: LedJob, reason: str | None) -> None:
        """Store why a job has paused itself; None when it continues.  A start and an end of the job clear it too.

        Raises LeaseLostError if another process leads the job.
        """
        with self._database.transaction() as connection:
            self._leases.check(connection, job)
            end_turns(connection, job)  # of requests whose outcomes are not recorded: they run again
            values = {"paused_because": reason, "updated_at": utc_now()}
            connection.execute(sa.update(jobs).where(jobs.c.job == job.key).values(**values))

    def take_over(self, job_id: str) -> LedJob:
        """Take a job's lease in order to end it, without marking it as running; otherwise as `start`."""
        return self._take(job_id, {"updated_at": utc_now()})

    def _take(self, job_id: str, values: Mapping[str, Any]) -> LedJob:
        with self._database.transaction() as connection:
            held = self._leases.lock(connection, job_id)
            unended = sa.and_(jobs.c.id == job_id, jobs.c.completed_at.is_(None))
            is_unended = connection.execute(sa.update(jobs).where(unended).values(**values)).rowcount > 0
            job = self._job(connection, job_id)
            if not is_unended:
                raise JobEndedError(job_id)
            assert held is not None, "every job has a lease"
            return self._leases.take(connection, job, held)

    def end(
        self, job: LedJob, status: str, stop_reason: str, progress: Progress, ttft_ns: int | None, duration_ns: int
    ) -> JobRecord:
        """End a job and make its callback due, in one transaction.  Ending it again changes nothing.

        Returns the ended job.  Raises LeaseLostError if another process leads it, or has reopened it.
        """
        now = utc_now()
        with self._database.transaction() as connection:
            self._leases.check(connection, job)
            ended = connection.execute(
                sa.update(jobs)
                .where(jobs.c.job == job.key, jobs.c.completed_at.is_(None))
                .values(
                    status=status,
                    stop_reason=stop_reason,
                    paused_because=None,
                    completed_at=now,
                    updated_at=now,
                    ttft_ns=ttft_ns,
                    total_duration_ns=duration_ns,
                    progress=orjson.dumps(progress.to_dict()),
                )
            )
            if ended.rowcount:
                if job.callback_url is not None:
                    connection.execute(sa.insert(callbacks).values(job=job.key, due_at=time.time()))
                # An outcome deletes its item's checkpoints, except if its agent was replaced by one without steps.
                connection.execute(sa.delete(checkpoints).where(checkpoints.c.job == job.key))
        failpoint("job-ended")
        return self.get(job.id)

    def reopen(self, job_id: str) -> None:
        """Reopen an ended job, to run the items that did not succeed again; what it takes is the same for any job.

        Only this has outcomes deleted, and only when a caller asks: the next leader does so (`Reopenings`).
        Raises UnknownJobError, and JobNotEndedError if the job runs, or another process has just reopened it.
        """
        now = utc_now()
        ended = {"status": "created", "stop_reason": None, "completed_at": None, "progress": None, "updated_at": now}
        with self._database.transaction() as connection:
            job = self._job(connection, job_id)
            self._leases.reserve(connection, job.key)  # before the job's row, see `Leases.lock`
            this = sa.and_(jobs.c.job == job.key, jobs.c.completed_at.is_not(None), jobs.c.kind != DELETED)
            if not connection.execute(sa.update(jobs).where(this).values(**ended)).rowcount:
                raise JobNotEndedError(self._job(connection, job_id).id)
            forget_failures(connection, job)
            connection.execute(sa.delete(callbacks).where(callbacks.c.job == job.key))
            connection.execute(sa.delete(reopenings).where(reopenings.c.job == job.key))
            last_seq = sa.select(jobs.c.last_seq).where(jobs.c.job == job.key).scalar_subquery()
            new = {"job": job.key, "reopened_at": now, "failed_until_seq": last_seq}
            connection.execute(sa.insert(reopenings).values(**new))

    def run_options(self, job_id: str) -> dict[str, Any]:
        """Return the options of a job's last run; empty for a job of a server or of an older version."""
        query = sa.select(run_options.c.options).join(jobs, jobs.c.job == run_options.c.job)
        with self._database.reading() as connection:
            return orjson.loads(connection.execute(query.where(jobs.c.id == job_id)).scalar() or b"{}")  # type: ignore[no-any-return]

    def set_run_options(self, job_id: str, options: Mapping[str, Any]) -> None:
        """Replace the options of a job's last run."""
        with self._database.transaction() as connection:
            key = self._job(connection, job_id).key
            connection.execute(sa.delete(run_options).where(run_options.c.job == key))
            connection.execute(sa.insert(run_options).values(job=key, options=orjson.dumps(options)))

    def opened_at(self, job: JobRecord) -> str:
        """Return when the job was created, or last reopened: its deadline counts from then."""
        query = sa.select(reopenings.c.reopened_at).where(reopenings.c.job == job.key)
        with self._database.reading() as connection:
            return connection.execute(query).scalar() or job.created_at

    def get(self, job_id: str, user_id: str | None = None) -> JobRecord:
        """Return a job; with `user_id`, only of that user.  Raises UnknownJobError."""
        with self._database.reading() as connection:
            return self._job(connection, job_id, user_id)

    def _job(self, connection: sa.Connection, job_id: str, user_id: str | None = None) -> JobRecord:
        query = sa.select(*_COLUMNS).where(jobs.c.id == job_id)
        if user_id is not None:
            query = query.where(jobs.c.user_id == user_id)
        row = connection.execute(query).mappings().first()
        if row is None:
            raise UnknownJobError(job_id, self._database.backend.name)
        return job_record(row)

    def find_by_idempotency_key(self, user_id: str, idempotency_key: str) -> JobRecord | None:
        """Return the job that a user created with this key, or None."""
        query = sa.select(*_COLUMNS).where(jobs.c.user_id == user_id, jobs.c.idempotency_key == idempotency_key)
        with self._database.reading() as connection:
            row = connection.execute(query).mappings().first()
        return job_record(row) if row else None

    def find_by_id_prefix(self, stem: str, user_id: str) -> JobRecord | None:
        """Return a user's job whose id begins with `stem`, or None.

        Ids derived from a job's id contain all of it except the last 12 characters.
        """
        query = sa.select(*_COLUMNS).where(starts_with(jobs.c.id, stem), jobs.c.user_id == user_id)
        with self._database.reading() as connection:
            row = connection.execute(query).mappings().first()
        return job_record(row) if row else None

    def ids_with_prefix(self, prefix: str, limit: int) -> list[str]:
        """Return the ids of jobs that begin with `prefix`, the newest job first."""
        query = sa.select(jobs.c.id).where(jobs.c.kind != DELETED, starts_with(jobs.c.id, prefix))
        with self._database.reading() as connection:
            return list(connection.execute(query.order_by(jobs.c.job.desc()).limit(limit)).scalars())

    def agent_snapshot(self, job_id: str) -> dict[str, Any]:
        """Return the settings of a job's agents, as they were when it was created.  Raises UnknownJobError."""
        with self._database.reading() as connection:
            kept = connection.execute(sa.select(jobs.c.agents).where(jobs.c.id == job_id)).scalar()
        if kept is None:
            raise UnknownJobError(job_id, self._database.backend.name)
        return orjson.loads(kept)  # type: ignore[no-any-return]

    def find(
        self,
        *,
        user_id: str | None = None,
        kind: str | None = None,
        agent_id: str | None = None,
        order: SortOrder = "asc",
        after: int | None = None,
        before: int | None = None,
        limit: int | None = None,
        is_active: bool = False,
    ) -> list[JobRecord]:
        """Return jobs in the order of their creation.  `after` and `before` are keys, in that order too.

        If `is_active`, only those that have not ended.
        """
        query = sa.select(*_COLUMNS).where(jobs.c.kind != DELETED).limit(limit)
        query = query.order_by(jobs.c.job if order == "asc" else jobs.c.job.desc())
        for column, wanted in ((jobs.c.user_id, user_id), (jobs.c.kind, kind), (jobs.c.agent_id, agent_id)):
            query = query if wanted is None else query.where(column == wanted)
        query = query.where(jobs.c.completed_at.is_(None)) if is_active else query
        query = between(query, jobs.c.job, order, after, before)
        with self._database.reading() as connection:
            return [job_record(row) for row in connection.execute(query).mappings()]

    def unended(self) -> list[JobRecord]:
        """Return the jobs that have not ended and that no other process leads, oldest first."""
        query = sa.select(*_COLUMNS).where(jobs.c.completed_at.is_(None)).order_by(jobs.c.job)
        with self._database.reading() as connection:
            if self._database.is_shared:
                led = sa.select(leases.c.job).where(leases.c.until > self._database.backend.now(connection))
                query = query.where(jobs.c.job.not_in(led))
            return [job_record(row) for row in connection.execute(query).mappings()]

    def count_by_status(self) -> dict[str, int]:
        """Return the number of jobs by status."""
        query = sa.select(jobs.c.status, sa.func.count().label("n_jobs")).where(jobs.c.kind != DELETED)
        query = query.group_by(jobs.c.status)
        with self._database.reading() as connection:
            return {row.status: row.n_jobs for row in connection.execute(query)}

"""Jobs in the store: created whole or not at all, started, ended once, listed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, count, repeat
from typing import Any

import orjson
import sqlalchemy as sa

from batchray.errors import UnknownJobError
from batchray.progress import STATUSES, Progress
from batchray.store.database import Database, chunks
from batchray.store.records import ItemPage, JobRecord, NewItem, NewJob, Order, job_record, utc_now
from batchray.store.tables import attempts, callbacks, jobs, outcomes

# What a list of jobs does not need: the agents' settings may be long.
_COLUMNS = [column for column in jobs.c if column.name != "agents"]
# By hand and many rows at once: compiling, mappings, and a statement for each row cost more than SQLite itself.
_ROWS_AT_ONCE = 100
_INSERT_ITEM = "INSERT INTO items (job, idx, agent_id, custom_id, request) VALUES (?, ?, ?, ?, ?)"
_INSERT_ITEMS = _INSERT_ITEM + ", (?, ?, ?, ?, ?)" * (_ROWS_AT_ONCE - 1)


class Jobs(Database):
    """What the store knows of jobs as wholes."""

    def create_job(self, new: NewJob, new_items: Iterable[NewItem]) -> int:
        """Create a job with its items in one transaction and return how many; on disk when this returns.

        What `new_items` raises undoes it all.
        """
        chunked = chunks(new_items, lambda item: len(item.request))
        return self.create_large_job(new, (ItemPage(*zip(*chunk, strict=True)) for chunk in chunked))

    def create_large_job(self, new: NewJob, pages: Iterable[ItemPage]) -> int:
        """Create a job with items that come by the page; otherwise as `create_job`."""
        now, total, agent_ids = utc_now(), 0, set[str]()
        with self._checkpoint_later(), self._transaction() as connection:
            job = connection.execute(
                sa.insert(jobs).values(
                    id=new.id,
                    kind=new.kind,
                    user_id=new.user_id,
                    agent_id=new.agent_id,
                    status="created",
                    created_at=now,
                    updated_at=now,
                    callback_url=new.callback_url,
                    idempotency_key=new.idempotency_key,
                    body_digest=new.body_digest,
                    agents=b"{}",
                )
            ).inserted_primary_key[0]  # type: ignore[index]
            for page in pages:
                _insert_items(connection, list(zip(repeat(job), count(total), *page, strict=False)))
                agent_ids.update(page.agent_ids)
                total += len(page.requests)
            snapshot = orjson.dumps(new.snapshot(agent_ids))
            connection.execute(sa.update(jobs).where(jobs.c.job == job).values(total=total, agents=snapshot))
        return total

    def start_job(self, job_id: str) -> JobRecord:
        """Mark a job as running and return it."""
        with self._transaction() as connection:
            now = utc_now()
            connection.execute(
                sa.update(jobs)
                .where(jobs.c.id == job_id, jobs.c.completed_at.is_(None))
                .values(status="running", updated_at=now, started_at=sa.func.coalesce(jobs.c.started_at, now))
            )
        return self.job(job_id)

    def end_job(
        self, job_id: str, status: str, stop_reason: str, progress: Progress, ttft_ns: int | None, duration_ns: int
    ) -> JobRecord:
        """Write a job's end, once, and with it that its callback is due; a second end changes nothing.

        Returns the job as it then is.
        """
        now = utc_now()
        with self._transaction() as connection:
            ended = connection.execute(
                sa.update(jobs)
                .where(jobs.c.id == job_id, jobs.c.completed_at.is_(None))
                .values(
                    status=status,
                    stop_reason=stop_reason,
                    completed_at=now,
                    updated_at=now,
                    ttft_ns=ttft_ns,
                    total_duration_ns=duration_ns,
                    progress=orjson.dumps(progress.to_dict()),
                )
            )
            if ended.rowcount:
                due = sa.select(jobs.c.job, sa.literal(time.time()), sa.literal(0)).where(
                    jobs.c.id == job_id, jobs.c.callback_url.is_not(None)
                )
                connection.execute(sa.insert(callbacks).from_select(["job", "due_at", "n_attempts"], due))
        return self.job(job_id)

    def reopen(self, job_id: str) -> int:
        """Forget the outcomes of an ended job that did not succeed, so that it can go on; returns how many.

        The one way in which an outcome goes, and only when the caller asks for it.
        """
        job = self.job(job_id)
        with self._transaction() as connection:
            failed = sa.and_(outcomes.c.job == job.key, outcomes.c.status != "succeeded")
            again = sa.select(outcomes.c.idx).where(failed)
            connection.execute(
                sa.update(attempts).where(attempts.c.job == job.key, attempts.c.idx.in_(again)).values(deaths=0)
            )
            n_forgotten = connection.execute(sa.delete(outcomes).where(failed)).rowcount
            connection.execute(sa.delete(callbacks).where(callbacks.c.job == job.key))
            connection.execute(
                sa.update(jobs)
                .where(jobs.c.job == job.key)
                .values(
                    status="created",
                    updated_at=utc_now(),
                    stop_reason=None,
                    completed_at=None,
                    progress=None,
                    **{status: 0 for status in STATUSES if status != "succeeded"},
                    **_sum_tokens(connection, job),
                )
            )
        return n_forgotten

    def job(self, job_id: str, user_id: str | None = None) -> JobRecord:
        """Return a job; of this user, where one is given.  Raises UnknownJobError."""
        query = sa.select(*_COLUMNS).where(jobs.c.id == job_id)
        if user_id is not None:
            query = query.where(jobs.c.user_id == user_id)
        with self._reading() as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            raise UnknownJobError(job_id, str(self.data_dir))
        return job_record(row)

    def job_of_key(self, user_id: str, idempotency_key: str) -> JobRecord | None:
        """Return the job that a user made with this key."""
        query = sa.select(*_COLUMNS).where(jobs.c.user_id == user_id, jobs.c.idempotency_key == idempotency_key)
        with self._reading() as connection:
            row = connection.execute(query).mappings().first()
        return job_record(row) if row else None

    def job_like(self, stem: str, user_id: str) -> JobRecord | None:
        """Return a user's job whose id starts so; ids derived from a job's have all but its last 12 characters."""
        query = sa.select(*_COLUMNS).where(jobs.c.id.between(stem, f"{stem}~"), jobs.c.user_id == user_id)
        with self._reading() as connection:
            row = connection.execute(query).mappings().first()
        return job_record(row) if row else None

    def agent_snapshot(self, job_id: str) -> dict[str, Any]:
        """Return the settings of a job's agents, as its creation kept them."""
        with self._reading() as connection:
            kept = connection.execute(sa.select(jobs.c.agents).where(jobs.c.id == job_id)).scalar_one()
        return orjson.loads(kept)  # type: ignore[no-any-return]

    def jobs(
        self,
        *,
        user_id: str | None = None,
        kind: str | None = None,
        agent_id: str | None = None,
        order: Order = "asc",
        after: int | None = None,
        before: int | None = None,
        limit: int | None = None,
    ) -> list[JobRecord]:
        """Return jobs in the order of their creation; `after` and `before` are keys, in that order too."""
        query = sa.select(*_COLUMNS).limit(limit)
        query = query.order_by(jobs.c.job if order == "asc" else jobs.c.job.desc())
        for column, wanted in ((jobs.c.user_id, user_id), (jobs.c.kind, kind), (jobs.c.agent_id, agent_id)):
            query = query if wanted is None else query.where(column == wanted)
        query = between(query, jobs.c.job, order, after, before)
        with self._reading() as connection:
            return [job_record(row) for row in connection.execute(query).mappings()]

    def unended_jobs(self) -> list[JobRecord]:
        """Return the jobs that have not ended, oldest first."""
        query = sa.select(*_COLUMNS).where(jobs.c.completed_at.is_(None)).order_by(jobs.c.job)
        with self._reading() as connection:
            return [job_record(row) for row in connection.execute(query).mappings()]

    def count_jobs(self) -> dict[str, int]:
        """Return how many jobs there are of each status."""
        query = sa.select(jobs.c.status, sa.func.count().label("n_jobs")).group_by(jobs.c.status)
        with self._reading() as connection:
            return {row.status: row.n_jobs for row in connection.execute(query)}

    @contextmanager
    def _checkpoint_later(self) -> Iterator[None]:
        """Leave the checkpoint to the next transaction: a large job is on disk before it is in the database file."""
        with self._engine.connect() as connection:
            cursor = connection.connection.cursor()
            cursor.execute("PRAGMA wal_autocheckpoint = 0")
            try:
                yield
            finally:
                cursor.execute("PRAGMA wal_autocheckpoint = 1000")


def _insert_items(connection: sa.Connection, rows: list[tuple[Any, ...]]) -> None:
    n_rest = len(rows) % _ROWS_AT_ONCE
    starts = range(0, len(rows) - n_rest, _ROWS_AT_ONCE)
    if many := [tuple(chain.from_iterable(rows[start : start + _ROWS_AT_ONCE])) for start in starts]:
        connection.exec_driver_sql(_INSERT_ITEMS, many)
    if n_rest:
        connection.exec_driver_sql(_INSERT_ITEM, rows[-n_rest:])


def between(
    query: sa.Select[Any], column: sa.ColumnElement[Any], order: Order, after: int | None, before: int | None
) -> sa.Select[Any]:
    """Keep what comes after one value and before another in this order."""
    if order == "desc":
        after, before = before, after
    query = query if after is None else query.where(column > after)
    return query if before is None else query.where(column < before)


def _sum_tokens(connection: sa.Connection, job: JobRecord) -> dict[str, int]:
    sums = {"prompt_tokens": 0, "completion_tokens": 0}
    for (usage,) in connection.execute(sa.select(outcomes.c.usage).where(outcomes.c.job == job.key)):
        for name in sums:
            sums[name] += orjson.loads(usage).get(name, 0)
    return sums

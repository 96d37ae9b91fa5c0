"""What can be said of a database that may be damaged, and what can still be read of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import orjson
import sqlalchemy as sa

from batchray.errors import StoreError
from batchray.schema.progress import STATUSES
from batchray.store.database import Database
from batchray.store.items import Items
from batchray.store.records import JobRecord, StoredResult, job_record
from batchray.store.tables import DELETED, items, jobs, outcomes

T = TypeVar("T")

UNREADABLE = (StoreError, ValueError, TypeError, KeyError)
"""What reading raises of a damaged database: what the database says of it, or whoever reads bytes that are no JSON."""
# What outcomes have to do with; the others are longer, and more likely to be damaged.
_JOB_COLUMNS = [column for column in jobs.c if column.name not in ("agents", "progress")]
_NO_REQUEST = orjson.dumps({"agent_id": "unreadable", "input": "unreadable"})


class Counted(NamedTuple):
    """How many there are, and what does not fit together."""

    n_jobs: int
    n_items: int
    n_outcomes: int
    problems: list[str]


class Integrity:
    """Checks a database, and reads what is readable of a damaged one."""

    def __init__(self, database: Database, items: Items) -> None:
        self._database, self._items = database, items

    def check(self) -> Counted:
        """Read all of the database, and count what is in it.  Raises StoreError where not even that can be done."""
        with self._database.reading() as connection:
            problems = self._database.backend.corruption(connection)
            n_jobs = n_items = n_outcomes = 0
            for job in connection.execute(_counts()):
                n_jobs, n_items, n_outcomes = n_jobs + 1, n_items + job.n_items, n_outcomes + job.n_outcomes
                problems += _contradictions(job)
        return Counted(n_jobs, n_items, n_outcomes, problems)

    def readable_jobs(self, lost: Callable[[str], None]) -> Iterator[JobRecord]:
        """Yield the jobs that can be read, without their progress; `lost` hears of those that cannot."""

        def read(first: int, last: int) -> list[JobRecord]:
            query = sa.select(*_JOB_COLUMNS).where(jobs.c.kind != DELETED, jobs.c.job.between(first, last))
            with self._database.reading() as connection:
                rows = connection.execute(query.order_by(jobs.c.job)).mappings()
                return [job_record({**row, "progress": None}) for row in rows]

        last = max(self._last_key(lost, table) for table in (jobs, items, outcomes))
        yield from _in_halves(read, 1, last, lambda key, error: lost(f"the job of key {key}: {error}"))

    def readable_results(self, job: JobRecord, lost: Callable[[str], None]) -> Iterator[StoredResult]:
        """Yield the outcomes of a job that can be read, in index order; `lost` hears of those that cannot."""
        n_read = 0

        def alone(index: int, error: Exception) -> None:
            try:
                unasked.extend(self._outcome_alone(job, index))
            except UNREADABLE:
                lost(f"{job.id}: the outcome of item {index}")

        def read(first: int, last: int) -> list[StoredResult]:
            return self._items.results_between(job, first, last)

        unasked: list[StoredResult] = []
        for result in _in_halves(read, 0, job.total - 1, alone):
            n_read += 1
            yield result
        yield from unasked
        if (n_missing := job.done - n_read - len(unasked)) > 0:
            lost(f"{job.id}: {n_missing:,} of {job.done:,} outcomes")

    def _outcome_alone(self, job: JobRecord, index: int) -> list[StoredResult]:
        """Return an outcome whose request cannot be read."""
        names = ("seq", "attempt", "status", "stop_reason", "queued_ns", "ttft_ns", "duration_ns", "messages")
        query = sa.select(outcomes).where(outcomes.c.job == job.key, outcomes.c.idx == index)
        with self._database.reading() as connection:
            rows = connection.execute(query).mappings().all()
        return [
            StoredResult(
                index=index,
                agent_id="unreadable",
                custom_id=None,
                request=_NO_REQUEST,
                attempts=row["attempt"],
                error=orjson.loads(row["error"]) if row["error"] else None,
                usage=orjson.loads(row["usage"]),
                **{name: row[name] for name in names if name != "attempt"},
            )
            for row in rows
        ]

    def _last_key(self, lost: Callable[[str], None], table: sa.Table) -> int:
        try:
            with self._database.reading() as connection:
                return int(connection.execute(sa.select(sa.func.max(table.c.job))).scalar() or 0)
        except StoreError as error:
            lost(f"the end of the table {table.name}: {error}")
            return 0


def _in_halves(
    read: Callable[[int, int], list[T]], first: int, last: int, lost: Callable[[int, Exception], None]
) -> Iterator[T]:
    """Read a range of keys whole, or, where that fails, its halves, down to single keys."""
    ranges = [(first, last)] if first <= last else []
    while ranges:
        first, last = ranges.pop()
        if last - first >= _PART:
            ranges += [(first + _PART, last), (first, first + _PART - 1)]
            continue
        try:
            found = read(first, last)
        except UNREADABLE as error:
            middle = (first + last) // 2
            if first == last:
                lost(first, error)
            else:
                ranges += [(middle + 1, last), (first, middle)]
        else:
            yield from found


_PART = 64


def _counts() -> sa.Select[Any]:
    def n_of(table: sa.Table) -> Any:
        return sa.select(sa.func.count()).select_from(table).where(table.c.job == jobs.c.job).scalar_subquery()

    done = sum((jobs.c[status] for status in STATUSES), sa.literal(0))
    columns = (jobs.c.id, jobs.c.total, jobs.c.completed_at, jobs.c.status, done.label("done"))
    counted = sa.select(*columns, n_of(items).label("n_items"), n_of(outcomes).label("n_outcomes"))
    return counted.where(jobs.c.kind != DELETED).order_by(jobs.c.job)


def _contradictions(job: Any) -> Iterator[str]:
    if job.n_items != job.total:
        yield f"{job.id}: {job.n_items:,} items where {job.total:,} were accepted"
    if job.n_outcomes != job.done:
        yield f"{job.id}: {job.n_outcomes:,} outcomes where {job.done:,} were counted"
    if job.completed_at is not None and job.n_outcomes != job.n_items:
        yield f"{job.id}: {job.status} with {job.n_items - job.n_outcomes:,} items without an outcome"

"""Checks of a database that may be damaged, and reads of its undamaged parts."""

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
"""Errors of reading a damaged database: those of the database, and of decoding bytes that are not JSON."""
# Without the long columns, which are more likely to be damaged and which results do not need.
_NEWER = ("paused_because", "unused_fields")  # which an older database has not got
_JOB_COLUMNS = [column for column in jobs.c if column.name not in ("agents", "progress", *_NEWER)]
_NO_REQUEST = orjson.dumps({"agent_id": "unreadable", "input": "unreadable"})


class Counted(NamedTuple):
    """The numbers of rows, and a sentence for each contradiction between them."""

    n_jobs: int
    n_items: int
    n_outcomes: int
    problems: list[str]


class Integrity:
    """Checks a database, and reads what is readable of a damaged one."""

    def __init__(self, database: Database, items: Items) -> None:
        self._database, self._items = database, items

    def check(self) -> Counted:
        """Read the whole database and count its rows.  Raises StoreError if even that fails."""
        with self._database.reading() as connection:
            problems = self._database.backend.corruption(connection)
            n_jobs = n_items = n_outcomes = 0
            for job in connection.execute(_counts()):
                n_jobs, n_items, n_outcomes = n_jobs + 1, n_items + job.n_items, n_outcomes + job.n_outcomes
                problems += _contradictions(job)
        return Counted(n_jobs, n_items, n_outcomes, problems)

    def readable_jobs(self, on_unreadable: Callable[[str], None]) -> Iterator[JobRecord]:
        """Yield the readable jobs, without their progress.  `on_unreadable` gets a sentence about each other one."""

        def read(first: int, last: int) -> list[JobRecord]:
            query = sa.select(*_JOB_COLUMNS).where(jobs.c.kind != DELETED, jobs.c.job.between(first, last))
            with self._database.reading() as connection:
                rows = connection.execute(query.order_by(jobs.c.job)).mappings()
                return [job_record({**row, "progress": None, **dict.fromkeys(_NEWER)}) for row in rows]

        last = max(self._last_key(on_unreadable, table) for table in (jobs, items, outcomes))
        yield from _in_halves(read, 1, last, lambda key, error: on_unreadable(f"the job of key {key}: {error}"))

    def readable_results(self, job: JobRecord, on_unreadable: Callable[[str], None]) -> Iterator[StoredResult]:
        """Yield a job's readable outcomes in index order.  `on_unreadable` gets a sentence about each other one."""
        n_read = 0

        def read_alone(index: int, error: Exception) -> None:
            try:
                without_request.extend(self._outcome_alone(job, index))
            except UNREADABLE:
                on_unreadable(f"{job.id}: the outcome of item {index}")

        def read(first: int, last: int) -> list[StoredResult]:
            return self._items.results_between(job, first, last)

        without_request: list[StoredResult] = []
        for result in _in_halves(read, 0, job.total - 1, read_alone):
            n_read += 1
            yield result
        yield from without_request
        if (n_missing := job.done - n_read - len(without_request)) > 0:
            on_unreadable(f"{job.id}: {n_missing:,} of {job.done:,} outcomes")

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

    def _last_key(self, on_unreadable: Callable[[str], None], table: sa.Table) -> int:
        try:
            with self._database.reading() as connection:
                return int(connection.execute(sa.select(sa.func.max(table.c.job))).scalar() or 0)
        except StoreError as error:
            on_unreadable(f"the end of the table {table.name}: {error}")
            return 0


def _in_halves(
    read: Callable[[int, int], list[T]], first: int, last: int, on_unreadable: Callable[[int, Exception], None]
) -> Iterator[T]:
    """Read a range of keys at once, or if that fails its halves, down to single keys."""
    ranges = [(first, last)] if first <= last else []
    while ranges:
        first, last = ranges.pop()
        if last - first >= _RANGE:
            ranges += [(first + _RANGE, last), (first, first + _RANGE - 1)]
            continue
        try:
            found = read(first, last)
        except UNREADABLE as error:
            middle = (first + last) // 2
            if first == last:
                on_unreadable(first, error)
            else:
                ranges += [(middle + 1, last), (first, middle)]
        else:
            yield from found


_RANGE = 64


def _counts() -> sa.Select[Any]:
    def n_of(table: sa.Table) -> Any:
        return sa.select(sa.func.count()).select_from(table).where(table.c.job == jobs.c.job).scalar_subquery()

    done = sum((jobs.c[status] for status in STATUSES), sa.literal(0))
    columns = (jobs.c.id, jobs.c.total, jobs.c.completed_at, jobs.c.status, done.label("done"))
    counted = sa.select(*columns, n_of(items).label("n_items"), n_of(outcomes).label("n_outcomes"))
    return counted.where(jobs.c.kind != DELETED).order_by(jobs.c.job)


def _contradictions(job: Any) -> Iterator[str]:
    if job.n_items != job.total:
        yield f"{job.id}: {job.n_items:,} items, but {job.total:,} were accepted"
    if job.n_outcomes != job.done:
        yield f"{job.id}: {job.n_outcomes:,} outcomes, but {job.done:,} were counted"
    if job.completed_at is not None and job.n_outcomes != job.n_items:
        yield f"{job.id}: {job.status} with {job.n_items - job.n_outcomes:,} items without an outcome"

"""Conditions that several queries share."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from batchray.store.records import JobRecord, SortOrder
from batchray.store.tables import outcomes, reopenings

# Outcomes that are counted at a time, to find the items without one.
_COUNTED = 20_000


def starts_with(column: sa.ColumnElement[Any], stem: str) -> sa.ColumnElement[bool]:
    """Select ids that begin with `stem`, through the index.  Not BETWEEN: PostgreSQL allows no collation in it."""
    return sa.and_(column >= stem, column <= f"{stem}~")


def between(
    query: sa.Select[Any], column: sa.ColumnElement[Any], order: SortOrder, after: int | None, before: int | None
) -> sa.Select[Any]:
    """Restrict a query to what comes after one value and before another in this order."""
    if order == "desc":
        after, before = before, after
    query = query if after is None else query.where(column > after)
    return query if before is None else query.where(column < before)


def before_unfinished(connection: sa.Connection, job: JobRecord, after: int) -> int:
    """Return an index before the next item without an outcome, from `after` on and less than 20,000 before that item.

    To count the outcomes of a range is several times faster than to look for the items without one.
    """
    while after < job.total - 1:
        these = sa.and_(outcomes.c.job == job.key, outcomes.c.idx.between(after + 1, after + _COUNTED))
        counted = sa.select(sa.func.count()).select_from(outcomes).where(these)
        if connection.execute(counted).scalar_one() < _COUNTED:
            break
        after += _COUNTED
    return after


def failed_until_seq(job: JobRecord) -> sa.ColumnElement[int]:
    """Select the last `seq` of the runs of a job before it was reopened: their failed outcomes are not its any more."""
    return _failed_until_seq(job.key)


def is_its_own(job: JobRecord | None = None) -> sa.ColumnElement[bool]:
    """Select the outcomes of a job, or of the job of each outcome, that no retry has given up.

    No reader shows the others: a retry deletes them part by part, and runs their items again.
    """
    until_seq = failed_until_seq(job) if job is not None else _failed_until_seq(outcomes.c.job)
    return sa.or_(outcomes.c.status == "succeeded", outcomes.c.seq > until_seq)


def _failed_until_seq(job: sa.ColumnElement[int] | int) -> sa.ColumnElement[int]:
    reopened = sa.select(reopenings.c.failed_until_seq).where(reopenings.c.job == job).correlate(outcomes)
    return sa.func.coalesce(reopened.scalar_subquery(), 0)

"""Deletes the failed outcomes of a job that was reopened, in transactions so short that other writers hardly wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import orjson
import sqlalchemy as sa

from batchray.schema.progress import STATUSES
from batchray.store.database import PAGE_BYTES, Chunked, Database, n_that_fit
from batchray.store.leases import Leases
from batchray.store.records import JobRecord, LedJob, utc_now
from batchray.store.tables import HAS_FAILED, attempts, jobs, outcomes, reopenings
from batchray.support.failpoints import failpoint

_ROWS = 1_000
_TOKENS = ("prompt_tokens", "completion_tokens")


class Reopenings:
    """The jobs that `Jobs.reopen` has reopened."""

    def __init__(self, database: Database, leases: Leases) -> None:
        self._database, self._leases = database, leases

    def clear(self, job: LedJob) -> Chunked[None]:
        """Delete the outcomes that did not succeed before the job was reopened; its leader does so before all else.

        A job's counts are at any time those of the outcomes that it has.  After a crash the next leader continues.
        Raises LeaseLostError if another process leads the job.
        """
        while self._clear_page(job):
            yield

    def _clear_page(self, job: LedJob) -> bool:
        """Delete the next failed outcomes; return whether there may be more."""
        this = sa.and_(reopenings.c.job == job.key, reopenings.c.is_clearing)
        with self._database.transaction() as connection:
            self._leases.check(connection, job)
            if connection.execute(sa.select(reopenings.c.job).where(this)).first() is None:
                return False
            if page := _failed(connection, job):
                _delete(connection, job, page)
            else:
                connection.execute(sa.update(reopenings).where(this).values(is_clearing=False))
        failpoint("failures-cleared")
        return bool(page)


def _failed(connection: sa.Connection, job: JobRecord) -> Sequence[Any]:
    """Return a page of the outcomes that did not succeed."""
    size = sa.func.length(outcomes.c.messages).label("size")
    query = sa.select(outcomes.c.idx, outcomes.c.status, outcomes.c.usage, size)
    query = query.where(outcomes.c.job == job.key, HAS_FAILED).order_by(outcomes.c.idx).limit(_ROWS)
    rows = connection.execute(query).all()
    return rows[: n_that_fit((row.size for row in rows), PAGE_BYTES)]


def _delete(connection: sa.Connection, job: JobRecord, page: Sequence[Any]) -> None:
    """Delete outcomes, take them out of the job's counts, and forget what crashes their items were blamed for."""
    here = sa.and_(outcomes.c.job == job.key, HAS_FAILED, outcomes.c.idx.between(page[0].idx, page[-1].idx))
    blamed = sa.and_(attempts.c.job == job.key, attempts.c.blamed_crashes > 0)
    blamed = sa.and_(blamed, attempts.c.idx.between(page[0].idx, page[-1].idx))
    again = attempts.c.idx.in_(sa.select(outcomes.c.idx).where(here))
    connection.execute(sa.update(attempts).where(blamed, again).values(blamed_crashes=0))
    connection.execute(sa.delete(outcomes).where(here))
    gone = Counter(row.status for row in page)
    for row in page:
        usage = orjson.loads(row.usage)
        gone.update({name: usage.get(name, 0) for name in _TOKENS})
    values = {name: jobs.c[name] - gone[name] for name in (*STATUSES, *_TOKENS) if gone[name]}
    connection.execute(sa.update(jobs).where(jobs.c.job == job.key).values(updated_at=utc_now(), **values))

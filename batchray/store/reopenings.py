"""Deletes the failed outcomes of a job that was reopened, in transactions so short that other writers hardly wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import orjson
import sqlalchemy as sa

from batchray.schema.progress import STATUSES, TOKENS
from batchray.store.database import PAGE_BYTES, Chunked, Database, n_that_fit
from batchray.store.leases import Leases
from batchray.store.queries import failed_until_seq
from batchray.store.records import JobRecord, LedJob, utc_now
from batchray.store.tables import HAS_FAILED, attempts, jobs, outcomes, reopenings
from batchray.support.failpoints import failpoint

_ROWS = 1_000


class Reopenings:
    """The jobs that `Jobs.reopen` has reopened: what is left of their failed items' outcomes is deleted by a leader.

    That takes long if there are many.  It goes in index order, so that items run again as soon as theirs are gone.
    """

    def __init__(self, database: Database, leases: Leases) -> None:
        self._database, self._leases = database, leases

    def clear(self, job: LedJob) -> Chunked[None]:
        """Delete all failed outcomes of the job's earlier runs, part by part."""
        after = -1
        while (last := self.clear_part(job, after)) is not None:
            after = last
            yield

    def clear_part(self, job: LedJob, after: int) -> int | None:
        """Delete failed outcomes of the job's earlier runs, of the next items behind the one with the index `after`.

        Returns the index of the last of these items, and None if there are no such outcomes any more.  The job's counts
        are at any time those of the outcomes that it has.  Raises LeaseLostError if another process leads the job.
        """
        with self._database.transaction() as connection:
            self._leases.check(connection, job)
            if not (until_seq := connection.execute(sa.select(failed_until_seq(job))).scalar_one()):
                return None
            of_earlier = sa.and_(outcomes.c.job == job.key, HAS_FAILED, outcomes.c.seq <= until_seq)
            page = _next(connection, sa.and_(of_earlier, outcomes.c.idx > after))
            if not page:
                _forget(connection, job)
                return None
            _delete(connection, job, page, of_earlier)
        failpoint("failures-cleared")
        return int(page[-1].idx)


def _forget(connection: sa.Connection, job: JobRecord) -> None:
    """Forget what was to be deleted: the next start of the job need not look for it."""
    connection.execute(sa.update(reopenings).where(reopenings.c.job == job.key).values(failed_until_seq=0))


def _next(connection: sa.Connection, wanted: sa.ColumnElement[bool]) -> Sequence[Any]:
    """Return a page of outcomes in index order."""
    size = sa.func.length(outcomes.c.messages).label("size")
    query = sa.select(outcomes.c.idx, outcomes.c.status, outcomes.c.usage, size).where(wanted)
    rows = connection.execute(query.order_by(outcomes.c.idx).limit(_ROWS)).all()
    return rows[: n_that_fit((row.size for row in rows), PAGE_BYTES)]


def _delete(connection: sa.Connection, job: JobRecord, page: Sequence[Any], of_earlier: sa.ColumnElement[bool]) -> None:
    """Delete outcomes, take them out of the job's counts, and forget what crashes their items were blamed for."""
    here = sa.and_(of_earlier, outcomes.c.idx.between(page[0].idx, page[-1].idx))
    blamed = sa.and_(attempts.c.job == job.key, attempts.c.blamed_crashes > 0)
    blamed = sa.and_(blamed, attempts.c.idx.between(page[0].idx, page[-1].idx))
    again = attempts.c.idx.in_(sa.select(outcomes.c.idx).where(here))
    connection.execute(sa.update(attempts).where(blamed, again).values(blamed_crashes=0))
    connection.execute(sa.delete(outcomes).where(here))
    gone = Counter(row.status for row in page)
    for row in page:
        usage = orjson.loads(row.usage)
        gone.update({name: usage.get(name, 0) for name in TOKENS})
    values = {name: jobs.c[name] - gone[name] for name in (*STATUSES, *TOKENS) if gone[name]}
    connection.execute(sa.update(jobs).where(jobs.c.job == job.key).values(updated_at=utc_now(), **values))

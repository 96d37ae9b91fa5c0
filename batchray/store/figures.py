"""Queries for reports and plots: what is known of outcomes without their requests and messages.

`until_seq` is the last outcome that a query reads, that of a tally, so that all of a report is of one moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa

from batchray.store.database import CHUNK, Database
from batchray.store.queries import failed_until_seq, is_its_own
from batchray.store.records import JobRecord
from batchray.store.tables import HAS_FAILED, same_item
from batchray.store.tables import items as _items
from batchray.store.tables import jobs as _jobs
from batchray.store.tables import outcomes as _outcomes

# Different values that are counted at a time.
_MAX_COUNTED = 20_000


@dataclass(slots=True)  # not frozen: a report makes one for each failure
class OutcomeFigures:
    """How an item ended.  `error` is JSON; times are as in `StoredResult`."""

    index: int
    agent_id: str
    custom_id: str | None
    status: str
    stop_reason: str
    error: bytes | None
    ttft_ns: int | None
    duration_ns: int


class Figures:
    """Reads the figures of a job's outcomes, in pages if there are many: memory does not grow with the job."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def failures(self, job: JobRecord, until_seq: int) -> Iterator[Sequence[OutcomeFigures]]:
        """Yield the outcomes that have an error, in index order."""
        its_own = (HAS_FAILED, _outcomes.c.seq > failed_until_seq(job))  # no OR, which would use no index
        query = _figures_of(job).where(*its_own, _outcomes.c.seq <= until_seq, _outcomes.c.error.is_not(None))
        for page in self._pages(query.order_by(_outcomes.c.idx)):
            yield [OutcomeFigures(*row) for row in page]

    def slowest(self, job: JobRecord, until_seq: int, n: int) -> Sequence[OutcomeFigures]:
        """Return the `n` outcomes that took longest, the slowest first."""
        order = (_outcomes.c.duration_ns.desc(), _outcomes.c.idx)
        query = (
            sa.select(_outcomes.c.idx)
            .where(*_its_own(job, until_seq), _outcomes.c.duration_ns > 0)
            .order_by(*order)
            .limit(n)
        )
        with self._database.reading() as connection:
            found = connection.execute(query).scalars().all()  # first: to join the items of all takes twice as long
            these = _figures_of(job).where(_outcomes.c.idx.in_(found)).order_by(*order)
            return [OutcomeFigures(*row) for row in connection.execute(these)]

    def usages(
        self, job: JobRecord, until_seq: int, agent_ids: Collection[str]
    ) -> Iterator[Counter[tuple[str, bytes]]]:
        """Yield how many outcomes of an agent have a usage, as JSON.  `agent_ids` are those of the job's agents."""
        if len(agent_ids) == 1:  # to join the items takes as long again
            query = sa.select(sa.literal(next(iter(agent_ids))), _outcomes.c.usage)
        else:
            query = sa.select(_items.c.agent_id, _outcomes.c.usage).join(_items, same_item(_items, _outcomes))
        return self._counted(query, job, until_seq)

    def ends(self, job: JobRecord, until_seq: int) -> Iterator[Counter[tuple[str, str, bytes]]]:
        """Yield how many outcomes have a time in ISO 8601 at which they were stored, a status, and a usage as JSON."""
        return self._counted(sa.select(_outcomes.c.finished_at, _outcomes.c.status, _outcomes.c.usage), job, until_seq)

    def newest_failures(self, job: JobRecord, n_outcomes: int) -> Sequence[OutcomeFigures]:
        """Return those of the newest `n_outcomes` outcomes that have an error, the newest first; at most a page."""
        last = sa.select(_jobs.c.last_seq).where(_jobs.c.job == job.key).scalar_subquery()
        is_new = (is_its_own(job), _outcomes.c.seq > last - n_outcomes)
        query = _figures_of(job).where(*is_new, _outcomes.c.error.is_not(None)).order_by(_outcomes.c.seq.desc())
        with self._database.reading() as connection:
            return [OutcomeFigures(*row) for row in connection.execute(query.limit(CHUNK))]

    def _counted(self, query: sa.Select[Any], job: JobRecord, until_seq: int) -> Iterator[Counter[Any]]:
        """Yield how often each row of a query of outcomes occurs, again and again if there are many different ones."""
        counted: Counter[Any] = Counter()
        for page in self._pages(query.where(*_its_own(job, until_seq))):
            counted.update(map(tuple, page))
            if len(counted) >= _MAX_COUNTED:
                yield counted
                counted = Counter()
        yield counted

    def _pages(self, query: sa.Select[Any]) -> Iterator[Sequence[Any]]:
        """Yield the rows of one query: 2,000 queries of 500 rows take twice as long."""
        with self._database.reading() as connection:
            yield from connection.execution_options(yield_per=CHUNK).execute(query).partitions()


def _its_own(job: JobRecord, until_seq: int) -> Sequence[sa.ColumnElement[bool]]:
    return _outcomes.c.job == job.key, is_its_own(job), _outcomes.c.seq <= until_seq


def _figures_of(job: JobRecord) -> sa.Select[Any]:
    of_items = (_items.c.idx, _items.c.agent_id, _items.c.custom_id)
    of_outcomes = (_outcomes.c[name] for name in [each.name for each in fields(OutcomeFigures)][3:])
    query = sa.select(*of_items, *of_outcomes).join(_items, same_item(_items, _outcomes))
    return query.where(_outcomes.c.job == job.key)

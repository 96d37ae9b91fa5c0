"""Queries for reports and plots: what is known of every outcome, without its request and its messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa

from batchray.store.database import CHUNK, Database
from batchray.store.queries import is_its_own
from batchray.store.records import JobRecord
from batchray.store.tables import items as _items
from batchray.store.tables import jobs as _jobs
from batchray.store.tables import outcomes as _outcomes
from batchray.store.tables import same_item


@dataclass(slots=True)  # not frozen: a report makes one for each outcome
class OutcomeFigures:
    """How an item ended.  `error` and `usage` are JSON; times are as in `StoredResult`, `finished_at` in ISO 8601."""

    index: int
    agent_id: str
    custom_id: str | None
    status: str
    stop_reason: str
    error: bytes | None
    usage: bytes
    queued_ns: int
    ttft_ns: int | None
    duration_ns: int
    finished_at: str


class Figures:
    """Reads the figures of a job's outcomes, in pages if there are many: memory does not grow with the job."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def pages(self, job: JobRecord) -> Iterator[Sequence[OutcomeFigures]]:
        """Yield the outcomes of this moment, in index order.

        They are read by one query: 2,000 of 500 rows take twice as long, and each sees another moment.
        """
        query = _figures_of(job).order_by(_outcomes.c.idx)
        with self._database.reading() as connection:
            for page in connection.execution_options(yield_per=CHUNK).execute(query).partitions():
                yield [OutcomeFigures(*row) for row in page]

    def newest_failures(self, job: JobRecord, n_outcomes: int) -> Sequence[OutcomeFigures]:
        """Return those of the newest `n_outcomes` outcomes that have an error, the newest first; at most a page."""
        last = sa.select(_jobs.c.last_seq).where(_jobs.c.job == job.key).scalar_subquery()
        is_new = _outcomes.c.seq > last - n_outcomes
        query = _figures_of(job).where(is_new, _outcomes.c.error.is_not(None)).order_by(_outcomes.c.seq.desc())
        with self._database.reading() as connection:
            return [OutcomeFigures(*row) for row in connection.execute(query.limit(CHUNK))]


def _figures_of(job: JobRecord) -> sa.Select[Any]:
    of_items = (_items.c.idx, _items.c.agent_id, _items.c.custom_id)
    of_outcomes = (_outcomes.c[name] for name in [each.name for each in fields(OutcomeFigures)][3:])
    query = sa.select(*of_items, *of_outcomes).join(_items, same_item(_items, _outcomes))
    return query.where(_outcomes.c.job == job.key, is_its_own(job))

"""Stores a new job piece by piece: other writes run between the pieces, and the job is seen when it is complete.

Until then its row has the kind of a job that is being deleted, so no query sees it.  What a crash leaves of it is
removed with the deleted jobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson
import sqlalchemy as sa

from batchray.store.database import Database
from batchray.store.leases import Leases
from batchray.store.records import CarriedColumns, ItemPage, NewJob, utc_now
from batchray.store.retention import Retention
from batchray.store.tables import DELETED, carried_columns, jobs, leases, openai_batches, run_options
from batchray.store.taken_over import PAIRS_AT_ONCE, TakenCounts, take_over
from batchray.store.unseen import NewRow, Part

_ROW_BYTES = 256
"""The cost of a row apart from its bytes, in bytes."""
_TAKEN_BYTES = 16 * 1024
"""The cost of taking over an outcome, in bytes that cost as much."""


class Creation:
    """One new job on its way into the database.

    Its methods run on the caller's thread, its transactions on the writer's.
    """

    def __init__(self, database: Database, leases: Leases, new: NewJob) -> None:
        self._database, self._leases, self._new = database, leases, new
        self._row = _row_of(database, new)
        self._total, self._agent_ids = 0, set[str]()
        self._taken = TakenCounts()

    def store(self, pages: Iterable[ItemPage], carried: Iterable[CarriedColumns]) -> int:
        """Store the job with its items and return how many.  All of it is on disk when this returns.

        An error of the iterables, or of the database, leaves nothing that is seen.
        """
        self._row.store(self._parts(pages, carried), Retention(self._database).purge)
        return self._total

    def _parts(self, pages: Iterable[ItemPage], carried: Iterable[CarriedColumns]) -> Iterator[Part]:
        for page in pages:
            yield self._items(page)
        for columns in carried:
            yield _carried(columns)
        if (taken := self._new.taken_over()) is not None:
            for start in range(0, len(taken.pairs), PAIRS_AT_ONCE):
                pairs = taken.pairs[start : start + PAIRS_AT_ONCE]

                def copy(connection: sa.Connection, key: int, pairs: Any = pairs, first: int = start + 1) -> None:
                    take_over(connection, key, taken.source, pairs, first, self._taken)

                yield Part(copy, len(pairs) * _TAKEN_BYTES)
        yield self._last()

    def _items(self, page: ItemPage) -> Part:
        first = self._total
        self._total += len(page.requests)
        self._agent_ids.update(page.agent_ids)

        def insert(connection: sa.Connection, key: int) -> None:
            self._database.backend.insert_items(connection, key, first, page)

        return Part(insert, sum(map(len, page.requests)) + _ROW_BYTES * len(page.requests))

    def _last(self) -> Part:
        """Return the last part, which gives the job its id: from then on it is seen."""
        new, now = self._new, utc_now()
        values = {
            "kind": new.kind,
            "user_id": new.user_id,
            "created_at": now,
            "updated_at": now,
            "completed_at": None,
            "idempotency_key": new.idempotency_key,
            "total": self._total,
            "agents": orjson.dumps(new.snapshot(self._agent_ids)),
            "unused_fields": ",".join(sorted(new.unused_fields())) or None,
        }
        if new.has_failed:
            values |= {"status": "failed", "stop_reason": "error", "completed_at": now, "total_duration_ns": 0}
        openai_batch = new.openai_batch()

        def store(connection: sa.Connection, key: int) -> None:
            self._row.complete(connection, key, {**values, **self._taken.values()})
            connection.execute(sa.insert(leases).values(job=key, epoch=0, leader="", until=0.0, control_requests=b"{}"))
            self._leases.reserve(connection, key)
            if new.run_options:
                connection.execute(sa.insert(run_options).values(job=key, options=orjson.dumps(new.run_options)))
            if openai_batch is not None:
                connection.execute(sa.insert(openai_batches).values(job=key, spec=orjson.dumps(openai_batch)))

        return Part(store, 0)


def _row_of(database: Database, new: NewJob) -> NewRow:
    """Return the row of a job that is hidden as if it was being deleted."""
    now = utc_now()
    values = {
        "kind": DELETED,
        "agent_id": new.agent_id,
        "status": "created",
        "updated_at": now,
        "completed_at": now,
        "callback_url": new.callback_url,
        "body_digest": new.body_digest,
        "agents": b"{}",
    }
    return NewRow(database, jobs, new.id, values)


def _carried(columns: CarriedColumns) -> Part:
    def insert(connection: sa.Connection, key: int) -> None:
        connection.execute(sa.insert(carried_columns).values((key, *columns)))

    return Part(insert, len(columns.data) + _ROW_BYTES)

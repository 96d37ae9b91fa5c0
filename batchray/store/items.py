"""Queries about the items of a job: unfinished items, results, and listings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
import sqlalchemy as sa

from batchray.schema.progress import STATUSES
from batchray.store.database import CHUNK, PAGE_BYTES, Database
from batchray.store.queries import before_unfinished, between, failed_until_seq, is_its_own
from batchray.store.records import (
    CarriedColumns,
    JobRecord,
    PendingItem,
    SortOrder,
    StoredItem,
    StoredResult,
    SucceededRequest,
)
from batchray.store.tables import DELETED, HAS_FAILED, same_item
from batchray.store.tables import attempts as _attempts
from batchray.store.tables import carried_columns as _carried
from batchray.store.tables import checkpoints as _checkpoints
from batchray.store.tables import items as _items
from batchray.store.tables import jobs as _jobs
from batchray.store.tables import outcomes as _outcomes

_RESULT_COLUMNS = ("status", "stop_reason", "error", "usage", "queued_ns", "ttft_ns", "duration_ns", "messages")
_RESULT_BYTES = sa.func.length(_items.c.request) + sa.func.length(_outcomes.c.messages)


class Items:
    """The items of jobs, read only.  `Outcomes` writes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def unfinished(self, job: JobRecord, after: int, limit: int = CHUNK, until: int | None = None) -> list[PendingItem]:
        """Return the next items without an outcome in index order: at most `limit`, and about 8 MiB of requests.

        They have indexes above `after`, and at most `until`.
        """
        with self._database.reading() as connection:
            after = before_unfinished(connection, job, after)
        query = (
            sa.select(
                _items.c.idx,
                _items.c.agent_id,
                _items.c.request,
                sa.func.coalesce(_attempts.c.attempt, 0),
                sa.func.coalesce(_attempts.c.blamed_crashes, 0),
                sa.func.coalesce(_attempts.c.collateral_crashes, 0),
            )
            .outerjoin(_outcomes, same_item(_items, _outcomes))
            .outerjoin(_attempts, same_item(_items, _attempts))
            .where(_items.c.job == job.key, _items.c.idx > after, _outcomes.c.idx.is_(None))
            .order_by(_items.c.idx)
            .limit(limit)
        )
        query = query if until is None else query.where(_items.c.idx <= until)
        return self._database.page(query, PendingItem, sa.func.length(_items.c.request))

    def checkpoints(self, job: JobRecord, index: int) -> list[bytes]:
        """Return the checkpoints of an item without an outcome, in their order."""
        query = sa.select(_checkpoints.c.checkpoint).where(_checkpoints.c.job == job.key, _checkpoints.c.idx == index)
        with self._database.reading() as connection:
            return list(connection.execute(query.order_by(_checkpoints.c.seq)).scalars())

    def succeeded_requests(self, job: JobRecord, after: int, limit: int = CHUNK) -> list[SucceededRequest]:
        """Return the next requests that have succeeded, in index order: at most `limit`, and about 8 MiB of them."""
        query = (
            sa.select(_items.c.idx, _items.c.agent_id, _items.c.request)
            .join(_outcomes, same_item(_items, _outcomes))
            .where(_items.c.job == job.key, _items.c.idx > after, _outcomes.c.status == "succeeded")
            .order_by(_items.c.idx)
            .limit(limit)
        )
        return self._database.page(query, SucceededRequest, sa.func.length(_items.c.request))

    def results(
        self,
        job: JobRecord,
        *,
        after_index: int = -1,
        after_seq: int | None = None,
        is_failed: bool = False,
        omits_succeeded: bool = False,
        limit: int = CHUNK,
        max_bytes: int = PAGE_BYTES,
    ) -> list[StoredResult]:
        """Return a page of results: in index order, or, with `after_seq`, in finish order.

        It ends before `limit` if the results have `max_bytes` of requests and messages; it has one at least.  With
        `omits_succeeded` the requests and messages of succeeded items are not read: they are empty.
        """
        if is_failed and not self._has_failures(job):
            return []
        n_bytes = _RESULT_BYTES
        if omits_succeeded:
            n_bytes = sa.case((_outcomes.c.status == "succeeded", 0), else_=n_bytes)
        query = _results_of(job, omits_succeeded=omits_succeeded).where(is_its_own(job)).limit(limit)
        if after_seq is None:
            query = query.where(_outcomes.c.idx > after_index).order_by(_outcomes.c.idx)
        else:
            query = query.where(_outcomes.c.seq > after_seq).order_by(_outcomes.c.seq)
        if is_failed:
            query = query.where(HAS_FAILED)
        return self._database.page(query, _stored_result, n_bytes, max_bytes)

    def _has_failures(self, job: JobRecord) -> bool:
        """Return whether an item did not succeed, which takes no time in finish order either."""
        with self._database.reading() as connection:
            query = sa.select(_outcomes.c.idx).where(_outcomes.c.job == job.key, HAS_FAILED)
            return connection.execute(query.limit(1)).first() is not None

    def finished(
        self,
        job: JobRecord,
        *,
        order: SortOrder = "asc",
        since: int | None = None,
        until: int | None = None,
        agent_id: str | None = None,
        limit: int = CHUNK,
        max_bytes: int = PAGE_BYTES,
    ) -> list[StoredResult]:
        """Return results in finish order or newest first.  `since` and `until` are values of `seq`, both included.

        The page ends as one of `results` does.
        """
        query = _results_of(job).where(is_its_own(job)).limit(limit)
        query = query.order_by(_outcomes.c.seq if order == "asc" else _outcomes.c.seq.desc())
        if order == "desc":
            since, until = until, since
        query = query if since is None else query.where(_outcomes.c.seq >= since)
        query = query if until is None else query.where(_outcomes.c.seq <= until)
        query = query if agent_id is None else query.where(_items.c.agent_id == agent_id)
        return self._database.page(query, _stored_result, _RESULT_BYTES, max_bytes)

    def carried_columns(self, job: JobRecord, index: int) -> CarriedColumns | None:
        """Return the part of the job's table that holds an item's row; None if the job was not made of a table."""
        query = sa.select(_carried.c.idx, _carried.c.n_rows, _carried.c.data)
        query = query.where(_carried.c.job == job.key, _carried.c.idx <= index).order_by(_carried.c.idx.desc()).limit(1)
        with self._database.reading() as connection:
            row = connection.execute(query).first()
        return CarriedColumns(*row) if row else None

    def results_between(self, job: JobRecord, first: int, last: int) -> list[StoredResult]:
        """Return the results of the items from one index to another, in index order."""
        query = _results_of(job).where(_outcomes.c.idx.between(first, last)).order_by(_outcomes.c.idx)
        with self._database.reading() as connection:
            return [_stored_result(*row) for row in connection.execute(query)]

    def result(self, job: JobRecord, index: int) -> StoredResult | None:
        """Return one item's result, or None if it has none."""
        query = _results_of(job).where(_outcomes.c.idx == index, is_its_own(job))
        with self._database.reading() as connection:
            row = connection.execute(query).first()
        return _stored_result(*row) if row else None

    def finish_position(self, job: JobRecord, index: int) -> int | None:
        """Return the `seq` of an item's outcome, or None if it has none."""
        of_item = (_outcomes.c.job == job.key, _outcomes.c.idx == index)
        query = sa.select(_outcomes.c.seq).where(*of_item, is_its_own(job))
        with self._database.reading() as connection:
            return connection.execute(query).scalar()

    def find(
        self,
        job: JobRecord,
        *,
        order: SortOrder = "asc",
        after: int | None = None,
        before: int | None = None,
        status: str | None = None,
        stop_reason: str | None = None,
        agent_id: str | None = None,
        custom_id: str | None = None,
        limit: int = CHUNK,
    ) -> list[StoredItem]:
        """Return a page of items in index order; `after` and `before` are indices.  `status` may be `pending`."""
        query = _items_of(job).limit(limit)
        has_failed = status not in (None, "succeeded", "pending")
        index = _outcomes.c.idx if has_failed else _items.c.idx
        query = between(query.order_by(index if order == "asc" else index.desc()), index, order, after, before)
        wanted = (
            (_outcomes.c.status, None if status == "pending" else status),
            (_outcomes.c.stop_reason, stop_reason),
            (_items.c.agent_id, agent_id),
            (_items.c.custom_id, custom_id),
        )
        for column, value in wanted:
            query = query if value is None else query.where(column == value)
        if has_failed:
            query = query.where(_outcomes.c.job == job.key, HAS_FAILED)
        with self._database.reading() as connection:
            if status == "pending":
                is_retried = connection.execute(sa.select(failed_until_seq(job))).scalar_one() > 0
                begin = -1 if is_retried else before_unfinished(connection, job, -1)
                query = query.where(_items.c.idx > begin, _outcomes.c.idx.is_(None))
            return [_stored_item(row) for row in connection.execute(query).mappings()]

    def count_by_status(self) -> dict[str, int]:
        """Return the number of items of all jobs by outcome; `pending` is the number without one."""
        sums = [sa.func.coalesce(sa.func.sum(_jobs.c[status]), 0).label(status) for status in STATUSES]
        total = sa.func.coalesce(sa.func.sum(_jobs.c.total), 0).label("total")
        with self._database.reading() as connection:
            n_items, *counts = connection.execute(sa.select(total, *sums).where(_jobs.c.kind != DELETED)).one()
        return {**dict(zip(STATUSES, counts, strict=True)), "pending": n_items - sum(counts)}


def _results_of(job: JobRecord, *, omits_succeeded: bool = False) -> sa.Select[Any]:
    def body(column: sa.ColumnElement[bytes]) -> sa.ColumnElement[bytes]:
        return sa.case((_outcomes.c.status == "succeeded", b""), else_=column) if omits_succeeded else column

    return (
        sa.select(
            _outcomes.c.seq,
            _items.c.idx,
            _items.c.agent_id,
            _items.c.custom_id,
            body(_items.c.request),
            _outcomes.c.attempt,
            *(_outcomes.c[name] for name in _RESULT_COLUMNS if name != "messages"),
            body(_outcomes.c.messages),
        )
        .join(_items, same_item(_items, _outcomes))
        .where(_outcomes.c.job == job.key)
    )


def _items_of(job: JobRecord) -> sa.Select[Any]:
    attempts = sa.func.coalesce(_outcomes.c.attempt, _attempts.c.attempt - _attempts.c.collateral_crashes, 0)
    columns = (_outcomes.c[name] for name in _RESULT_COLUMNS if name != "messages")
    return (
        sa.select(_items.c.idx, _items.c.agent_id, _items.c.custom_id, attempts.label("attempts"), *columns)
        .select_from(_items)
        .outerjoin(_outcomes, sa.and_(same_item(_items, _outcomes), is_its_own(job)))
        .outerjoin(_attempts, same_item(_items, _attempts))
        .where(_items.c.job == job.key)
    )


def _stored_result(
    seq: int,
    index: int,
    agent_id: str,
    custom_id: str | None,
    request: bytes,
    attempts: int,
    status: str,
    stop_reason: str,
    error: bytes | None,
    usage: bytes,
    queued_ns: int,
    ttft_ns: int | None,
    duration_ns: int,
    messages: bytes,
) -> StoredResult:
    """Build a result from a row of `_results_of`."""
    return StoredResult(
        seq=seq,
        index=index,
        agent_id=agent_id,
        custom_id=custom_id,
        request=request,
        attempts=attempts,
        status=status,
        stop_reason=stop_reason,
        error=orjson.loads(error) if error else None,
        usage=orjson.loads(usage),
        queued_ns=queued_ns,
        ttft_ns=ttft_ns,
        duration_ns=duration_ns,
        messages=messages,
    )


def _stored_item(row: Mapping[Any, Any]) -> StoredItem:
    """Build an item from a row of `Items.find`."""
    error, usage = row["error"], row["usage"]
    return StoredItem(
        index=row["idx"],
        agent_id=row["agent_id"],
        custom_id=row["custom_id"],
        attempts=row["attempts"],
        status=row["status"],
        stop_reason=row["stop_reason"],
        error=orjson.loads(error) if error else None,
        usage=orjson.loads(usage) if usage else {},
        queued_ns=row["queued_ns"],
        ttft_ns=row["ttft_ns"],
        duration_ns=row["duration_ns"],
    )

"""Outcomes that a new job takes over from an earlier one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import sqlalchemy as sa

from batchray.store.database import chunks
from batchray.store.records import TakenOver
from batchray.store.tables import attempts, jobs, outcomes

_COPIED = (
    "attempt",
    "status",
    "stop_reason",
    "usage",
    "queued_ns",
    "ttft_ns",
    "duration_ns",
    "messages",
    "finished_at",
)


def take_over(connection: sa.Connection, job: int, taken: TakenOver) -> None:
    """Copy succeeded outcomes of `taken.source` to items of a job that is being created.

    They are copied inside the database, because the messages of one may take megabytes.
    """
    for chunk in chunks(enumerate(taken.pairs, start=1)):
        rows = [
            {"job": job, "item": new, "source": taken.source.key, "source_item": old, "seq": seq}
            for seq, (new, old) in chunk
        ]
        _copy(connection, rows)
    _count(connection, job)


def _copy(connection: sa.Connection, rows: Sequence[dict[str, Any]]) -> None:
    given = {name: sa.bindparam(name, type_=outcomes.c.job.type) for name in ("job", "item", "seq")}
    is_source = sa.and_(
        outcomes.c.job == sa.bindparam("source"),
        outcomes.c.idx == sa.bindparam("source_item"),
        outcomes.c.status == "succeeded",
    )
    counted = sa.select(given["job"], given["item"], outcomes.c.attempt).where(is_source)
    connection.execute(sa.insert(attempts).from_select(["job", "idx", "attempt"], counted), rows)
    copied = sa.select(given["job"], given["item"], given["seq"], *(outcomes.c[name] for name in _COPIED))
    columns = ["job", "idx", "seq", *_COPIED]
    connection.execute(sa.insert(outcomes).from_select(columns, copied.where(is_source)), rows)


def _count(connection: sa.Connection, job: int) -> None:
    """Set the job's counts to those of its outcomes."""
    n_taken, last_seq, tokens = 0, 0, {"prompt_tokens": 0, "completion_tokens": 0}
    query = sa.select(outcomes.c.seq, outcomes.c.usage).where(outcomes.c.job == job)
    for seq, usage in connection.execute(query):
        n_taken, last_seq, used = n_taken + 1, max(last_seq, seq), orjson.loads(usage)
        for name in tokens:
            tokens[name] += used.get(name, 0)
    values = {"succeeded": n_taken, "last_seq": last_seq, **tokens}
    connection.execute(sa.update(jobs).where(jobs.c.job == job).values(**values))

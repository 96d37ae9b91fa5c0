"""Outcomes that a new job takes over from an earlier one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import sqlalchemy as sa

from batchray.schema.progress import TOKENS
from batchray.store.records import JobRecord
from batchray.store.tables import attempts, outcomes

PAIRS_AT_ONCE = 100
"""How many outcomes a statement copies.  The messages of one may take megabytes."""

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


class TakenCounts:
    """Counts of a job that takes outcomes over."""

    def __init__(self) -> None:
        self._n_taken, self._last_seq = 0, 0
        self._tokens = dict.fromkeys(TOKENS, 0)

    def add(self, seq: int, usage: bytes) -> None:
        """Count an outcome that was taken over."""
        self._n_taken, self._last_seq, used = self._n_taken + 1, max(self._last_seq, seq), orjson.loads(usage)
        for name in self._tokens:
            self._tokens[name] += used.get(name, 0)

    def values(self) -> dict[str, int]:
        """Return the columns of the job."""
        return {"succeeded": self._n_taken, "last_seq": self._last_seq, **self._tokens}


def take_over(
    connection: sa.Connection,
    job: int,
    source: JobRecord,
    pairs: Sequence[tuple[int, int]],
    first_seq: int,
    counts: TakenCounts,
) -> None:
    """Copy succeeded outcomes of `source` to items of a job that is being created, and count them.

    They are copied inside the database, because the messages of one may take megabytes.
    """
    rows = [
        {"job": job, "item": new, "source": source.key, "source_item": old, "seq": seq}
        for seq, (new, old) in enumerate(pairs, first_seq)
    ]
    _copy(connection, rows)
    these = outcomes.c.seq.between(first_seq, first_seq + len(pairs) - 1)
    query = sa.select(outcomes.c.seq, outcomes.c.usage).where(outcomes.c.job == job, these)
    for seq, usage in connection.execute(query):
        counts.add(seq, usage)


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

"""Sums over the outcomes of a job, stored up to one of them, so that only the newest outcomes have to be read.

A tally is a summary: it may always be made again from the outcomes.  It keeps those that succeeded apart, because a
retry deletes the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson
import sqlalchemy as sa

from batchray.schema.progress import Progress, measured
from batchray.store.database import CHUNK, Chunked, Database
from batchray.store.leases import Leases
from batchray.store.queries import failed_until_seq, is_its_own
from batchray.store.records import FailureKind, JobRecord, LedJob
from batchray.store.tables import HAS_FAILED, outcomes, tallies

# A tally is stored when this many outcomes are newer.
TALLY_EVERY = 10_000
# Failures of more kinds than this count as one more kind, because their types come from users' code.
_MAX_KINDS = 500
_OTHER = "other"

_COLUMNS = ("seq", "status", "stop_reason", "error", "usage", "queued_ns", "ttft_ns", "duration_ns")


class _Kind(NamedTuple):
    n_items: int
    example: str


@dataclass
class Tally:
    """Sums over the outcomes of a job whose `seq` is at most `until_seq`.  Its size does not grow with the job."""

    until_seq: int = 0
    succeeded: Progress = field(default_factory=Progress)
    others: Progress = field(default_factory=Progress)
    kinds: dict[tuple[str, str], _Kind] = field(default_factory=dict)

    def add(self, row: Sequence[Any]) -> None:
        """Add an outcome, a row of `_COLUMNS`."""
        self.until_seq, status, stop_reason, error, usage, *durations = row
        part = self.succeeded if status == "succeeded" else self.others
        part.record(status, measured(*durations), orjson.loads(usage))
        if error is not None:
            self.add_failure(stop_reason, **orjson.loads(error))

    def add_failure(self, stop_reason: str, type: str, message: str, **_: str) -> None:
        """Count a failure with an error of this type."""
        key = (stop_reason, type)
        if key not in self.kinds and len(self.kinds) >= _MAX_KINDS:
            key = (stop_reason, _OTHER)
        n_before = self.kinds[key].n_items if key in self.kinds else 0
        self.kinds[key] = _Kind(n_before + 1, message)

    def progress(self, total: int) -> Progress:
        """Return the progress of a job with `total` items."""
        return self.succeeded.plus(self.others, total)

    def failure_kinds(self) -> list[FailureKind]:
        """Return the kinds of failures, most frequent first, each with one example's message."""
        kinds = (FailureKind(*key, *kind) for key, kind in self.kinds.items())
        return sorted(kinds, key=lambda kind: -kind.n_items)

    def to_json(self) -> bytes:
        """Return what `from_json` reads."""
        parts = {"succeeded": self.succeeded.to_dict(), "others": self.others.to_dict()}
        return orjson.dumps({"until_seq": self.until_seq, **parts, "kinds": [[*k, *v] for k, v in self.kinds.items()]})

    @classmethod
    def from_json(cls, data: bytes) -> Tally:
        """Read what `to_json` wrote."""
        kept = orjson.loads(data)
        kinds = {(stop_reason, kind): _Kind(*counted) for stop_reason, kind, *counted in kept["kinds"]}
        succeeded, others = (Progress.from_dict(kept[name]) for name in ("succeeded", "others"))
        return cls(kept["until_seq"], succeeded, others, kinds)


class Tallies:
    """The tallies of jobs: kept by a job's leader, read by every process."""

    def __init__(self, database: Database, leases: Leases) -> None:
        self._database, self._leases = database, leases

    def tally(self, job: JobRecord) -> Chunked[Tally]:
        """Return the tally of a job's outcomes so far: of the stored one, and of the outcomes since."""
        tally = self._stored(job)
        yield from self._add_newer(job, tally)
        return tally

    def failure_kinds(self, job: JobRecord) -> list[FailureKind]:
        """Return the kinds of failures so far, most frequent first.  Only those after the stored tally are read."""
        tally = self._stored(job)
        # Without a tally by `idx`, which is in the index of failures: by `seq` the other outcomes would be read too.
        key, after = (outcomes.c.seq, tally.until_seq) if tally.until_seq else (outcomes.c.idx, -1)
        query = sa.select(key, outcomes.c.stop_reason, outcomes.c.error).order_by(key).limit(CHUNK)
        query = query.where(outcomes.c.job == job.key, HAS_FAILED, outcomes.c.seq > failed_until_seq(job))
        while rows := self._rows(query.where(key > after, outcomes.c.error.is_not(None))):
            for _, stop_reason, error in rows:
                tally.add_failure(stop_reason, **orjson.loads(error))
            after = rows[-1][0]
        return tally.failure_kinds()

    def catch_up(self, job: LedJob) -> Chunked[Tally]:
        """As `tally`; it is stored if many outcomes were newer.  Raises LeaseLostError if another process leads."""
        tally = self._stored(job)
        before = tally.until_seq
        yield from self._add_newer(job, tally)
        if tally.until_seq - before >= TALLY_EVERY:
            with self._database.transaction() as connection:
                self._leases.check(connection, job)
                _replace(connection, job.key, tally)
        return tally

    def _stored(self, job: JobRecord) -> Tally:
        with self._database.reading() as connection:
            return stored_tally(connection, job)

    def _add_newer(self, job: JobRecord, tally: Tally) -> Chunked[None]:
        while rows := self._newer(job, tally.until_seq):
            for row in rows:
                tally.add(row)
            yield

    def _newer(self, job: JobRecord, after_seq: int) -> Sequence[Sequence[Any]]:
        query = sa.select(*(outcomes.c[name] for name in _COLUMNS))
        query = query.where(outcomes.c.job == job.key, outcomes.c.seq > after_seq, is_its_own(job))
        return self._rows(query.order_by(outcomes.c.seq).limit(CHUNK))

    def _rows(self, query: sa.Select[Any]) -> Sequence[Sequence[Any]]:
        with self._database.reading() as connection:
            return connection.execute(query).all()


def stored_tally(connection: sa.Connection, job: JobRecord) -> Tally:
    """Return the stored tally of a job; an empty one if there is none."""
    kept = connection.execute(sa.select(tallies.c.tally).where(tallies.c.job == job.key)).scalar()
    return Tally() if kept is None else Tally.from_json(kept)


def forget_failures(connection: sa.Connection, job: JobRecord) -> None:
    """Leave the outcomes that did not succeed out of a job's tally, because they are going to be deleted."""
    tally = stored_tally(connection, job)
    if tally.until_seq:
        _replace(connection, job.key, Tally(tally.until_seq, tally.succeeded))


def _replace(connection: sa.Connection, key: int, tally: Tally) -> None:
    connection.execute(sa.delete(tallies).where(tallies.c.job == key))
    connection.execute(sa.insert(tallies).values(job=key, tally=tally.to_json()))

"""Writes about the items of a job.

An attempt is counted before it is spawned.  An outcome is recorded once and never changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson
import sqlalchemy as sa

from batchray.schema.progress import STATUSES
from batchray.store.conversations import apply_conversation_updates, release_claims
from batchray.store.database import Chunked, Database, chunks
from batchray.store.leases import Leases
from batchray.store.records import JobRecord, LedJob, NewAttempt, NewOutcome, NewStep, utc_now
from batchray.store.tables import attempts as _attempts
from batchray.store.tables import checkpoints as _checkpoints
from batchray.store.tables import items as _items
from batchray.store.tables import jobs as _jobs
from batchray.store.tables import outcomes as _outcomes
from batchray.store.tables import same_item
from batchray.support.failpoints import failpoint

_ENDED_AT_ONCE = 5000
_OUTCOME_COLUMNS = ("status", "stop_reason", "queued_ns", "ttft_ns", "duration_ns", "messages")


class _Ended(NamedTuple):
    """How many items were ended, and the last of them."""

    n_items: int
    last: int


class Outcomes:
    """Attempts, checkpoints and outcomes of items.  Every write is fenced by the job's lease."""

    def __init__(self, database: Database, leases: Leases) -> None:
        self._database, self._leases = database, leases

    def write(
        self,
        job: LedJob,
        attempts: Sequence[NewAttempt] = (),
        outcomes: Sequence[NewOutcome] = (),
        is_again: bool = False,
        steps: Sequence[NewStep] = (),
    ) -> list[NewOutcome]:
        """Count attempts, keep steps and take outcomes, all in one transaction; returns the outcomes that were taken.

        Of steps too, only those of current attempts are kept.

        With `is_again`, after a write of the same of which nobody knows whether it was committed, those that it took
        are among them.  Raises LeaseLostError, and has written nothing, where another process leads the job now.
        """
        with self._database.transaction() as connection:
            self._leases.check(connection, job)
            before = self._taken_before(connection, job, outcomes) if is_again else []
            self._write_steps(connection, job, steps)  # first: the next attempt at an item may be in the same commit
            self._write_attempts(connection, job, attempts)
            taken = self._current(connection, job, outcomes)
            if taken:
                self._insert_outcomes(connection, job, taken)
        if steps:
            failpoint("step-committed")
        if taken:
            failpoint("outcome-committed")
        return [*before, *taken.values()]

    def end_unfinished(
        self, job: LedJob, status: str, stop_reason: str, error: Mapping[str, str] | None
    ) -> Chunked[int]:
        """Give every item without an outcome this one; returns how many.  In short transactions.

        Raises LeaseLostError where another process leads the job now.
        """
        n_ended, last = 0, -1
        outcome = {
            "status": status,
            "stop_reason": stop_reason,
            "error": orjson.dumps(error) if error else None,
            "usage": b"{}",
            "queued_ns": 0,
            "duration_ns": 0,
            "messages": b"[]",
        }
        while (ended := self._end_some(job, last, outcome)) is not None:
            n_ended, last = n_ended + ended.n_items, ended.last
            yield
        return n_ended

    def _end_some(self, job: LedJob, after: int, outcome: Mapping[str, Any]) -> _Ended | None:
        """Give the next items without an outcome this one, inside the database: their requests are not read.

        None where there was none any more: then what was left of items without an outcome is let go.
        """
        with self._database.transaction() as connection:
            self._leases.check(connection, job)
            seq = connection.execute(sa.select(_jobs.c.last_seq).where(_jobs.c.job == job.key)).scalar_one()
            left = _left(job, after).subquery()
            new = sa.select(left.c.job, left.c.idx, sa.literal(1)).where(left.c.attempt.is_(None))
            connection.execute(sa.insert(_attempts).from_select(["job", "idx", "attempt"], new))
            same = {**outcome, "finished_at": utc_now()}
            rank = sa.func.row_number().over(order_by=left.c.idx)
            literals = (sa.literal(value, _outcomes.c[name].type) for name, value in same.items())
            ended = sa.select(left.c.job, left.c.idx, seq + rank, left.c.attempt, *literals)
            connection.execute(sa.insert(_outcomes).from_select(["job", "idx", "seq", "attempt", *same], ended))
            these = sa.and_(_outcomes.c.job == job.key, _outcomes.c.seq > seq)
            counted = sa.select(sa.func.count(), sa.func.max(_outcomes.c.idx)).where(these)
            n_ended, last = connection.execute(counted).one()
            if n_ended == 0:
                release_claims(connection, job)
                connection.execute(sa.delete(_checkpoints).where(_checkpoints.c.job == job.key))
                return None
            status = outcome["status"]
            values = {status: _jobs.c[status] + n_ended, "last_seq": seq + n_ended, "updated_at": same["finished_at"]}
            connection.execute(sa.update(_jobs).where(_jobs.c.job == job.key).values(**values))
        failpoint("outcome-committed")
        return _Ended(n_ended, last)

    def _write_attempts(self, connection: sa.Connection, job: JobRecord, attempts: Sequence[NewAttempt]) -> None:
        if not attempts:
            return
        statement = self._database.backend.insert(_attempts)
        statement = statement.on_conflict_do_update(
            index_elements=["job", "idx"],
            set_={name: statement.excluded[name] for name in ("attempt", "blamed_crashes", "collateral_crashes")},
        )
        rows = [
            {
                "job": job.key,
                "idx": each.index,
                "attempt": each.attempt,
                "blamed_crashes": each.blamed_crashes,
                "collateral_crashes": each.collateral_crashes,
            }
            for each in attempts
        ]
        connection.execute(statement, rows)

    def _write_steps(self, connection: sa.Connection, job: JobRecord, steps: Sequence[NewStep]) -> None:
        current = self._current_attempts(connection, job, {step.index for step in steps})
        rows = [
            {"job": job.key, "idx": step.index, "seq": step.seq, "checkpoint": step.checkpoint}
            for step in steps
            if step.index in current and current[step.index].attempt == step.attempt
        ]
        if rows:  # some may be there, after a write of which nobody knows whether it was committed
            connection.execute(self._database.backend.insert(_checkpoints).on_conflict_do_nothing(), rows)

    def _taken_before(
        self, connection: sa.Connection, job: JobRecord, outcomes: Sequence[NewOutcome]
    ) -> list[NewOutcome]:
        """Keep the outcomes that are there, of the same attempt: an attempt has one leader and one outcome."""
        there: set[tuple[int, int]] = set()
        for chunk in chunks(outcome.index for outcome in outcomes):
            query = sa.select(_outcomes.c.idx, (_outcomes.c.attempt + _attempts.c.collateral_crashes).label("attempt"))
            query = query.join(_attempts, same_item(_outcomes, _attempts))
            query = query.where(_outcomes.c.job == job.key, _outcomes.c.idx.in_(chunk))
            there.update((row.idx, row.attempt) for row in connection.execute(query))
        return [outcome for outcome in outcomes if (outcome.index, outcome.attempt) in there]

    def _current(
        self, connection: sa.Connection, job: JobRecord, outcomes: Sequence[NewOutcome]
    ) -> dict[NewAttempt, NewOutcome]:
        """Keep the outcomes that may be taken: of the current attempt, the first of its item; by that attempt."""
        current = self._current_attempts(connection, job, (outcome.index for outcome in outcomes))
        taken = {}
        for outcome in outcomes:
            if outcome.index in current and current[outcome.index].attempt == outcome.attempt:
                taken[current.pop(outcome.index)] = outcome
        return taken

    def _current_attempts(
        self, connection: sa.Connection, job: JobRecord, indices: Iterable[int]
    ) -> dict[int, NewAttempt]:
        """Return the current attempts of those of the items that have no outcome."""
        current: dict[int, NewAttempt] = {}
        for chunk in chunks(indices):
            query = (
                sa.select(
                    _attempts.c.idx, _attempts.c.attempt, _attempts.c.blamed_crashes, _attempts.c.collateral_crashes
                )
                .outerjoin(_outcomes, same_item(_attempts, _outcomes))
                .where(_attempts.c.job == job.key, _attempts.c.idx.in_(chunk), _outcomes.c.idx.is_(None))
            )
            current.update((row.idx, NewAttempt(*row)) for row in connection.execute(query))
        return current

    def _insert_outcomes(
        self, connection: sa.Connection, job: JobRecord, outcomes: Mapping[NewAttempt, NewOutcome]
    ) -> None:
        """Insert outcomes by their attempts; one is kept with the number of its item's attempts but for the lost ones.

        An attempt that ended with a death of another's doing is not held against an item.
        """
        taken = list(outcomes.values())
        seq = connection.execute(sa.select(_jobs.c.last_seq).where(_jobs.c.job == job.key)).scalar_one()
        now = utc_now()
        rows = [
            {
                "job": job.key,
                "seq": seq + n,
                "finished_at": now,
                "idx": outcome.index,
                "attempt": outcome.attempt - attempt.collateral_crashes,
                **{name: getattr(outcome, name) for name in _OUTCOME_COLUMNS},
                "error": orjson.dumps(outcome.error) if outcome.error else None,
                "usage": orjson.dumps(outcome.usage),
            }
            for n, (attempt, outcome) in enumerate(outcomes.items(), start=1)
        ]
        connection.execute(sa.insert(_outcomes), rows)
        apply_conversation_updates(connection, job, taken)
        for chunk in chunks(outcome.index for outcome in taken if outcome.has_steps):
            connection.execute(
                sa.delete(_checkpoints).where(_checkpoints.c.job == job.key, _checkpoints.c.idx.in_(chunk))
            )
        added = {status: sum(outcome.status == status for outcome in taken) for status in STATUSES}
        for name in ("prompt_tokens", "completion_tokens"):
            added[name] = sum(outcome.usage.get(name, 0) for outcome in taken)
        values: dict[str, Any] = {name: _jobs.c[name] + n for name, n in added.items() if n}
        values["last_seq"] = seq + len(taken)
        connection.execute(sa.update(_jobs).where(_jobs.c.job == job.key).values(updated_at=now, **values))


def _left(job: JobRecord, after: int) -> sa.Select[Any]:
    """Select the next items without an outcome, and the attempts at them that count; NULL where there was none."""
    return (
        sa.select(_items.c.job, _items.c.idx, (_attempts.c.attempt - _attempts.c.collateral_crashes).label("attempt"))
        .outerjoin(_outcomes, same_item(_items, _outcomes))
        .outerjoin(_attempts, same_item(_items, _attempts))
        .where(_items.c.job == job.key, _items.c.idx > after, _outcomes.c.idx.is_(None))
        .order_by(_items.c.idx)
        .limit(_ENDED_AT_ONCE)
    )

"""Writes about the items of a job.

An attempt is counted before it is spawned.  An outcome is recorded once and never changes.

A first attempt may be counted ahead, when it is not known when it begins.  Until it has begun its row counts it among
the collateral crashes too: so its number is used once, and `attempts` leaves it out, as it may never run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson
import sqlalchemy as sa

from batchray.schema.progress import STATUSES, TOKENS
from batchray.store.conversations import apply_conversation_updates, release_claims
from batchray.store.database import Chunked, Database, chunks
from batchray.store.leases import Leases
from batchray.store.queries import before_unfinished
from batchray.store.records import AheadCounts, JobRecord, LedJob, NewAttempt, NewOutcome, NewStep, utc_now
from batchray.store.tables import agent_runs as _agent_runs
from batchray.store.tables import attempts as _attempts
from batchray.store.tables import checkpoints as _checkpoints
from batchray.store.tables import items as _items
from batchray.store.tables import jobs as _jobs
from batchray.store.tables import outcomes as _outcomes
from batchray.store.tables import same_item
from batchray.support.failpoints import failpoint

_ITEMS_PER_TRANSACTION = 5000
# Items that one transaction looks at, if most of them have an outcome.
_ITEMS_SEEN = 50_000
_NOTHING_AHEAD = AheadCounts((), (), ())
_OUTCOME_COLUMNS = ("status", "stop_reason", "queued_ns", "ttft_ns", "duration_ns", "messages")

# The statements of a group commit are made once: to make one takes longer than to execute it.
_OF_JOB: sa.BindParameter[int] = sa.bindparam("of_job")
_THESE: sa.BindParameter[int] = sa.bindparam("indexes", expanding=True)
_CURRENT_ATTEMPTS = (
    sa.select(_attempts.c.idx, _attempts.c.attempt, _attempts.c.blamed_crashes, _attempts.c.collateral_crashes)
    .outerjoin(_outcomes, same_item(_attempts, _outcomes))
    .where(_attempts.c.job == _OF_JOB, _attempts.c.idx.in_(_THESE), _outcomes.c.idx.is_(None))
)
# The rows of items that are counted ahead, and not known to have begun.
_IS_AHEAD = sa.and_(
    _attempts.c.job == _OF_JOB,
    _attempts.c.idx.in_(_THESE),
    _attempts.c.attempt == 1,
    _attempts.c.collateral_crashes == 1,
)
_MARK_BEGUN = sa.update(_attempts).where(_IS_AHEAD).values(collateral_crashes=0)
_UNCOUNT = sa.delete(_attempts).where(_IS_AHEAD)
_LAST_SEQ = sa.select(_jobs.c.last_seq).where(_jobs.c.job == _OF_JOB)
_INSERT_OUTCOMES = sa.insert(_outcomes)
_DELETE_STEPS = sa.delete(_checkpoints).where(_checkpoints.c.job == _OF_JOB, _checkpoints.c.idx.in_(_THESE))
_SUMMED = (*STATUSES, *TOKENS)
_ADD_TO_JOB = (
    sa.update(_jobs)
    .where(_jobs.c.job == _OF_JOB)
    .values(
        updated_at=sa.bindparam("now"),
        last_seq=sa.bindparam("seq"),
        **{name: _jobs.c[name] + sa.bindparam(f"n_{name}") for name in _SUMMED},
    )
)


class _EndedPage(NamedTuple):
    """The number of items that were ended, and the index of the last one."""

    n_items: int
    last: int


class Outcomes:
    """Attempts, checkpoints and outcomes of items.  Every write is fenced by the job's lease."""

    def __init__(self, database: Database, leases: Leases) -> None:
        self._database, self._leases = database, leases
        self._insert_steps = database.backend.insert(_checkpoints).on_conflict_do_nothing()
        self._upsert_attempts = _upsert(database.backend.insert(_attempts), "job", "idx")
        self._upsert_runs = _upsert(database.backend.insert(_agent_runs), "user_id", "agent_id")

    def write(
        self,
        job: LedJob,
        attempts: Sequence[NewAttempt] = (),
        outcomes: Sequence[NewOutcome] = (),
        is_again: bool = False,
        steps: Sequence[NewStep] = (),
        ahead: AheadCounts = _NOTHING_AHEAD,
    ) -> list[NewOutcome]:
        """Count attempts, store checkpoints and record outcomes in one transaction; return the recorded outcomes.

        Outcomes and checkpoints count only if they are of the item's current attempt, and only one outcome per item.

        `is_again`: the same write was tried before, and it is unknown whether it was committed.  The outcomes that it
        recorded are then returned too.  Raises LeaseLostError, and writes nothing, if another process leads the job.
        """
        with self._database.transaction() as connection:
            self._leases.check(connection, job)
            before = self._recorded_before(connection, job, outcomes) if is_again else []
            self._write_steps(connection, job, steps)  # first: the next attempt at an item may be in the same commit
            counted_ahead = (NewAttempt(index, 1, 0, 1) for index in ahead.counted)
            self._write_attempts(connection, job, [*attempts, *counted_ahead])
            _for_items(connection, _MARK_BEGUN, job, ahead.begun)
            taken = self._to_record(connection, job, outcomes)
            if taken:
                self._insert_outcomes(connection, job, taken)
            _for_items(connection, _UNCOUNT, job, ahead.uncounted)
        if ahead.counted:
            failpoint("counted-ahead")
        if steps:
            failpoint("step-committed")
        if taken:
            failpoint("outcome-committed")
        return [*before, *taken.values()]

    def end_unfinished(
        self, job: LedJob, status: str, stop_reason: str, error: Mapping[str, str] | None
    ) -> Chunked[int]:
        """Give this outcome to every item without one, in short transactions; return how many.

        Raises LeaseLostError if another process leads the job now.
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
        while (ended := self._end_page(job, last, outcome)) is not None:
            n_ended, last = n_ended + ended.n_items, ended.last
            yield
        return n_ended

    def _end_page(self, job: LedJob, after: int, outcome: Mapping[str, Any]) -> _EndedPage | None:
        """Give this outcome to the next items without one, inside the database: their requests are not read.

        Returns None if there is none left; it then releases their claims and deletes their checkpoints.
        """
        with self._database.transaction() as connection:
            self._leases.check(connection, job)
            seq = connection.execute(sa.select(_jobs.c.last_seq).where(_jobs.c.job == job.key)).scalar_one()
            after = before_unfinished(connection, job, after)
            page = _without_outcome(job, after).subquery()
            new = sa.select(page.c.job, page.c.idx, sa.literal(1)).where(page.c.attempt.is_(None))
            connection.execute(sa.insert(_attempts).from_select(["job", "idx", "attempt"], new))
            same = {**outcome, "finished_at": utc_now()}
            rank = sa.func.row_number().over(order_by=page.c.idx)
            literals = (sa.literal(value, _outcomes.c[name].type) for name, value in same.items())
            attempt = sa.case((page.c.attempt < 1, 1), else_=page.c.attempt)  # 0: counted ahead
            ended = sa.select(page.c.job, page.c.idx, seq + rank, attempt, *literals)
            connection.execute(sa.insert(_outcomes).from_select(["job", "idx", "seq", "attempt", *same], ended))
            these = sa.and_(_outcomes.c.job == job.key, _outcomes.c.seq > seq)
            counted = sa.select(sa.func.count(), sa.func.max(_outcomes.c.idx)).where(these)
            n_ended, last = connection.execute(counted).one()
            if n_ended == 0 and (last := after + _ITEMS_SEEN) < job.total:
                return _EndedPage(0, last)
            if n_ended == 0:
                release_claims(connection, job)
                connection.execute(sa.delete(_checkpoints).where(_checkpoints.c.job == job.key))
                return None
            status = outcome["status"]
            values = {status: _jobs.c[status] + n_ended, "last_seq": seq + n_ended, "updated_at": same["finished_at"]}
            connection.execute(sa.update(_jobs).where(_jobs.c.job == job.key).values(**values))
        failpoint("outcome-committed")
        return _EndedPage(n_ended, last)

    def _write_attempts(self, connection: sa.Connection, job: JobRecord, attempts: Sequence[NewAttempt]) -> None:
        if not attempts:
            return
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
        connection.execute(self._upsert_attempts, rows)

    def _write_steps(self, connection: sa.Connection, job: JobRecord, steps: Sequence[NewStep]) -> None:
        current = self._current_attempts(connection, job, {step.index for step in steps})
        rows = [
            {"job": job.key, "idx": step.index, "seq": step.seq, "checkpoint": step.checkpoint}
            for step in steps
            if step.index in current and current[step.index].attempt == step.attempt
        ]
        if rows:  # some may exist, after a write whose commit is unknown
            connection.execute(self._insert_steps, rows)

    def _recorded_before(
        self, connection: sa.Connection, job: JobRecord, outcomes: Sequence[NewOutcome]
    ) -> list[NewOutcome]:
        """Return the outcomes that are recorded already: an attempt has one leader and one outcome."""
        there: set[tuple[int, int]] = set()
        for chunk in chunks(outcome.index for outcome in outcomes):
            query = sa.select(_outcomes.c.idx, (_outcomes.c.attempt + _attempts.c.collateral_crashes).label("attempt"))
            query = query.join(_attempts, same_item(_outcomes, _attempts))
            query = query.where(_outcomes.c.job == job.key, _outcomes.c.idx.in_(chunk))
            there.update((row.idx, row.attempt) for row in connection.execute(query))
        return [outcome for outcome in outcomes if (outcome.index, outcome.attempt) in there]

    def _to_record(
        self, connection: sa.Connection, job: JobRecord, outcomes: Sequence[NewOutcome]
    ) -> dict[NewAttempt, NewOutcome]:
        """Return the outcomes to record, by attempt: the first of each item, of its current attempt."""
        current = self._current_attempts(connection, job, (outcome.index for outcome in outcomes))
        if ahead := [index for index, each in current.items() if each.attempt == each.collateral_crashes]:
            _for_items(connection, _MARK_BEGUN, job, ahead)  # they were to be marked by a write that failed
            current.update({index: NewAttempt(index, 1) for index in ahead})
        taken = {}
        for outcome in outcomes:
            if outcome.index in current and current[outcome.index].attempt == outcome.attempt:
                taken[current.pop(outcome.index)] = outcome
        return taken

    def _current_attempts(
        self, connection: sa.Connection, job: JobRecord, indices: Iterable[int]
    ) -> dict[int, NewAttempt]:
        """Return the current attempts of the items that have no outcome."""
        current: dict[int, NewAttempt] = {}
        for chunk in chunks(indices):
            rows = connection.execute(_CURRENT_ATTEMPTS, {"of_job": job.key, "indexes": chunk})
            current.update((row[0], NewAttempt(*row)) for row in rows)
        return current

    def _insert_outcomes(
        self, connection: sa.Connection, job: JobRecord, outcomes: Mapping[NewAttempt, NewOutcome]
    ) -> None:
        """Insert outcomes by their attempts.

        The stored number of attempts leaves out those lost because another request crashed the shared process.
        """
        taken = list(outcomes.values())
        seq = connection.execute(_LAST_SEQ, {"of_job": job.key}).scalar_one()
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
        connection.execute(_INSERT_OUTCOMES, rows)
        apply_conversation_updates(connection, job, taken)
        self._keep_last_runs(connection, job, taken, now)
        _for_items(connection, _DELETE_STEPS, job, (outcome.index for outcome in taken if outcome.has_steps))
        added = {f"n_{status}": sum(outcome.status == status for outcome in taken) for status in STATUSES}
        for name in TOKENS:
            added[f"n_{name}"] = sum(outcome.usage.get(name, 0) for outcome in taken)
        connection.execute(_ADD_TO_JOB, {"of_job": job.key, "now": now, "seq": seq + len(taken), **added})

    def _keep_last_runs(self, connection: sa.Connection, job: JobRecord, taken: Sequence[NewOutcome], now: str) -> None:
        last = {outcome.agent_id: outcome for outcome in taken if outcome.agent_id is not None}
        if not last:
            return
        rows = [
            {
                "user_id": job.user_id,
                "agent_id": agent_id,
                "finished_at": now,
                "stop_reason": last[agent_id].stop_reason,
                "duration_ns": last[agent_id].duration_ns,
            }
            for agent_id in sorted(last)  # in one order, so that two jobs never wait for each other
        ]
        connection.execute(self._upsert_runs, rows)


def _upsert(insert: Any, *key: str) -> Any:
    """Return an INSERT of rows that replaces those with the same key."""
    changed = {column.name: column for column in insert.excluded if column.name not in key}
    return insert.on_conflict_do_update(index_elements=key, set_=changed)


def _for_items(connection: sa.Connection, statement: sa.Executable, job: JobRecord, indexes: Iterable[int]) -> None:
    for chunk in chunks(indexes):
        connection.execute(statement, {"of_job": job.key, "indexes": chunk})


def _without_outcome(job: JobRecord, after: int) -> sa.Select[Any]:
    """Select the next items without an outcome and their number of attempts without collateral crashes, or NULL."""
    return (
        sa.select(_items.c.job, _items.c.idx, (_attempts.c.attempt - _attempts.c.collateral_crashes).label("attempt"))
        .outerjoin(_outcomes, same_item(_items, _outcomes))
        .outerjoin(_attempts, same_item(_items, _attempts))
        .where(_items.c.job == job.key, _items.c.idx.between(after + 1, after + _ITEMS_SEEN), _outcomes.c.idx.is_(None))
        .order_by(_items.c.idx)
        .limit(_ITEMS_PER_TRANSACTION)
    )

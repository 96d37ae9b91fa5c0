"""Runs: the items of all of a user's jobs, in the order of their creation, and the feedback on their steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import orjson
import sqlalchemy as sa

from batchray.errors import UnknownJobError
from batchray.store.database import Database
from batchray.store.jobs import Jobs
from batchray.store.queries import between, is_its_own
from batchray.store.records import JobRecord, RunFilter, RunPosition, SortOrder, StepFeedback, StoredRun, job_record
from batchray.store.tables import attempts, items, jobs, outcomes, same_item, step_feedback

_KINDS = ("batch", "run", "background")
_JOBS_PER_PAGE = 100
# Without the agents' settings and the histograms, which no run needs.
_JOB_COLUMNS = [column for column in jobs.c if column.name not in ("agents", "progress")]
_OUTCOME_COLUMNS = ("status", "stop_reason", "error", "usage", "ttft_ns", "duration_ns", "finished_at")
_N_MESSAGE_BYTES = sa.func.length(outcomes.c.messages)
_ENDED = ("succeeded", "errored", "canceled", "expired")
# 0: it has not begun.
_TRIED = sa.func.coalesce(outcomes.c.attempt, attempts.c.attempt - attempts.c.collateral_crashes, 0)


class Runs:
    """The items of jobs as runs.  A run is found by its job's id and its index, never by a scan."""

    def __init__(self, database: Database, jobs: Jobs) -> None:
        self._database, self._jobs = database, jobs

    def get(self, user_id: str, job_stem: str, index: int) -> StoredRun | None:
        """Return a user's run with its messages, or None; `job_stem` is the beginning of its job's id."""
        job = self._jobs.find_by_id_prefix(job_stem, user_id)
        if job is None:
            return None
        query = _runs_of([job], with_messages=True).where(items.c.idx == index)
        with self._database.reading() as connection:
            row = connection.execute(query).first()
        return _stored_run({job.key: job}, *row) if row else None

    def pages(
        self,
        user_id: str,
        wanted: RunFilter,
        order: SortOrder,
        after: RunPosition | None = None,
        before: RunPosition | None = None,
        *,
        limit: int,
        with_messages: bool = False,
    ) -> Iterator[list[StoredRun]]:
        """Yield a user's runs between two positions, in pages of at most `limit` runs and about 8 MiB."""
        found = self._jobs_between(user_id, wanted, order, after and after.job, before and before.job)
        for group in _groups(found, limit):
            if not self._may_have(group, wanted):
                continue
            by_key, last = {job.key: job for job in group}, after
            query = _runs_of(group, with_messages=with_messages).where(*_item_conditions(wanted)).limit(limit)
            keys = (items.c.job, items.c.idx)
            query = query.order_by(*(keys if order == "asc" else (key.desc() for key in keys)))
            n_bytes = sa.func.length(items.c.request) + (sa.func.coalesce(_N_MESSAGE_BYTES, 0) if with_messages else 0)
            while page := self._page(query, n_bytes, by_key, order, last, before):
                yield page
                last = page[-1].position

    def _page(
        self,
        query: sa.Select[Any],
        n_bytes: sa.ColumnElement[int],
        jobs: Mapping[int, JobRecord],
        order: SortOrder,
        after: RunPosition | None,
        before: RunPosition | None,
    ) -> list[StoredRun]:
        for cursor, name in ((after, "after"), (before, "before")):
            if cursor is not None and cursor.job in jobs:
                query = _bounded(query, order, cursor, name, is_only=len(jobs) == 1)
        if after is not None and after.job in jobs:  # the jobs before it are done
            query = query.where(items.c.job >= after.job if order == "asc" else items.c.job <= after.job)
        return self._database.page(query, partial(_stored_run, jobs), n_bytes)

    def _jobs_between(
        self, user_id: str, wanted: RunFilter, order: SortOrder, first: int | None, last: int | None
    ) -> Iterator[JobRecord]:
        """Yield a user's jobs from one key to another, both included, that may have a wanted run."""
        step = 1 if order == "asc" else -1
        after, before = first and first - step, last and last + step
        while found := self._page_of_jobs(user_id, wanted, order, after, before):
            yield from found
            after = found[-1].key

    def _page_of_jobs(
        self, user_id: str, wanted: RunFilter, order: SortOrder, after: int | None, before: int | None
    ) -> list[JobRecord]:
        """Return the next jobs of all kinds.  Each kind is a query of its own, which the index of jobs answers."""
        found = list[JobRecord]()
        with self._database.reading() as connection:
            for kind in _KINDS if wanted.kinds is None else wanted.kinds:
                query: sa.Select[Any] = sa.select(*_JOB_COLUMNS, sa.null().label("progress")).limit(_JOBS_PER_PAGE)
                query = query.where(jobs.c.user_id == user_id, jobs.c.kind == kind, *_job_conditions(wanted, kind))
                query = between(query, jobs.c.job, order, after, before)
                query = query.order_by(jobs.c.job if order == "asc" else jobs.c.job.desc())
                found += map(job_record, connection.execute(query).mappings())
        found.sort(key=lambda job: job.key, reverse=order == "desc")
        return found[:_JOBS_PER_PAGE]

    def _may_have(self, group: Sequence[JobRecord], wanted: RunFilter) -> bool:
        """Whether a large batch, which is a group of its own, has a wanted agent: its items have no index of agents."""
        if len(group) > 1 or group[0].is_single or wanted.agent_ids is None:
            return True
        try:
            return not self._jobs.agent_snapshot(group[0].id).keys().isdisjoint(wanted.agent_ids)
        except UnknownJobError:  # deleted a moment ago
            return False

    def feedback(self, runs: Sequence[StoredRun]) -> dict[tuple[RunPosition, int], StepFeedback]:
        """Return the feedback on the steps of runs, by run and ordinal."""
        jobs, indices = ({position[i] for position in (run.position for run in runs)} for i in range(2))
        query = sa.select(step_feedback).where(step_feedback.c.job.in_(jobs), step_feedback.c.idx.in_(indices))
        with self._database.reading() as connection:
            return {
                (RunPosition(row.job, row.idx), row.ordinal): StepFeedback(row.feedback, orjson.loads(row.tags))
                for row in connection.execute(query)
            }

    def set_feedback(self, run: StoredRun, ordinal: int, said: StepFeedback) -> None:
        """Replace the feedback on a step; without feedback and tags it is removed."""
        step = {"job": run.job.key, "idx": run.index, "ordinal": ordinal}
        of_step = sa.and_(*(step_feedback.c[name] == value for name, value in step.items()))
        values = {"feedback": said.feedback, "tags": orjson.dumps(list(said.tags))}
        with self._database.transaction() as connection:
            connection.execute(sa.delete(step_feedback).where(of_step))
            if said.feedback is not None or said.tags:
                # Only if the job still exists: it may have been deleted since it was read.
                columns = [sa.literal(value, step_feedback.c[name].type) for name, value in {**step, **values}.items()]
                there = sa.select(*columns).where(sa.exists().where(jobs.c.job == run.job.key, jobs.c.id == run.job.id))
                connection.execute(sa.insert(step_feedback).from_select([*step, *values], there))


def _job_conditions(wanted: RunFilter, kind: str) -> Iterator[sa.ColumnElement[bool]]:
    """Yield conditions that skip whole jobs."""
    if wanted.agent_ids is not None and kind != "batch":
        yield jobs.c.agent_id.in_(wanted.agent_ids)
    if wanted.statuses is not None:
        ended = [jobs.c[status] > 0 for status in wanted.statuses if status in _ENDED]
        is_open = [jobs.c.completed_at.is_(None)] if set(wanted.statuses) - {*_ENDED} else []
        yield sa.or_(sa.false(), *ended, *is_open)
    if wanted.created_before is not None:
        yield jobs.c.created_at < wanted.created_before
    if wanted.ended_after is not None:
        yield sa.or_(jobs.c.completed_at.is_(None), jobs.c.completed_at > wanted.ended_after)


def _item_conditions(wanted: RunFilter) -> Iterator[sa.ColumnElement[bool]]:
    if wanted.agent_ids is not None:
        yield items.c.agent_id.in_(wanted.agent_ids)
    if wanted.statuses is not None:
        is_open = {
            "created": sa.and_(outcomes.c.idx.is_(None), _TRIED == 0),
            "running": sa.and_(outcomes.c.idx.is_(None), _TRIED > 0),
        }
        yield sa.or_(
            outcomes.c.status.in_([status for status in wanted.statuses if status in _ENDED]),
            *(is_open[status] for status in wanted.statuses if status in is_open),
        )
    if wanted.stop_reason is not None:
        yield outcomes.c.stop_reason == wanted.stop_reason
    if wanted.has_feedback:
        yield sa.exists().where(same_item(step_feedback, items))
    if wanted.ended_after is not None:
        yield sa.or_(outcomes.c.finished_at.is_(None), outcomes.c.finished_at > wanted.ended_after)


def _groups(found: Iterator[JobRecord], limit: int) -> Iterator[list[JobRecord]]:
    """Yield jobs together whose items one query may read: about `limit` items, or one job with more."""
    group, n_items = list[JobRecord](), 0
    for job in chain(found, (None,)):
        if group and (job is None or n_items + job.total > limit):
            yield group
            group, n_items = [], 0
        if job is not None:
            group.append(job)
            n_items += job.total


def _bounded(
    query: sa.Select[Any], order: SortOrder, cursor: RunPosition, name: str, *, is_only: bool
) -> sa.Select[Any]:
    """Restrict a query to what comes after or before a run of one of its jobs."""
    is_above = (name == "after") == (order == "asc")
    in_job = items.c.idx > cursor.item if is_above else items.c.idx < cursor.item
    # Of a single job the condition is a range of its key, which needs no scan.
    return query.where(in_job if is_only else sa.or_(items.c.job != cursor.job, in_job))


def _runs_of(group: Sequence[JobRecord], *, with_messages: bool) -> sa.Select[Any]:
    messages = outcomes.c.messages if with_messages else sa.literal(b"", sa.LargeBinary)
    of_jobs = items.c.job == group[0].key if len(group) == 1 else items.c.job.in_([job.key for job in group])
    return (
        sa.select(
            items.c.job,
            items.c.idx,
            items.c.agent_id,
            items.c.custom_id,
            items.c.request,
            _TRIED,
            *(outcomes.c[name] for name in _OUTCOME_COLUMNS),
            messages,
        )
        .select_from(
            items.outerjoin(outcomes, sa.and_(same_item(items, outcomes), is_its_own())).outerjoin(
                attempts, same_item(items, attempts)
            )
        )
        .where(of_jobs)
    )


def _stored_run(
    jobs: Mapping[int, JobRecord],
    job: int,
    index: int,
    agent_id: str,
    custom_id: str | None,
    request: bytes,
    attempts: int,
    status: str | None,
    stop_reason: str | None,
    error: bytes | None,
    usage: bytes | None,
    ttft_ns: int | None,
    duration_ns: int | None,
    finished_at: str | None,
    messages: bytes | None,
) -> StoredRun:
    """Build a run from a row of `_runs_of`."""
    return StoredRun(
        job=jobs[job],
        index=index,
        agent_id=agent_id,
        custom_id=custom_id,
        request=request,
        attempts=attempts,
        status=status,
        stop_reason=stop_reason,
        error=orjson.loads(error) if error else None,
        usage=orjson.loads(usage) if usage else {},
        ttft_ns=ttft_ns,
        duration_ns=duration_ns,
        finished_at=finished_at,
        messages=messages or b"",
    )

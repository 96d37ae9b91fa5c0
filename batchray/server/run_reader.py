"""Finds a user's runs and steps, one by its id or page by page.  Everything here blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from batchray.schema import Run, RunStatus, Step, index_of, is_id, job_stem, ordinal_of, run_id
from batchray.schema.letta_messages import LettaMessageBase
from batchray.server.errors import HttpError
from batchray.server.pagination import Page, paged, slice_of
from batchray.server.run_queries import RunsQuery, StepsQuery
from batchray.server.run_views import STATUSES, MessageParts, RunDetails, RunStep, run_view
from batchray.store import JobKind, RunFilter, RunPosition, SortOrder, StepFeedback, Store, StoredRun

_ACTIVE = (RunStatus.CREATED, RunStatus.RUNNING)


class RunReader:
    """Reads runs from a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def run(self, user_id: str, run_id: str) -> StoredRun:
        """Return a user's run.  Raises HttpError 400 for a malformed id, 404 for an unknown one."""
        return self._find(user_id, run_id, "run")

    def details(self, user_id: str, run_id: str) -> RunDetails:
        """Return a user's run with its messages; otherwise as `run`."""
        return self._details(self.run(user_id, run_id))

    def step(self, user_id: str, step_id: str) -> RunStep:
        """Return a user's step; otherwise as `run`."""
        details = self._details(self._find(user_id, step_id, "step"))
        for step in details.steps:
            if step.id == step_id:
                return step
        raise HttpError(404, f"Step with id {step_id} not found")

    def view(self, step: RunStep) -> Step:
        """Return a step as Letta's Step."""
        return step.view(self._store.runs.feedback([step.of.run]).get(step.position))

    def runs(self, user_id: str, query: RunsQuery) -> list[Run]:
        """Return a page of a user's runs."""
        if query.conversation_id is not None:
            return []
        statuses = query.statuses or (_ACTIVE if query.active else ())
        wanted = RunFilter(
            agent_ids=(query.agent_id,) if query.agent_id is not None else query.agent_ids or None,
            statuses=[each for status in statuses for each in STATUSES[status]] or None,
            stop_reason=query.stop_reason,
            kinds=_kinds(query.background),
        )

        def page(query: RunsQuery) -> list[Run]:
            after, before = (self._position(user_id, each, "run") for each in (query.after, query.before))
            pages = self._store.runs.pages(user_id, wanted, query.order, after, before, limit=query.limit)
            return list(islice((run_view(run) for several in pages for run in several), query.limit))

        return paged(query.model_copy(update={"order": "asc"}) if query.ascending else query, page)

    def steps(self, user_id: str, query: StepsQuery) -> list[Step]:
        """Return a page of a user's steps."""
        if query.trace_ids or query.project_id is not None:
            return []
        return paged(query, lambda query: list(islice(self._steps(user_id, query), query.limit)))

    def steps_of(self, details: RunDetails, query: Page) -> list[Step]:
        """Return a page of a run's steps."""

        def page(query: Page) -> list[RunStep]:
            steps = details.steps if query.order == "asc" else details.steps[::-1]
            return steps[slice_of([step.id for step in steps], query, "Step with id")][: query.limit]

        feedback = self._store.runs.feedback([details.run])
        return [step.view(feedback.get(step.position)) for step in paged(query, page)]

    def _steps(self, user_id: str, query: StepsQuery) -> Iterator[Step]:
        """Yield the wanted steps between the cursors."""
        after, before = (self._step_position(user_id, each) for each in (query.after, query.before))
        sign = 1 if query.order == "asc" else -1
        wanted = _filter_of(query)
        pages = self._store.runs.pages(
            user_id,
            wanted,
            query.order,
            after and RunPosition(after[0].job, after[0].item - sign),
            before and RunPosition(before[0].job, before[0].item + sign),
            limit=query.limit,
            with_messages=True,
        )
        for runs in pages:
            feedback = self._store.runs.feedback(runs)
            for run in runs:
                for step in self._details(run).steps[::sign]:
                    said = feedback.get(step.position)
                    if _is_between(step, after, before, query.order) and _is_wanted(step, said, query):
                        yield step.view(said)

    def _details(self, run: StoredRun) -> RunDetails:
        is_running = run.status is None and run.attempts > 0
        return RunDetails.of(run, self._store.items.checkpoints(run.job, run.index) if is_running else ())

    def _find(self, user_id: str, derived_id: str, kind: str) -> StoredRun:
        if not is_id(derived_id, kind):
            expected = f"Expected format: '{kind}-<uuid4>'"
            raise HttpError(400, f"INVALID_ARGUMENT: Invalid {kind} ID format: {derived_id}. {expected}")
        run = self._store.runs.get(user_id, job_stem(derived_id), index_of(derived_id))
        if run is None or (kind == "run" and run_id(run.job.id, run.index) != derived_id):
            raise HttpError(404, f"{kind.capitalize()} with id {derived_id} not found")
        return run

    def _position(self, user_id: str, cursor: str | None, kind: str) -> RunPosition | None:
        """Return the position of the run that a cursor names.  Raises HttpError 400 for an unknown one."""
        if cursor is None:
            return None
        job = self._store.jobs.find_by_id_prefix(job_stem(cursor), user_id) if is_id(cursor, kind) else None
        if job is None:
            raise HttpError(400, f"{kind.capitalize()} with id {cursor} not found")
        return RunPosition(job.key, index_of(cursor))

    def _step_position(self, user_id: str, cursor: str | None) -> tuple[RunPosition, int] | None:
        position = self._position(user_id, cursor, "step")
        return (position, ordinal_of(cursor)) if position is not None and cursor is not None else None


def page_of(messages: list[MessageParts], query: Page) -> list[LettaMessageBase]:
    """Return a page of messages; the limit counts stored messages, whose parts stay together."""

    def page(query: Page) -> list[MessageParts]:
        ordered = messages if query.order == "asc" else messages[::-1]
        return ordered[slice_of([parts[0].id for parts in ordered], query, "Message with id")][: query.limit]

    is_newest_first = query.order == "desc"
    return [part for parts in paged(query, page) for part in (parts[::-1] if is_newest_first else parts)]


def _kinds(is_background: bool | None) -> Sequence[JobKind] | None:
    if is_background is None:
        return None
    background, others = list[JobKind](["background"]), list[JobKind](["batch", "run"])
    return background if is_background else others


def _filter_of(query: StepsQuery) -> RunFilter:
    return RunFilter(
        agent_ids=(query.agent_id,) if query.agent_id is not None else None,
        has_feedback=bool(query.has_feedback or query.feedback is not None or query.tags),
        created_before=query.end_date.isoformat(timespec="microseconds") if query.end_date else None,
        ended_after=query.start_date.isoformat(timespec="microseconds") if query.start_date else None,
    )


def _is_between(
    step: RunStep, after: tuple[RunPosition, int] | None, before: tuple[RunPosition, int] | None, order: SortOrder
) -> bool:
    if order == "desc":
        after, before = before, after
    return (after is None or step.position > after) and (before is None or step.position < before)


def _is_wanted(step: RunStep, said: StepFeedback | None, query: StepsQuery) -> bool:
    began_at, feedback = step.began_at(), said.feedback if said is not None else None
    return (
        (query.model is None or step.has_model(query.model))
        and (query.feedback is None or feedback == query.feedback)
        and (query.has_feedback is None or (feedback is not None) == query.has_feedback)
        and (not query.tags or (said is not None and not set(query.tags).isdisjoint(said.tags)))
        and (query.start_date is None or began_at > query.start_date.isoformat(timespec="microseconds"))
        and (query.end_date is None or began_at < query.end_date.isoformat(timespec="microseconds"))
    )

"""Runs as the store pages through them: the items of all jobs of a user, in both orders and with every filter."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchray.jobs.idle import cancel_idle_job
from batchray.schema import index_of, job_stem, new_job_id, run_id
from batchray.store import (
    AheadCounts,
    JobKind,
    NewItem,
    NewJob,
    RunFilter,
    RunPosition,
    SortOrder,
    StepFeedback,
    Store,
    StoredRun,
    run_all,
)
from tests.builders.records import begin, outcome
from tests.postgres import Database

STATUSES = ("succeeded", "errored", "canceled", "expired", "created", "running")
SIZES = (1, 3, 1, 1, 7, 2, 12, 1, 5, 1, 1)
USERS = ("user-a", "user-b")


def fill(store: Store) -> list[StoredRun]:
    """Create jobs of two users, of several sizes, kinds and agents, whose items are in all states; return all runs."""
    n = count()
    for i, size in enumerate(SIZES * 2):
        kind: JobKind = "batch" if size > 1 else ("run", "background")[i % 2]
        agents = [f"agent-{next(n) % 3}" for _ in range(size)]
        new = NewJob(new_job_id(), lambda ids: {each: {} for each in ids}, kind=kind, user_id=USERS[i % 3 == 0])
        given_items = [NewItem(agent, None, b'{"input": "x"}') for agent in agents]
        store.jobs.create(new if kind == "batch" else replace_agent(new, agents[0]), given_items)
        job = store.jobs.start(new.id)
        states = [STATUSES[(i + index) % len(STATUSES)] for index in range(size)]
        begin(store, job, *(index for index, state in enumerate(states) if state != "created"))
        ahead = [index for index, state in enumerate(states) if state == "created" and index % 2]
        store.outcomes.write(job, ahead=AheadCounts(ahead, [], []))  # which have not begun
        ended = [outcome(index, status=state) for index, state in enumerate(states) if state not in STATUSES[4:]]
        store.outcomes.write(job, outcomes=ended)
    runs = [run for user in USERS for run in found(store, user, RunFilter(), "asc")]
    assert len(runs) == sum(SIZES) * 2
    for run in runs[::4]:
        store.runs.set_feedback(run, 1, StepFeedback("positive", ["tag"]))
    return runs


def replace_agent(new: NewJob, agent_id: str) -> NewJob:
    return NewJob(new.id, new.snapshot, kind=new.kind, user_id=new.user_id, agent_id=agent_id)


def found(
    store: Store,
    user: str,
    wanted: RunFilter,
    order: SortOrder,
    after: RunPosition | None = None,
    before: RunPosition | None = None,
    limit: int = 100,
) -> list[StoredRun]:
    return [*chain.from_iterable(store.runs.pages(user, wanted, order, after, before, limit=limit))]


def matches(run: StoredRun, wanted: RunFilter, with_feedback: set[RunPosition]) -> bool:
    state = run.status or ("running" if run.attempts else "created")
    return (
        (wanted.agent_ids is None or run.agent_id in wanted.agent_ids)
        and (wanted.statuses is None or state in wanted.statuses)
        and (wanted.stop_reason is None or run.stop_reason == wanted.stop_reason)
        and (wanted.kinds is None or run.job.kind in wanted.kinds)
        and (not wanted.has_feedback or run.position in with_feedback)
    )


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def filled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Store, list[StoredRun]]]:
    database: Database | None = request.getfixturevalue("database") if request.param == "postgres" else None
    with Store.open(tmp_path_factory.mktemp("runs") / "data", database.new_url() if database else None) as store:
        yield store, fill(store)


FILTERS = st.builds(
    RunFilter,
    agent_ids=st.none() | st.sets(st.sampled_from(["agent-0", "agent-1", "agent-2", "agent-9"]), min_size=1),
    statuses=st.none() | st.sets(st.sampled_from(STATUSES), min_size=1),
    stop_reason=st.sampled_from([None, None, "end_turn", "error"]),
    kinds=st.none() | st.sets(st.sampled_from(["batch", "run", "background"]), min_size=1).map(sorted),
    has_feedback=st.booleans(),
)


@settings(max_examples=25)
@given(st.data())
def test_every_page_has_the_runs_that_its_cursors_and_filters_select(
    filled: tuple[Store, list[StoredRun]], data: st.DataObject
) -> None:
    store, runs = filled
    user = data.draw(st.sampled_from(USERS))
    order: SortOrder = data.draw(st.sampled_from(["asc", "desc"]))
    own = sorted((run for run in runs if run.job.user_id == user), key=lambda run: run.position)
    cursors = st.none() | st.sampled_from([run.position for run in own])
    after, before, wanted = data.draw(cursors), data.draw(cursors), data.draw(FILTERS)
    lower, upper = (after, before) if order == "asc" else (before, after)
    expected = [
        run.position
        for run in own
        if (lower is None or run.position > lower)
        and (upper is None or run.position < upper)
        and matches(run, wanted, {each.position for each in runs[::4]})
    ]
    pages = found(store, user, wanted, order, after, before, data.draw(st.integers(1, 20)))
    assert [run.position for run in pages] == (expected if order == "asc" else expected[::-1])


def test_a_run_is_found_by_its_id_and_only_by_its_user(filled: tuple[Store, list[StoredRun]]) -> None:
    store, runs = filled
    for run in runs[::5]:
        derived = run_id(run.job.id, run.index)
        own, other = (
            store.runs.get(user, job_stem(derived), index_of(derived))
            for user in sorted(USERS, key=run.job.user_id.__ne__)
        )
        assert own is not None
        assert (own.position, own.agent_id, own.status) == (run.position, run.agent_id, run.status)
        assert other is None


def test_feedback_is_replaced_and_removed(filled: tuple[Store, list[StoredRun]]) -> None:
    store, [_, run, *_] = filled
    for said in (StepFeedback("negative", []), StepFeedback(None, ["a", "b"])):
        store.runs.set_feedback(run, 3, said)
        assert store.runs.feedback([run]) == {(run.position, 3): said}
    store.runs.set_feedback(run, 3, StepFeedback(None, []))
    assert store.runs.feedback([run]) == {}


def test_large_requests_make_short_pages(tmp_path: Path) -> None:
    with Store.open(tmp_path / "data") as store:
        body: Any = b'"%s"' % (b"x" * 3_000_000)
        store.jobs.create(NewJob(new_job_id(), lambda ids: {}), [NewItem("a", None, body)] * 7)
        [job] = store.jobs.find()
        pages = [len(page) for page in store.runs.pages(job.user_id, RunFilter(), "desc", limit=100)]
    assert sum(pages) == 7
    assert max(pages) <= 3


def test_a_batch_that_is_deleted_while_runs_are_listed_is_left_out(tmp_path: Path) -> None:
    with Store.open(tmp_path / "data") as store:
        for _ in range(2):
            new = NewJob(new_job_id(), lambda ids: {each: {} for each in ids})
            store.jobs.create(new, [NewItem("a", None, b'{"input": "x"}')] * 2)
        kept, deleted = store.jobs.find()
        pages = store.runs.pages(kept.user_id, RunFilter(agent_ids=("a",)), "asc", limit=2)
        assert [run.job.id for run in next(pages)] == [kept.id] * 2
        run_all(cancel_idle_job(store, deleted.id))
        assert store.retention.forget(store.jobs.get(deleted.id))
        assert list(pages) == []

"""Checkpoints in the store, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from batchray.schema import new_job_id
from batchray.store import LedJob, NewAttempt, NewItem, NewJob, NewOutcome, NewStep, Store, run_all

REQUEST = b'{"agent_id": "a", "input": "hi"}'


@pytest.fixture(params=["sqlite", "postgres"])
def job(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Store, LedJob]]:
    url = request.getfixturevalue("database").new_url() if request.param == "postgres" else None
    with Store.open(tmp_path / "data", url) as store:
        items = [NewItem("a", None, REQUEST)] * 3
        job_id = new_job_id()
        store.jobs.create(NewJob(job_id, lambda ids: {}), items)
        yield store, store.jobs.start(job_id)


def outcome(index: int, attempt: int) -> NewOutcome:
    return NewOutcome(
        index=index,
        attempt=attempt,
        status="succeeded",
        stop_reason="end_turn",
        error=None,
        usage={},
        queued_ns=0,
        ttft_ns=None,
        duration_ns=0,
        messages=b"[]",
        has_steps=True,
    )


def test_only_the_current_attempt_keeps_steps_and_each_only_once(job: tuple[Store, LedJob]) -> None:
    store, record = job
    store.outcomes.write(record, [NewAttempt(0, 1), NewAttempt(1, 1)])
    for is_again in (False, True):
        steps = [NewStep(0, 1, 0, b"a0"), NewStep(1, 1, 0, b"b0"), NewStep(0, 1, 1, b"a1")]
        store.outcomes.write(record, [], [], is_again, steps)
    store.outcomes.write(record, [NewAttempt(0, 2)])
    store.outcomes.write(record, [], [], False, [NewStep(0, 1, 2, b"stale"), NewStep(0, 2, 2, b"a2")])
    assert [store.items.checkpoints(record, index) for index in range(3)] == [[b"a0", b"a1", b"a2"], [b"b0"], []]


def test_a_step_is_kept_that_comes_to_the_disk_together_with_the_next_attempt(job: tuple[Store, LedJob]) -> None:
    store, record = job
    store.outcomes.write(record, [NewAttempt(0, 1)])
    store.outcomes.write(record, [NewAttempt(0, 2, 1)], [], False, [NewStep(0, 1, 0, b"a0")])
    assert store.items.checkpoints(record, 0) == [b"a0"]


def test_an_outcome_takes_the_place_of_its_items_steps(job: tuple[Store, LedJob]) -> None:
    store, record = job
    store.outcomes.write(record, [NewAttempt(0, 1), NewAttempt(1, 1)])
    store.outcomes.write(record, [], [], False, [NewStep(0, 1, 0, b"a0"), NewStep(1, 1, 0, b"b0")])
    assert store.outcomes.write(record, [], [outcome(0, 1)]) == [outcome(0, 1)]
    store.outcomes.write(record, [], [], False, [NewStep(0, 1, 1, b"late")])
    assert [store.items.checkpoints(record, index) for index in range(2)] == [[], [b"b0"]]
    assert run_all(store.outcomes.end_unfinished(record, "canceled", "cancelled", None)) == 2
    assert store.items.checkpoints(record, 1) == []

"""The part of a batch that only OpenAI's API has, in the store: written with the job, changed, and deleted with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from batchray.schema import new_job_id
from batchray.store import ItemPage, NewJob, Store


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    url = request.getfixturevalue("database").new_url() if request.param == "postgres" else None
    with Store.open(tmp_path / "data", url) as opened:
        yield opened


def test_a_batch_of_a_file_that_cannot_be_run_has_ended_when_it_is_stored(store: Store) -> None:
    new = NewJob(new_job_id(), lambda ids: {}, openai_batch=lambda: {"errors": [{"line": 1}]}, has_failed=True)
    assert store.jobs.create_paged(new, ()) == 0
    job = store.jobs.get(new.id)
    assert (job.status, job.stop_reason, job.is_ended, job.total) == ("failed", "error", True, 0)
    assert store.openai_batches.spec(job) == {"errors": [{"line": 1}]}
    assert store.jobs.unended() == []


def test_the_data_of_a_batch_are_changed_and_go_with_its_job(store: Store) -> None:
    ids = [new_job_id(), new_job_id()]
    page = ItemPage(("a",), (None,), (b"{}",))
    store.jobs.create_paged(NewJob(ids[0], lambda ids: {}, openai_batch=lambda: {"endpoint": "/v1"}), [page])
    store.jobs.create_paged(NewJob(ids[1], lambda ids: {}, has_failed=True), ())
    first, other = map(store.jobs.get, ids)
    assert store.openai_batches.specs([first, other]) == {first.key: {"endpoint": "/v1"}}
    for job in (first, other):
        store.openai_batches.change(job, lambda spec: {**spec, "deleted": ["error"]})
    assert store.openai_batches.spec(first) == {"endpoint": "/v1", "deleted": ["error"]}
    assert store.openai_batches.spec(other) == {"deleted": ["error"]}
    assert store.retention.forget(other)
    while store.retention.purge(other.key):
        pass
    assert store.openai_batches.specs([first, other]).keys() == {first.key}

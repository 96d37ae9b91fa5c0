"""A retry runs its first items while the failed outcomes of the others are still being deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from batchray.errors import JobInterruptedError, StoreCorruptError, StoreError, StoreUnavailableError
from batchray.executors import AttemptSpec, LocalExecutor
from batchray.jobs.driver import run_job
from batchray.jobs.idle import cancel_idle_job
from batchray.store import Store, reopenings, run_all
from tests.builders.jobs import Scripted, new_job, started


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    with Store.open(tmp_path / "data") as opened:
        yield opened


class Retry:
    """A job of eight items that failed and one that succeeded, reopened; a part of the deletion has two of them.

    The parts after the first are deleted once `may_continue` is set; until then the store is `error`.
    """

    def __init__(self, store: Store, job_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store, self.job_id, self.may_continue = store, job_id, False
        self.error: StoreError = StoreUnavailableError("not now")
        clear_part = store.reopenings.clear_part

        def clear(job: object, after: int) -> int | None:
            if after >= 0 and not self.may_continue:
                raise self.error
            return clear_part(job, after)  # type: ignore[arg-type]

        monkeypatch.setattr(reopenings, "_ROWS", 2)
        monkeypatch.setattr(store.reopenings, "clear_part", clear)

    @property
    def counts(self) -> dict[str, int]:
        with Store.open_for_reading(self.store.data_dir) as reader:  # the writer has a thread of its own
            return {status: n for status, n in reader.jobs.get(self.job_id).counts.items() if n}


@pytest.fixture
async def retry(store: Store, monkeypatch: pytest.MonkeyPatch) -> Retry:
    job_id = new_job(store, *["fail"] * 4, "echo", *["fail"] * 4)
    record = await run_job(await started(store, job_id), LocalExecutor())
    assert record.counts["errored"] == 8
    store.jobs.reopen(job_id)
    return Retry(store, job_id, monkeypatch)


async def test_items_run_again_as_soon_as_their_outcomes_are_deleted(store: Store, retry: Retry) -> None:
    seen = []

    def run(spec: AttemptSpec) -> None:
        seen.append((spec.index, retry.counts["errored"]))
        retry.may_continue = spec.index >= 1

    job = await started(store, retry.job_id, max_in_flight=1)
    assert (job.progress.done, retry.counts) == (1, {"succeeded": 1, "errored": 6})
    record = await run_job(job, Scripted(run))
    assert [index for index, _ in seen] == [0, 1, 2, 3, 5, 6, 7, 8]
    assert seen[0] == (0, 6)
    assert (record.counts["errored"], record.counts["succeeded"]) == (8, 1)
    assert record.progress is not None
    assert record.progress.counts == record.counts


async def test_a_retry_that_is_canceled_early_keeps_no_outcome_of_the_run_before(store: Store, retry: Retry) -> None:
    job = await started(store, retry.job_id, max_in_flight=1)

    def cancel(spec: AttemptSpec) -> None:
        job.cancel()
        retry.may_continue = True

    record = await run_job(job, Scripted(cancel))
    assert (record.status, record.counts["canceled"], record.counts["errored"]) == ("cancelled", 8, 0)


async def test_a_retry_that_is_stopped_early_is_continued_by_a_resume(store: Store, retry: Retry) -> None:
    job = await started(store, retry.job_id, max_in_flight=1)
    with pytest.raises(JobInterruptedError):
        await run_job(job, Scripted(lambda spec: job.interrupt()))
    assert retry.counts == {"succeeded": 1, "errored": 6}
    retry.may_continue = True
    executor = Scripted()
    record = await run_job(await started(store, retry.job_id), executor)
    assert sorted(spec.index for spec in executor.specs) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert record.counts["errored"] == 8


async def test_an_error_of_the_deletion_stops_the_job(store: Store, retry: Retry) -> None:
    retry.error = StoreCorruptError("batchray.db", "torn")
    with pytest.raises(StoreCorruptError):
        await run_job(await started(store, retry.job_id), LocalExecutor())
    assert not store.jobs.get(retry.job_id).is_ended


async def test_an_idle_job_that_was_reopened_is_canceled_whole(store: Store, retry: Retry) -> None:
    retry.may_continue = True
    run_all(cancel_idle_job(store, retry.job_id))
    assert retry.counts == {"succeeded": 1, "canceled": 8}

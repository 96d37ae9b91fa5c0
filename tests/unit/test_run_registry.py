"""A lane runs each attempt once, however often it is called for."""

from __future__ import annotations

import asyncio

import pytest

from batchray.errors import WorkerDiedError
from batchray.executors.ray.run_registry import RunRegistry
from tests.polling import run_pending_tasks


class Work:
    """Work that waits until it may end, and counts how often it was started and stopped."""

    def __init__(self, report: bytes = b"report") -> None:
        self._report = report
        self.may_end = asyncio.Event()
        self.n_started = self.n_stopped = 0

    async def __call__(self) -> bytes:
        self.n_started += 1
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.n_stopped += 1
            raise
        return self._report


async def test_all_calls_for_one_attempt_get_the_report_of_one_run() -> None:
    runs, work = RunRegistry(), Work()
    calls = [asyncio.ensure_future(runs.run("k", work)) for _ in range(2)]
    await run_pending_tasks()
    work.may_end.set()
    assert await asyncio.gather(*calls) == [b"report"] * 2
    assert (await runs.run("k", work), work.n_started) == (b"report", 1)


async def test_a_run_survives_its_lost_call_and_the_next_call_joins_it() -> None:
    runs, work = RunRegistry(), Work()
    lost = asyncio.ensure_future(runs.run("k", work))
    await run_pending_tasks()
    lost.cancel()
    await asyncio.wait([lost])
    work.may_end.set()
    assert (await runs.run("k", work), work.n_started, work.n_stopped) == (b"report", 1, 0)


async def test_a_stopped_run_ends_for_all_its_calls_and_does_not_start_again() -> None:
    runs, work = RunRegistry(), Work()
    calls = [asyncio.ensure_future(runs.run("k", work)) for _ in range(2)]
    await run_pending_tasks()
    runs.stop(["k"])
    assert await asyncio.gather(*calls) == [b"", b""]
    assert (await runs.run("k", work), work.n_started, work.n_stopped) == (b"", 1, 1)


async def test_a_run_that_is_stopped_before_its_call_arrives_does_not_start() -> None:
    runs, work = RunRegistry(), Work()
    runs.stop(["k"])
    assert (await runs.run("k", work), work.n_started) == (b"", 0)


async def test_a_run_that_is_stopped_after_its_end_keeps_its_report() -> None:
    runs, work = RunRegistry(), Work()
    work.may_end.set()
    await runs.run("k", work)
    runs.stop(["k"])
    assert await runs.run("k", work) == b"report"


async def test_an_exception_reaches_the_caller_and_the_run_is_not_repeated() -> None:
    runs = RunRegistry()

    async def fails() -> bytes:
        raise LookupError

    for expected in (LookupError, WorkerDiedError):
        with pytest.raises(expected):
            await runs.run("k", fails)


async def test_a_run_that_cancels_itself_is_an_error_and_not_a_lost_call() -> None:
    async def cancels_itself() -> bytes:
        raise asyncio.CancelledError

    with pytest.raises(RuntimeError, match="cancelled itself"):
        await RunRegistry().run("k", cancels_itself)


@pytest.mark.parametrize("limits", [{"max_reports": 2}, {"max_bytes": 5}])
async def test_only_the_newest_reports_are_stored_and_a_run_without_its_report_is_not_repeated(
    limits: dict[str, int],
) -> None:
    runs, works = RunRegistry(**limits), [Work(f"r{n}".encode()) for n in range(3)]
    for n, work in enumerate(works):
        work.may_end.set()
        await runs.run(str(n), work)
    assert [await runs.run(str(n), works[n]) for n in (1, 2)] == [b"r1", b"r2"]
    with pytest.raises(WorkerDiedError, match="report was lost") as raised:
        await runs.run("0", works[0])
    assert not raised.value.is_suspect
    assert [work.n_started for work in works] == [1, 1, 1]


async def test_the_newest_report_is_stored_whatever_its_length() -> None:
    runs, work = RunRegistry(max_bytes=5), Work(b"longer than that")
    work.may_end.set()
    assert [await runs.run("k", work) for _ in range(2)] == [b"longer than that"] * 2
    assert work.n_started == 1


async def test_stopped_runs_do_not_displace_reports() -> None:
    runs, work = RunRegistry(max_reports=1, max_marks=2), Work()
    work.may_end.set()
    await runs.run("k", work)
    runs.stop(["s1", "s2", "s3"])
    assert await runs.run("k", work) == b"report"
    assert (await runs.run("s3", work), work.n_started) == (b"", 1)

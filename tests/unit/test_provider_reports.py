"""Reports of providers that hold calls back: of lanes when asked, of processes by themselves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, cast

import pytest
import ray.exceptions

from batchray.agents import AttemptRunner, CheckpointedRun, CheckpointSink, RunUpdate
from batchray.executors import ProviderBoard
from batchray.executors.ray.calls import _save_until_report
from batchray.executors.ray.checkpointed_runs import _fetch
from batchray.executors.ray.provider_reader import ProviderReader
from batchray.executors.ray.provider_reports import ProviderReports
from batchray.executors.ray.worker_log import WorkerLog, WorkerWarnings
from batchray.schema import ProviderWait
from tests.builders.references import Reference
from tests.builders.virtual_time import in_virtual_time

WAIT = ProviderWait(
    endpoint="p",
    provider="p",
    kind="unavailable",
    reason="refused",
    wait_s=1.0,
    n_waiting=2,
    since_s=1.0,
    total_s=1.0,
    has_answered=False,
)


@in_virtual_time
async def test_a_lane_reports_at_once_and_again_soon_while_calls_wait() -> None:
    waits: list[ProviderWait] = []
    reports = ProviderReports(lambda: waits)
    loop = asyncio.get_running_loop()
    asking = asyncio.create_task(reports.next(is_waiting=False))
    await asyncio.sleep(3.0)
    waits.append(WAIT)
    reports.set_changed()
    told = await asking
    assert (ProviderWait(**told.waits[0]), loop.time()) == (WAIT, 3.0)
    assert await reports.next(is_waiting=False) == told  # a new driver
    assert loop.time() == 3.0
    assert await reports.next(is_waiting=True) == told
    assert loop.time() == 3.25
    waits.clear()
    assert await reports.next(is_waiting=True) == ([], [])
    assert await reports.next(is_waiting=False) == ([], [])
    assert loop.time() == 13.5


@in_virtual_time
async def test_warnings_of_a_lane_are_reported_at_once_and_logged_once_a_minute_by_its_driver(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = asyncio.get_running_loop()
    log = WorkerLog(lambda: reports.set_changed())
    reports = ProviderReports(list, log)
    asking = asyncio.create_task(reports.next(is_waiting=False))
    await asyncio.sleep(2.0)
    log.handle(logging.LogRecord("batchray.models", logging.WARNING, "", 0, "%s is slow", ("p",), None))
    waits, warnings = await asking
    assert (waits, warnings, loop.time()) == ([], [("batchray.models", logging.WARNING, "p is slow")], 2.0)
    for n in range(200):
        log.handle(logging.LogRecord("batchray.models", logging.WARNING, "", 0, "%d", (n,), None))
    assert [message for _, _, message in (await reports.next(is_waiting=False)).warnings] == [
        str(n)
        for n in range(100, 200)  # the newest
    ]

    driver = WorkerWarnings(loop.time)
    for _ in range(3):
        driver.log(warnings)
    assert caplog.messages == ["p is slow"]
    await asyncio.sleep(61.0)
    driver.log(warnings)
    assert [(record.name, record.message) for record in caplog.records] == [("batchray.models", "p is slow")] * 2


class FakeLane:
    """A lane that answers with what a test's function returns."""

    def __init__(self, remote: Callable[[bool], Awaitable[tuple[list[dict[str, Any]], list[Any]]]]) -> None:
        self.report, self.remote = self, lambda is_waiting: Reference(remote(is_waiting))


@in_virtual_time
async def test_a_driver_reads_a_lane_while_requests_run_there() -> None:
    board, asked = ProviderBoard(), list[bool]()

    async def answer(is_waiting: bool) -> tuple[list[dict[str, Any]], list[Any]]:
        asked.append(is_waiting)
        await asyncio.sleep(1.0)
        if len(asked) == 2:
            raise ray.exceptions.ActorUnavailableError("the call was lost", None)
        return ([_fields(WAIT)] if len(asked) == 1 else []), []

    reader = ProviderReader(FakeLane(answer), board, WorkerWarnings(asyncio.get_running_loop().time))
    with reader.reading():
        with reader.reading():
            await asyncio.sleep(1.1)
            assert board.states()["p"].n_waiting == 2
        await asyncio.sleep(2.0)
        assert board.states() == {}
    await asyncio.sleep(5.0)
    n_asked = len(asked)
    assert asked[:3] == [False, True, False]
    await asyncio.sleep(60.0)
    assert len(asked) == n_asked


class FakeRunner:
    def __init__(self) -> None:
        self.waits: list[ProviderWait] = [WAIT]

    def provider_waits(self) -> list[ProviderWait]:
        return self.waits


@in_virtual_time
async def test_a_process_says_that_it_waits_and_that_it_does_not_any_more() -> None:
    fake, ended = FakeRunner(), asyncio.Event()
    runner = cast(AttemptRunner, fake)

    async def start(sink: CheckpointSink) -> bytes:
        await ended.wait()
        return b"report"

    run = CheckpointedRun(start)
    [told] = cast(list[Any], await _fetch(runner, run, 0, is_waiting=False))
    assert told["reason"] == "refused"
    fake.waits = []
    assert await _fetch(runner, run, 0, is_waiting=True) == []
    ended.set()
    assert await _fetch(runner, run, 0, is_waiting=False) == RunUpdate((), b"report")


@in_virtual_time
async def test_the_deadline_of_a_process_starts_again_while_it_waits() -> None:
    async def results() -> AsyncIterator[Any]:
        for n in range(5):
            await asyncio.sleep(8.0)
            yield Reference(_ready([{**_fields(WAIT), "n_waiting": n}] if n < 4 else RunUpdate((), b"report")))

    told: list[int] = []

    def on_wait(waits: Iterable[ProviderWait]) -> None:
        told.extend(wait.n_waiting for wait in waits)

    async def save(checkpoints: object) -> None:
        raise AssertionError("there are none")

    async with asyncio.timeout(10.0) as limit:
        assert await _save_until_report(results(), save, limit, on_wait) == b"report"
    assert told == [0, 1, 2, 3]


@in_virtual_time
async def test_the_deadline_of_a_process_for_which_a_client_waits_does_not_move() -> None:
    async def results() -> AsyncIterator[Any]:
        while True:
            await asyncio.sleep(1.0)
            yield Reference(_ready([_fields(WAIT)]))

    async def save(checkpoints: object) -> None:
        raise AssertionError("there are none")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10.0) as limit:
            await _save_until_report(results(), save, limit, lambda waits: None, moves_limit=False)
    assert asyncio.get_running_loop().time() == 10.0


def _fields(wait: ProviderWait) -> dict[str, Any]:
    return {name: getattr(wait, name) for name in ProviderWait.__dataclass_fields__}


async def _ready(value: Any) -> Any:
    return value

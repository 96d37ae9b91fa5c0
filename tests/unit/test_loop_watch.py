"""A request whose code blocks its event loop is found by name; a loop that is only slow is no request's fault."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from batchray.agents import Blocked, Owner, loop_watch
from batchray.agents.loop_watch import LoopWatch, owned_by
from batchray.executors import BlockingBoard, LocalExecutor
from batchray.executors.base import AttemptSpec
from batchray.schema import AgentRequest
from batchray.support.loop_steps import StepSample, look_at_step
from tests.builders.agents import bound

ONE = Owner("job", 7, "one")


class Reports:
    """Keeps what a watch reports; `came` is set by the first."""

    def __init__(self) -> None:
        self.blocked: list[Blocked | None] = []
        self.came = threading.Event()

    def __call__(self, blocked: Blocked | None) -> None:
        self.blocked.append(blocked)
        self.came.set()


@contextlib.contextmanager
def watching(report: Callable[[Blocked | None], None]) -> Iterator[None]:
    watch = LoopWatch(report, after_s=0.01, every_s=0.005)
    try:
        with watch:
            yield
    finally:
        watch.close()


def block_until(reported: threading.Event) -> None:
    assert reported.wait(30)


async def answers(reports: Reports) -> None:
    """Wait until the watch has seen the loop run again."""
    while reports.blocked[-1] is not None:
        await asyncio.sleep(0)


async def test_a_request_that_waits_in_a_sync_call_is_reported_with_its_line_until_it_ends() -> None:
    reports = Reports()
    with watching(reports):
        with owned_by(ONE):
            await asyncio.sleep(0)
            block_until(reports.came)
        await answers(reports)
    first = reports.blocked[0]
    assert first is not None
    assert first.owner == ONE
    assert first.blocked_s > 0
    assert first.where.startswith("block_until (test_loop_watch.py, line ")


async def test_a_task_and_a_callback_of_a_request_are_found_too() -> None:
    async def task(reports: Reports) -> None:
        block_until(reports.came)

    for start in (
        lambda reports: asyncio.create_task(task(reports)),
        lambda reports: asyncio.get_running_loop().call_soon(block_until, reports.came),
    ):
        reports = Reports()
        with watching(reports):
            with owned_by(ONE):
                kept = start(reports)
            while not reports.came.is_set():
                await asyncio.sleep(0)
            await answers(reports)
        del kept
        assert reports.blocked[0] is not None
        assert reports.blocked[0].owner == ONE


async def test_a_request_that_computes_is_reported() -> None:
    reports = Reports()
    with watching(reports), owned_by(ONE):
        await asyncio.sleep(0)
        while not reports.came.is_set():
            sum(range(1000))
    assert reports.blocked[0] is not None


async def test_a_loop_that_is_blocked_by_no_request_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    looked, n_looks, reports = threading.Event(), itertools.count(1), Reports()
    sample = look_at_step

    def look(thread_id: int) -> Any:
        if next(n_looks) == 10:
            looked.set()
        return sample(thread_id)

    monkeypatch.setattr(loop_watch, "look_at_step", look)
    with watching(reports):
        with owned_by(ONE):
            await asyncio.sleep(0)
        block_until(looked)
    assert not reports.blocked


STEP, OTHER_STEP = object(), object()


def samples(
    n: int, every_s: float, cpu: float, stands_still: bool, steps: Sequence[object] = (STEP,)
) -> list[StepSample]:
    """Return what a watch sees, every `every_s` seconds, of a thread that has this share of a CPU."""
    context = contextvars.copy_context()
    context.run(owned_by(ONE).__enter__)
    frames = [sys._getframe()]
    return [
        StepSample(
            steps[n % len(steps)], context, frames, (1, 0 if stands_still else n), n * every_s, n * every_s * cpu
        )
        for n in range(n)
    ]


@pytest.mark.parametrize(
    ("seen", "is_blocked"),
    [
        (samples(5, 0.25, cpu=0.0, stands_still=True), True),  # waits in a call
        (samples(5, 0.25, cpu=0.9, stands_still=False), True),  # computes
        (samples(5, 0.25, cpu=0.1, stands_still=False), False),  # hardly gets a CPU
        (samples(3, 0.25, cpu=0.9, stands_still=True), False),  # not long enough
        (samples(2, 60.0, cpu=0.0, stands_still=True), False),  # the process was suspended
        (samples(9, 0.25, cpu=0.9, stands_still=True, steps=(STEP, OTHER_STEP)), False),  # short steps, one by one
    ],
)
def test_only_a_step_that_lasts_blocks_a_loop(
    seen: list[Any], is_blocked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, reports = list(seen), Reports()
    answered = threading.Event()

    def look(thread_id: int) -> Any:
        if len(left) == 1:
            answered.set()
        return left.pop(0)

    monkeypatch.setattr(loop_watch, "look_at_step", look)
    LoopWatch(reports, after_s=1.0, every_s=0.0001)._observe(answered, 0)
    assert [each is not None for each in reports.blocked] == ([True, False] if is_blocked else [])


def test_an_agent_is_logged_once_and_shown_while_it_blocks(caplog: pytest.LogCaptureFixture) -> None:
    board = BlockingBoard()
    with caplog.at_level(logging.WARNING):
        for seconds in (1.0, 2.04):
            board.put("job", [Blocked(ONE, seconds, "get (tools.py, line 3)")])
        board.put("job", [Blocked(Owner("job", 9, "one"), 3.0, "get (tools.py, line 3)")])
    [record] = caplog.records
    assert "agent 'one' blocks the event loop" in record.getMessage()
    assert "item 7 for 1.0 s so far, in get (tools.py, line 3)" in record.getMessage()
    assert board.of("job") == [{"index": 9, "agent_id": "one", "blocked_s": 3.0, "where": "get (tools.py, line 3)"}]
    assert board.of("other") == []
    board.put("job", [])
    assert board.of("job") == []


async def test_the_local_executor_shows_which_request_of_an_agent_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, object]] = []
    told = threading.Event()

    async def answer(request: AgentRequest) -> str:
        assert told.wait(60)  # it stands still: a loop that computes is not blamed while the machine is busy
        shown.extend(executor.blocking.of("job-1"))
        return "done"

    monkeypatch.setattr(loop_watch, "_AFTER_S", 0.01)
    monkeypatch.setattr(loop_watch, "_EVERY_S", 0.005)
    executor = LocalExecutor()
    put = executor.blocking.put

    def put_and_set(job_id: str, blocked: Sequence[Blocked]) -> None:
        put(job_id, blocked)
        told.set()

    monkeypatch.setattr(executor.blocking, "put", put_and_set)
    spec = AttemptSpec(bound(run=answer), "job-1", 3, 1, b'{"agent_id": "a", "input": "?"}', 60)

    async def save(checkpoints: object) -> None:
        raise AssertionError("it has no steps")

    await executor.run(spec, save)
    await executor.close()
    assert [(each["index"], each["agent_id"]) for each in shown] == [(3, "a")]
    assert "test_loop_watch.py, line " in str(shown[0]["where"])

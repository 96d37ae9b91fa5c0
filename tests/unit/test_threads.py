"""An event loop on a thread of its own."""

from __future__ import annotations

import asyncio
import threading

import pytest

from batchray.support.threads import LoopThread


async def thread_name() -> str:
    await asyncio.sleep(0)
    return threading.current_thread().name


def test_work_runs_on_the_loops_thread_and_unfinished_tasks_end_with_the_loop() -> None:
    ended = threading.Event()

    async def unfinished() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def begin() -> None:
        tasks.append(asyncio.create_task(unfinished()))
        await asyncio.sleep(0)

    tasks: list[asyncio.Task[None]] = []
    loop = LoopThread("side")
    assert loop.run(thread_name()) == "side"
    loop.run(begin())
    loop.close()
    assert ended.is_set()
    with pytest.raises(RuntimeError, match="has ended"):
        loop.run(thread_name())


def test_an_error_of_the_work_is_raised_to_the_caller() -> None:
    async def fails() -> None:
        raise LookupError("no")

    loop = LoopThread("side")
    with pytest.raises(LookupError, match="no"):
        loop.run(fails())
    loop.close()


def test_a_caller_does_not_wait_for_a_loop_that_its_work_has_ended() -> None:
    async def exits() -> None:
        raise SystemExit(3)

    async def begin() -> None:
        tasks.append(asyncio.create_task(exits()))
        await asyncio.Event().wait()

    tasks: list[asyncio.Task[None]] = []
    loop = LoopThread("side")
    with pytest.raises(RuntimeError, match="has ended"):
        loop.run(begin())
    loop.close()
    assert isinstance(tasks[0].exception(), SystemExit)

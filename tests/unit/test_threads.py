"""An event loop on a thread of its own."""

from __future__ import annotations

import asyncio
import threading

import pytest

from batchray.support.threads import LoopThread


async def name_of_thread() -> str:
    await asyncio.sleep(0)
    return threading.current_thread().name


def test_work_runs_on_the_loops_thread_and_what_is_left_of_it_ends_with_it() -> None:
    ended = threading.Event()

    async def left_over() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    async def begin() -> None:
        tasks.append(asyncio.create_task(left_over()))
        await asyncio.sleep(0)

    tasks: list[asyncio.Task[None]] = []
    loop = LoopThread("aside")
    assert loop.run(name_of_thread()) == "aside"
    loop.run(begin())
    loop.close()
    assert ended.is_set()
    with pytest.raises(RuntimeError, match="has ended"):
        loop.run(name_of_thread())


def test_what_work_raises_is_raised() -> None:
    async def fails() -> None:
        raise LookupError("no")

    loop = LoopThread("aside")
    with pytest.raises(LookupError, match="no"):
        loop.run(fails())
    loop.close()


def test_work_that_ends_the_loop_does_not_leave_its_caller_waiting() -> None:
    async def exits() -> None:
        raise SystemExit(3)

    async def begin() -> None:
        tasks.append(asyncio.create_task(exits()))
        await asyncio.sleep(3600)

    tasks: list[asyncio.Task[None]] = []
    loop = LoopThread("aside")
    with pytest.raises(RuntimeError, match="has ended"):
        loop.run(begin())
    loop.close()
    assert isinstance(tasks[0].exception(), SystemExit)

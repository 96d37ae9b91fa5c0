"""Threads for calls that may never return, and an event loop on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import pytest

from batchray.support.threads import DaemonThread, LoopThread, SpareThreads


async def thread_name() -> str:
    await asyncio.sleep(0)
    return threading.current_thread().name


def test_a_thread_that_was_shut_down_completes_what_it_has_and_refuses_more() -> None:
    thread, release = DaemonThread("writer"), threading.Event()
    waiting, last = thread.submit(release.wait), thread.submit(str, 1)
    thread.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="'writer' takes no more calls"):
        thread.submit(str, 2)
    assert (thread.submit_if_open(str, 3), thread.is_open) == (None, False)
    release.set()
    assert (waiting.result(20), last.result(20)) == (True, "1")


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


def exit_in_a_callback() -> None:
    raise SystemExit(4)


async def exit_in_a_task() -> None:
    raise SystemExit(3)


async def interrupt_in_a_task() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "harm",
    [
        lambda loop: loop.create_task(exit_in_a_task()),
        lambda loop: loop.create_task(interrupt_in_a_task()),
        lambda loop: loop.call_soon(exit_in_a_callback),
        lambda loop: loop.stop(),
    ],
    ids=["exit in a task", "interrupt in a task", "exit in a callback", "stop"],
)
def test_no_code_on_a_loop_ends_it(harm: Callable[[asyncio.AbstractEventLoop], object], caplog: Any) -> None:
    async def do_harm() -> str:
        kept.append(harm(asyncio.get_running_loop()))
        for _ in range(5):
            await asyncio.sleep(0)
        return "still running"

    kept: list[object] = []
    loop = LoopThread("side")
    assert loop.run(do_harm()) == "still running"
    assert "code on the event loop of side tried to end it" in caplog.text
    loop.close()
    assert all(task.exception() is not None for task in kept if isinstance(task, asyncio.Task))


class NotedList(list[Any]):
    """A list that tells when something is appended."""

    def __init__(self) -> None:
        super().__init__()
        self.appended = threading.Semaphore(0)

    def append(self, value: Any) -> None:
        super().append(value)
        self.appended.release()


def spare_threads(**options: int) -> tuple[SpareThreads, NotedList]:
    threads = SpareThreads(**options)
    spare = threads._spare = NotedList()
    return threads, spare


def test_calls_run_at_once_in_threads_of_their_own_and_later_ones_reuse_them() -> None:
    at_once, ids = threading.Barrier(4), list[int]()
    threads, spare = spare_threads()

    def call() -> None:
        ids.append(threading.get_ident())
        at_once.wait(30)

    for _ in range(2):
        for number in range(3):
            threads.start(call, f"call-{number}")
        at_once.wait(30)
        for _ in range(3):
            assert spare.appended.acquire(timeout=30)
    assert len(ids) == 6
    assert len({*ids}) == 3


def test_a_call_that_never_returns_holds_up_no_other_and_few_threads_wait_for_the_next() -> None:
    may_end, done, stuck = threading.Event(), list[str](), SimpleQueue[threading.Thread]()
    threads, spare = spare_threads(max_spare=1)

    def get_stuck() -> None:
        stuck.put(threading.current_thread())
        may_end.wait(30)

    threads.start(get_stuck, "stuck")
    thread = stuck.get(timeout=30)
    for name in ("second", "third"):
        threads.start(lambda: done.append(threading.current_thread().name), name)
        assert spare.appended.acquire(timeout=30)
    may_end.set()
    thread.join(30)  # it ends: one that waits is enough
    assert not thread.is_alive()
    assert (done, len(spare)) == (["second", "third"], 1)

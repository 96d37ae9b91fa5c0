"""Sync code that runs async code in many threads, with one async client for all of them."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from batchray.support import loop_blockers
from batchray.support.thread_loop import call_with_thread_loop

Work = Coroutine[Any, Any, int]
_local = threading.local()


def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Call a sync function as agents do: in a thread and a context of its own."""
    call = partial(call_with_thread_loop, partial(function, *args))
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(partial(contextvars.copy_context().run, call)).result(30)


def with_the_threads_loop(work: Work) -> int:  # pydantic-ai
    try:
        loop = asyncio.get_event_loop()
    except RuntimeError:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
    return loop.run_until_complete(work)


def with_a_task_of_the_policys_loop(work: Work) -> int:  # the Agents SDK
    loop = asyncio.get_event_loop_policy().get_event_loop()
    task = loop.create_task(work)
    try:
        return loop.run_until_complete(task)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())


def with_a_runner(work: Work) -> int:
    with asyncio.Runner() as runner:
        runner.run(asyncio.sleep(0))
        return runner.run(work)


def with_a_new_loop(work: Work) -> int:
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


def with_a_loop_for_each_thread(work: Work) -> int:
    if not hasattr(_local, "loop"):
        _local.loop = asyncio.new_event_loop()
    return int(_local.loop.run_until_complete(work))


def with_a_loop_in_another_thread(work: Work) -> int:  # fsspec
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        return asyncio.run_coroutine_threadsafe(work, loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def with_sync_code_inside(work: Work) -> int:  # a tool that calls another agent
    return asyncio.run(asyncio.to_thread(with_the_threads_loop, work))


WAYS: list[Callable[[Work], int]] = [
    asyncio.run,
    with_the_threads_loop,
    with_a_task_of_the_policys_loop,
    with_a_runner,
    with_a_new_loop,
    with_a_loop_for_each_thread,
    with_a_loop_in_another_thread,
    with_sync_code_inside,
]


class Client:
    """Belongs to the loop that uses it first, as the locks of connection pools do."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def ask(self, question: int) -> int:
        async with self._lock:
            await asyncio.sleep(0)
            await asyncio.create_task(asyncio.sleep(0))
        return question


def test_sync_code_in_200_threads_shares_a_client_whatever_way_it_runs_async_code() -> None:
    client, start = Client(), threading.Barrier(200)
    answers: dict[int, Any] = {}

    def call(number: int) -> None:
        start.wait(30)
        way = WAYS[number % len(WAYS)]
        try:
            answers[number] = call_with_thread_loop(partial(way, client.ask(number)))
        except Exception as error:  # noqa: BLE001  # shown by the assertion
            answers[number] = error

    threads = [threading.Thread(target=contextvars.copy_context().run, args=(call, n)) for n in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == {number: number for number in range(200)}


async def fail(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3)], ids=repr)
def test_an_exception_of_async_code_is_raised_in_the_thread(way: Callable[[Work], int], error: BaseException) -> None:
    with pytest.raises(type(error), match=str(error)):
        in_thread(way, fail(error))
    assert in_thread(way, Client().ask(7)) == 7  # the shared loop is still there


def test_the_contexts_variables_reach_the_async_code() -> None:
    variable = contextvars.ContextVar("variable", default="none")

    async def read() -> str:
        return variable.get()

    variable.set("mine")
    assert in_thread(asyncio.run, read()) == "mine"
    assert in_thread(lambda: asyncio.get_event_loop().run_until_complete(read())) == "mine"


def test_tasks_that_are_left_end_with_asyncio_run_and_live_on_with_the_threads_loop() -> None:
    left: list[asyncio.Task[bool]] = []

    async def leave() -> None:
        left.append(asyncio.create_task(asyncio.Event().wait()))
        await asyncio.sleep(0)

    in_thread(asyncio.run, leave())
    in_thread(with_the_threads_loop, leave())
    assert left[0].cancelled()
    assert not left[1].done()
    left[1].get_loop().call_soon_threadsafe(left[1].cancel)


def test_code_that_stops_or_closes_its_loop_stops_no_other() -> None:
    async def stop() -> int:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)
        return 1

    def use_closed() -> None:
        loop = asyncio.get_event_loop()
        loop.close()
        loop.run_until_complete(stop())

    assert in_thread(with_the_threads_loop, stop()) == 1
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        in_thread(use_closed)
    assert in_thread(with_the_threads_loop, stop()) == 1


def test_a_loop_of_a_thread_cannot_run_inside_a_running_one() -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def nested() -> None:
        await asyncio.sleep(0)
        loops[0].run_until_complete(asyncio.sleep(0))

    def call() -> None:
        loops.append(asyncio.get_event_loop())
        loops[0].run_until_complete(nested())

    with pytest.raises(RuntimeError, match="This event loop is already running"):
        in_thread(call)


def test_code_that_blocks_its_async_code_soon_runs_in_parallel_and_other_code_still_shares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    warned = threading.Event()
    warnings: list[str] = []

    def warn(message: str, name: str) -> None:
        warnings.append(message % name)
        warned.set()

    monkeypatch.setattr(loop_blockers.logger, "warning", warn)
    monkeypatch.setattr(loop_blockers, "_LOOK_S", 0.005)
    monkeypatch.setattr(loop_blockers, "_BLOCKS_S", 0.01)
    monkeypatch.setattr(loop_blockers, "_BLOCKS_LONG_S", 0.05)
    blocks, together = threading.Event(), threading.Barrier(3)

    async def block() -> None:
        blocks.set()
        assert warned.wait(30)

    async def meet() -> None:
        together.wait(30)  # one after another, the first would time out

    def start(pool: ThreadPoolExecutor, work: Callable[[], Any]) -> Future[Any]:
        call = partial(call_with_thread_loop, lambda: asyncio.run(work()), "tools.call")
        return pool.submit(partial(contextvars.copy_context().run, call))

    with ThreadPoolExecutor(4) as pool:
        first = start(pool, block)
        assert blocks.wait(30)
        for each in (first, *[start(pool, meet) for _ in range(3)]):  # some begin before the warning
            each.result(60)
    assert [warning[:21] for warning in warnings] == ["tools.call blocks the"]
    client = Client()
    assert [in_thread(asyncio.run, client.ask(n)) for n in range(3)] == [0, 1, 2]


def test_other_threads_get_loops_of_their_own() -> None:
    in_thread(lambda: None)  # now the policy offers loops to sync code
    loop = asyncio.new_event_loop()
    assert isinstance(loop, asyncio.BaseEventLoop)
    loop.close()


def test_servers_files_and_timers_are_used_through_the_threads_loop() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    def call() -> tuple[bytes, float]:
        loop = asyncio.get_event_loop()
        server = loop.run_until_complete(asyncio.start_server(answer, "127.0.0.1", 0))
        reader, writer = loop.run_until_complete(asyncio.open_connection(*server.sockets[0].getsockname()))
        writer.write(b"hello\n")
        line = loop.run_until_complete(reader.readline())
        fired: asyncio.Future[float] = loop.create_future()
        loop.call_later(0, lambda: fired.set_result(loop.time()))
        at = loop.run_until_complete(fired)
        writer.close()
        server.close()
        return line, at

    line, at = in_thread(call)
    assert line == b"hello\n"
    assert at > 0

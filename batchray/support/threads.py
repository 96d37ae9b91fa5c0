"""Threads that do what they are told: calls in order, and an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DaemonThread(Executor):
    """An executor of one daemon thread.

    Unlike a ThreadPoolExecutor it works until the very end of the interpreter, and never holds that end up.
    """

    def __init__(self, name: str) -> None:
        self._tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a call."""
        future: Future[T] = Future()
        self._tasks.put((future, lambda: fn(*args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Finish what is queued, then end."""
        self._tasks.put(None)
        if wait:
            self._thread.join()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, call = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                value = call()
            except BaseException as error:  # noqa: BLE001  # handed over to whoever waits
                future.set_exception(error)
            else:
                future.set_result(value)


class LoopThread:
    """An event loop on a thread of its own, which goes on while the caller does something else."""

    def __init__(self, name: str) -> None:
        self._started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._ended: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop, and wait for what it returns.  Raises RuntimeError where the loop ends before.

        As it does where a task of it raises SystemExit.
        """
        loop, _ = self._started.result()
        if self._ended.done():
            work.close()
            raise RuntimeError("the event loop has ended")
        running = asyncio.run_coroutine_threadsafe(work, loop)
        futures: tuple[Future[Any], ...] = (running, self._ended)
        wait(futures, return_when=FIRST_COMPLETED)
        if not running.done() or running.cancelled():
            raise RuntimeError("the event loop has ended")
        return running.result()

    def close(self) -> None:
        """End the loop, and what still runs on it."""
        loop, stopping = self._started.result()
        with suppress(RuntimeError):  # it has ended by itself
            loop.call_soon_threadsafe(stopping.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            with asyncio.Runner() as runner:
                runner.run(self._live())
        except BaseException as error:  # noqa: BLE001  # handed over to whoever waits
            if not self._started.done():
                self._started.set_exception(error)
        finally:
            self._ended.set_result(None)

    async def _live(self) -> None:
        stopping = asyncio.Event()
        self._started.set_result((asyncio.get_running_loop(), stopping))
        await stopping.wait()

"""An executor with one daemon thread, threads for calls that may never return, and an event loop on its own thread."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class DaemonThread(Executor):
    """An executor that runs its calls in order on one daemon thread.

    Unlike a ThreadPoolExecutor it works until the interpreter has exited, and never delays that exit.
    """

    def __init__(self, name: str) -> None:
        self._tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._lock, self._is_shut = threading.Lock(), False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def is_current(self) -> bool:
        """Whether the caller runs on this thread."""
        return threading.current_thread() is self._thread

    @property
    def is_open(self) -> bool:
        """Whether it takes calls: it was not shut down."""
        return not self._is_shut

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a call.  Raises RuntimeError after `shutdown`: nothing would ever complete the call."""
        if (future := self.submit_if_open(fn, *args, **kwargs)) is None:
            raise RuntimeError(f"the thread {self._thread.name!r} takes no more calls")
        return future

    def submit_if_open(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T] | None:
        """Queue a call that is not needed after `shutdown`; None if it comes too late."""
        future: Future[T] = Future()
        with self._lock:
            if self._is_shut:
                return None
            self._tasks.put((future, lambda: fn(*args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the thread after the queued calls."""
        with self._lock:
            self._is_shut = True
            self._tasks.put(None)
        if wait:
            self._thread.join()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            _complete(*task)
            del task  # it would be kept until the next call


def _complete(future: Future[T], call: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        value = call()
    except BaseException as error:  # noqa: BLE001  # raised where the result is asked for
        future.set_exception(error)
        del future, call  # the error's traceback holds this frame, which would hold the error
    else:
        future.set_result(value)


async def on_own_thread(name: str, method: Callable[P, T], /, *args: P.args, **keywords: P.kwargs) -> T:
    """Run a blocking function on a daemon thread of its own.  Cancelling the wait does not stop it."""
    thread = DaemonThread(name)
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, lambda: method(*args, **keywords))
    finally:
        thread.shutdown(wait=False)


class SpareThreads:
    """Daemon threads for calls that may never return: each call has one to itself.

    A thread whose call has returned takes a later call, because a start costs three times what a short call does; at
    most `max_spare` wait for one.  A call must raise nothing.
    """

    def __init__(self, max_spare: int = 64) -> None:
        self._max_spare = max_spare
        self._spare: list[SimpleQueue[tuple[str, Callable[[], None]]]] = []
        os.register_at_fork(after_in_child=self._spare.clear)  # a forked process has none of these threads

    def start(self, call: Callable[[], None], name: str) -> None:
        """Run a call in a thread, which has this name meanwhile.  Thread-safe."""
        try:
            inbox = self._spare.pop()  # the newest: its stack is in the cache
        except IndexError:
            inbox = SimpleQueue()
            threading.Thread(target=self._work, args=(inbox,), name=name, daemon=True).start()
        inbox.put((name, call))

    def _work(self, inbox: SimpleQueue[tuple[str, Callable[[], None]]]) -> None:
        thread = threading.current_thread()
        while True:
            name, call = inbox.get()
            thread.name = name
            call()
            del call  # or what the call refers to would live until the next one
            if len(self._spare) >= self._max_spare:
                return
            thread.name = "batchray-spare"
            self._spare.append(inbox)


class LoopThread:
    """An event loop that runs on a daemon thread of its own.

    Only `close` ends it: it continues if code on it stops it, or raises SystemExit or KeyboardInterrupt, which asyncio
    passes on out of the task or callback that raises them.
    """

    def __init__(self, name: str) -> None:
        self._started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._ended: Future[None] = Future()
        self.has_ended = False
        """Whether the loop accepts no more work."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop."""
        return self._started.result()[0]

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine on the loop.  Raises RuntimeError if the loop has ended."""
        loop = self.loop
        if self.has_ended:
            work.close()
            raise RuntimeError("the event loop has ended")
        return asyncio.run_coroutine_threadsafe(work, loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for its result; an interrupt of the wait cancels it.

        Raises RuntimeError if the loop has ended, or ends meanwhile.
        """
        running = self.submit(work)
        futures: tuple[Future[Any], ...] = (running, self._ended)
        try:
            wait(futures, return_when=FIRST_COMPLETED)
        except BaseException:
            running.cancel()
            raise
        if not running.done():
            raise RuntimeError("the event loop has ended")
        try:
            return running.result()
        except CancelledError:
            if self.has_ended:
                raise RuntimeError("the event loop has ended") from None
            raise

    def close(self, timeout_s: float | None = None) -> None:
        """End the loop and cancel what still runs on it; wait for that, at most `timeout_s` seconds."""
        loop, stopping = self._started.result()
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(stopping.set)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            with asyncio.Runner() as runner:
                try:
                    _run_to_end(runner.get_loop(), self._wait_until_closed())
                finally:
                    self.has_ended = True  # before the runner cancels the other tasks
        except BaseException as error:  # noqa: BLE001  # raised to those that wait for the loop to start
            if not self._started.done():
                self._started.set_exception(error)
        finally:
            self._ended.set_result(None)

    async def _wait_until_closed(self) -> None:
        stopping = asyncio.Event()
        self._started.set_result((asyncio.get_running_loop(), stopping))
        await stopping.wait()


def _run_to_end(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> None:
    """Run the loop until the work is done, whatever other code on the loop does to it."""
    task = loop.create_task(work)
    while not task.done():
        try:
            loop.run_until_complete(task)
        except BaseException as error:
            if task.done() or loop.is_closed():
                raise
            logger.warning("code on the event loop of %s tried to end it: %r", threading.current_thread().name, error)

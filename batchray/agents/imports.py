"""Imports of agents' code, off the event loop that serves the requests of other agents.

A module may take seconds to import, or forever.  Imports run one at a time, because they look for modules in
directories of their own, and `sys.path` and `sys.modules` belong to the whole process.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from batchray.support.thread_loop import call_with_thread_loop

T = TypeVar("T")

_lock = threading.Lock()


class Imports(Generic[T]):
    """Imports of one event loop, by key."""

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Future[T]] = {}

    async def run(self, key: Hashable, work: Callable[[], T]) -> T:
        """Return what `work` returns in a thread; while one runs, further calls with its key wait for the same result.

        It runs to its end if its callers are cancelled.  Raises what `work` raises, but nothing that would end the
        event loop: that becomes a RuntimeError.
        """
        running = self._running.get(key)
        if running is None:
            running = self._running[key] = asyncio.wrap_future(_start(work))
            running.add_done_callback(lambda done: self._forget(key, done))
        return await asyncio.shield(running)

    def _forget(self, key: Hashable, done: asyncio.Future[T]) -> None:
        del self._running[key]
        if not done.cancelled():
            done.exception()  # it may have no caller any more


def _start(work: Callable[[], T]) -> Future[T]:
    done: Future[T] = Future()

    def run() -> None:
        try:
            with _lock:
                result = call_with_thread_loop(work)
        except BaseException as error:  # noqa: BLE001  # raised where the result is waited for
            done.set_exception(_harmless(error))
        else:
            done.set_result(result)

    context: Any = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), name="batchray-import", daemon=True).start()
    return done


def _harmless(error: BaseException) -> Exception:
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    harmless = RuntimeError(f"{type(error).__name__}: {error}")
    harmless.__cause__ = error
    return harmless

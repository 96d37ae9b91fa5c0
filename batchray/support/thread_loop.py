"""An event loop for sync code that runs async code, as `agent.run_sync(...)` does.

A sync function runs in a thread of its own, and hundreds may run at once.  Such code asks asyncio for the loop of its
thread, or for a new one: `asyncio.get_event_loop().run_until_complete(...)`, `asyncio.run(...)`.  But an async client
that is made once for a module belongs to the first loop that uses it.  So these threads get a `ThreadLoop` in both
cases.  It looks like an idle loop of its thread, and runs everything on one loop, which all threads share and which
lives in the background until the process ends.

Code that blocks the shared loop, with sync calls inside its async code, would hold up the calls of all threads.  After
some such calls, or a long one, `asyncio.run` gives this code real loops, one for each call.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import inspect
import threading
import weakref
from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

from batchray.support.loop_blockers import Blockers

T = TypeVar("T")

_thread_loop: contextvars.ContextVar[ThreadLoop | None] = contextvars.ContextVar("batchray_thread_loop", default=None)
_lock = threading.Lock()


def call_with_thread_loop(function: Callable[[], T], name: str = "code") -> T:
    """Call sync code with a loop for this thread, which ends after the call.  Runs in a context of its own.

    Threads that the code starts with a copy of its context, as `asyncio.to_thread` does, get such loops too.  `name` is
    that of the code.
    """
    loop = ThreadLoop(name)
    _thread_loop.set(loop)
    _offer_thread_loops()
    asyncio.set_event_loop(loop)
    try:
        return function()
    finally:
        asyncio.set_event_loop(None)


_Base: Any = asyncio.AbstractEventLoop  # its methods that are missing below are added by `_delegate`


class ThreadLoop(_Base):  # type: ignore[misc]
    """Looks like an event loop of one thread, and runs everything on the shared loop, in another thread.

    A `private` one is made by code that asked for a new loop.  When that code ends it, tasks that are left are
    cancelled, as `asyncio.run` does.
    """

    _nest_patched = True  # nest_asyncio has nothing to do here: this loop is never running in its own thread

    def __init__(self, name: str = "code", private: bool = False) -> None:
        self.name, self._is_private = name, private
        self._tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self._stopping: set[threading.Event] = set()
        self._taken_back: weakref.WeakKeyDictionary[Any, tuple[Any, contextvars.Context]] = weakref.WeakKeyDictionary()
        self._is_closed = False
        if private:
            _blockers.add_user()

    @property
    def _shared(self) -> asyncio.AbstractEventLoop:
        return _shared_loop()

    def run_until_complete(self, future: Generator[Any, None, T] | Awaitable[T]) -> T:
        """Run a coroutine or wait for a future; blocks this thread and no other."""
        self._check_idle(future)
        if self._is_private and inspect.iscoroutine(future):
            if future.cr_code in _ENDINGS and all(task.done() for task in self._tasks):
                future.close()
                return None  # type: ignore[return-value]
            future = self.create_task(future)
        waiting: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._shared.call_soon_threadsafe(self._start, future, waiting, context=self._own_context())
        try:
            return waiting.result()
        except concurrent.futures.CancelledError:
            raise asyncio.CancelledError from None
        except _TakenBackError:
            coro, context = self._taken_back[future]
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            taken: T = runner.run(coro, context=context)
            return taken

    def _start(self, future: Any, waiting: concurrent.futures.Future[T]) -> None:
        """On the shared loop: begin what `run_until_complete` waits for."""
        try:
            started = asyncio.ensure_future(future)
        except BaseException as error:  # noqa: BLE001  # raised in the waiting thread
            waiting.set_exception(error)
        else:
            started.add_done_callback(functools.partial(_copy_result, waiting))

    def _check_idle(self, future: Any) -> None:
        if asyncio._get_running_loop() is None and not self._is_closed:
            return
        if inspect.iscoroutine(future):
            future.close()  # nothing will await it
        self._check_closed()
        raise RuntimeError("This event loop is already running")

    def run_forever(self) -> None:
        """Block this thread until `stop`."""
        self._check_idle(None)
        stopping = threading.Event()
        self._stopping.add(stopping)
        stopping.wait()
        self._stopping.discard(stopping)

    def stop(self) -> None:
        """End `run_forever`."""
        for stopping in tuple(self._stopping):
            stopping.set()

    def is_running(self) -> bool:
        """Whether `run_forever` runs; the shared loop is never that of the calling thread."""
        return bool(self._stopping)

    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    def close(self) -> None:
        """Refuse further work.  The shared loop continues."""
        if self._is_private and not self._is_closed:
            _blockers.remove_user()
        self._is_closed = True
        for task in tuple(self._tasks) if self._is_private else ():
            self._shared.call_soon_threadsafe(task.cancel)

    async def shutdown_asyncgens(self) -> None:
        """End the tasks that are left of a private loop; `asyncio.run` calls this last."""
        left = [task for task in self._tasks if task is not asyncio.current_task()] if self._is_private else []
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Do nothing: the threads belong to all."""

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        """Start a task."""
        if asyncio._get_running_loop() is None:
            context = options["context"] = options.get("context") or self._own_context()
            context.run(_thread_loop.set, self)
            if self._is_private and inspect.iscoroutine(coro) and coro.cr_code not in _ENDINGS:
                task: asyncio.Task[Any] = self._on_loop("create_task", _unless_it_blocks(self.name, coro), **options)
                self._taken_back[task] = coro, context
                return task
        return self._on_loop("create_task", coro, **options)  # type: ignore[no-any-return]

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> asyncio.Handle:
        """Call a function soon, on the shared loop."""
        return self._shared.call_soon_threadsafe(callback, *args, context=context)

    def time(self) -> float:
        """Return the shared loop's time."""
        return self._shared.time()

    def get_debug(self) -> bool:
        """Return the shared loop's debug mode."""
        return self._shared.get_debug()

    def _keep_setting(self, *args: Any) -> None:
        """Ignore a setting of the loop: it would be one of all others too."""

    set_debug = set_exception_handler = set_task_factory = set_default_executor = _keep_setting

    def _own_context(self) -> contextvars.Context:
        context = contextvars.copy_context()
        context.run(_thread_loop.set, self)
        return context

    def _check_closed(self) -> None:
        if self._is_closed:
            raise RuntimeError("Event loop is closed")

    def _on_loop(self, name: str, *args: Any, **keywords: Any) -> Any:
        """Call a method of the shared loop in its thread, and return the value; in async code, of the running loop.

        Async code may have this loop from a module that was imported in a thread.
        """
        self._check_closed()
        running = asyncio._get_running_loop()
        if running is not None:
            return getattr(running, name)(*args, **keywords)
        called: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def call() -> None:
            try:
                called.set_result(getattr(self._shared, name)(*args, **keywords))
            except BaseException as error:  # noqa: BLE001  # raised in the waiting thread
                called.set_exception(error)

        self._shared.call_soon_threadsafe(call)
        return called.result()


# `asyncio.run` runs these last.
_ENDINGS = (ThreadLoop.shutdown_asyncgens.__code__, ThreadLoop.shutdown_default_executor.__code__)


class _TakenBackError(Exception):
    """A coroutine has not begun on the shared loop: its thread runs it on a loop of its own."""


async def _unless_it_blocks(name: str, coro: Any) -> Any:
    if _blockers.is_known(name):
        raise _TakenBackError
    return await coro


def _delegate(name: str) -> None:
    def method(self: ThreadLoop, *args: Any, **keywords: Any) -> Any:
        return self._on_loop(name, *args, **keywords)

    setattr(ThreadLoop, name, method)


for _name in vars(asyncio.AbstractEventLoop):
    if not _name.startswith("_") and _name not in vars(ThreadLoop):
        _delegate(_name)


def _copy_result(waiting: concurrent.futures.Future[Any], done: asyncio.Future[Any]) -> None:
    if done.cancelled():
        waiting.cancel()
        waiting.set_running_or_notify_cancel()
    elif (error := done.exception()) is not None:
        waiting.set_exception(error)
    else:
        waiting.set_result(done.result())


def _shared_loop() -> asyncio.AbstractEventLoop:
    return _shared()[0]


def _shared() -> tuple[asyncio.AbstractEventLoop, int]:
    """Return the loop of all sync code in this process, and the id of its thread; started on first use."""
    with _lock:
        return _start_shared_loop()


@functools.cache
def _start_shared_loop() -> tuple[asyncio.AbstractEventLoop, int]:
    loop = asyncio.SelectorEventLoop()
    loop.set_task_factory(_create_task)
    thread = threading.Thread(target=_run_forever, args=(loop,), name="batchray-sync-code", daemon=True)
    thread.start()
    assert thread.ident is not None
    return loop, thread.ident


def _run_forever(loop: asyncio.AbstractEventLoop) -> None:
    while True:
        try:
            loop.run_forever()  # ends if code calls `stop`
        except BaseException:  # noqa: BLE001  # an exit raised by a task, which the task's own caller gets too
            continue


def _create_task(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
    task = asyncio.Task(coro, loop=loop, **options)
    context = options.get("context")
    owner = _thread_loop.get() if context is None else context.get(_thread_loop)
    if owner is not None:
        owner._tasks.add(task)
    return task


def _offer_thread_loops() -> None:
    """Make the policy's `new_event_loop` return a ThreadLoop in sync code.  All other code gets what it got before.

    The policy that is in force stays, because other code may look at it; it may be replaced at any time.
    """
    policy = asyncio.get_event_loop_policy()
    with _lock:
        if "new_event_loop" not in vars(policy):
            vars(policy)["new_event_loop"] = functools.partial(_new_event_loop, policy.new_event_loop)


def _new_event_loop(original: Callable[[], asyncio.AbstractEventLoop]) -> asyncio.AbstractEventLoop:
    outer = _thread_loop.get()
    if outer is None or asyncio._get_running_loop() is not None or _blockers.is_known(outer.name):
        return original()
    return ThreadLoop(outer.name, private=True)


def _name_in(context: contextvars.Context) -> str | None:
    loop = context.get(_thread_loop)
    return None if loop is None else loop.name


_blockers = Blockers(_shared, _name_in)

"""The one way in which code of users is called: tools, functions, imports, validators of arguments.

Whatever that code raises comes out as a UserCodeError, an ordinary exception.  asyncio ends the event loop of all
requests for a KeyboardInterrupt or SystemExit that reaches one of its tasks, and no `except Exception` stops other
BaseExceptions, such as a panic of a library in Rust.  Three things are not the code's own and pass unchanged: a cancel
of the task, Ctrl-C in the main thread, and the end of a coroutine that is thrown away.

Its standard output and standard error go to a CapturedOutput.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from functools import partial
from itertools import islice
from types import FunctionType, TracebackType
from typing import Any, TypeVar

from pydantic_core import PydanticSerializationError, to_json

from batchray.support.captured_output import Destination, capture, is_capturing
from batchray.support.thread_loop import call_with_thread_loop
from batchray.support.threads import SpareThreads

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ASYNC_FLAGS = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR

MAX_ITEMS = 100_000
"""How many items of a generator are taken."""


class UserCodeError(Exception):
    """Code of a user raised `raised`, which may be any BaseException."""

    def __init__(self, raised: BaseException) -> None:
        self.raised: BaseException = raised.raised if isinstance(raised, UserCodeError) else raised
        super().__init__(type(self.raised).__name__)  # not the error: its `repr` may raise anything too


def is_cancelled() -> bool:
    """Whether the running task was cancelled; a CancelledError without that was raised by its own code."""
    task = _current_task()
    return task is not None and task.cancelling() > 0


class contained:  # lower case: reads as a function, and is a class because it is entered for every call of a tool
    """A block that runs a user's code: what it raises is raised as UserCodeError, what it writes is captured.

    Async code has to be awaited inside the block, because an exception must not reach the edge of a task.
    """

    __slots__ = ("_capture", "_task")

    def __init__(self, output: Destination) -> None:
        self._capture = capture(output)

    def __enter__(self) -> None:
        self._task = _current_task()
        self._capture.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(raised, GeneratorExit) and _current_task() is not self._task:
            return  # a coroutine that is thrown away, perhaps in another context
        self._capture.__exit__(kind, raised, traceback)
        if raised is None or isinstance(raised, UserCodeError):
            return
        if isinstance(raised, asyncio.CancelledError) and is_cancelled():
            return
        if isinstance(raised, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            return
        raise UserCodeError(raised) from raised


async def call_for_text(function: Callable[..., Any], output: Destination, /, *args: Any, **keywords: Any) -> str:
    """Call a function, sync or async, and return its value as text: see `as_text`.

    A sync function runs in a thread that no other call has meanwhile, so that it cannot block other requests.  If the
    call is cancelled, the thread runs to its end: Python cannot stop it.  Raises UserCodeError.
    """
    call = partial(function, *args, **keywords)
    if is_async(function):
        return await _in_task(call, output)
    value = await _in_thread(partial(_called, call), output, _name_of(function))
    return value if isinstance(value, str) else await _in_task(lambda: value, output)


def _name_of(function: Callable[..., Any]) -> str:
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '')}.{name}"


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a call of the function returns a coroutine or an async generator."""
    if type(function) is FunctionType and not function.__dict__:  # nearly all; the general way costs 4 us
        return function.__code__.co_flags & _ASYNC_FLAGS != 0
    for called in (function, getattr(function, "__call__", None)):  # noqa: B004
        if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
            return True
    return False


def as_text(value: Any) -> str:
    """Return a value as text: a string unchanged, anything else as JSON; the items of an iterator as a list.

    Raises what the code of the value's class raises.
    """
    if isinstance(value, str):
        return encodable(value)
    try:
        return to_json(_items(value) if isinstance(value, Iterator) else value).decode()
    except PydanticSerializationError:
        return encodable(str(value))


def encodable(text: str) -> str:
    """Return text that can be encoded as UTF-8: lone surrogates, as in undecodable file names, become `?`."""
    return text.encode("utf-8", "replace").decode()


async def _in_task(call: Callable[[], Any], output: Destination) -> str:
    """Await a call in a task of its own, which its code may cancel without a cancel of the request."""
    task = asyncio.create_task(_awaited(call, output))
    try:
        return await task
    except asyncio.CancelledError as raised:
        if not is_cancelled():
            raise UserCodeError(raised) from raised
        if task.done() and not task.cancelled():
            task.exception()  # otherwise asyncio logs that it was never retrieved
        raise


async def _awaited(call: Callable[[], Any], output: Destination) -> str:
    with contained(output):
        return as_text(await _value_of(call()))


def _called(call: Callable[[], Any]) -> Any:
    """Call a sync function.  Its value becomes text here, in its thread, unless it has to be awaited."""
    value = call()
    return value if inspect.isawaitable(value) or isinstance(value, AsyncIterator) else as_text(value)


async def _value_of(value: Any) -> Any:
    """Await a value if it is awaitable, and take all items of an async generator."""
    if inspect.isawaitable(value):
        value = await value
    if not isinstance(value, AsyncIterator):
        return value
    if not inspect.isasyncgen(value):
        return await _async_items(value)
    async with aclosing(value):
        return await _async_items(value)


async def _async_items(iterator: AsyncIterator[Any]) -> list[Any]:
    items = []
    async for item in iterator:
        items.append(item)
        _check_number(len(items))
        if len(items) % 100 == 0:
            await asyncio.sleep(0)  # one that never waits must not hold up the other requests
    return items


def _items(iterator: Iterator[Any]) -> list[Any]:
    items = list(islice(iterator, MAX_ITEMS + 1))
    _check_number(len(items))
    return items


def _check_number(n_items: int) -> None:
    if n_items > MAX_ITEMS:
        raise ValueError(f"the generator gives more than {MAX_ITEMS:,} items")


_threads = SpareThreads()


async def _in_thread(call: Callable[[], T], output: Destination, name: str) -> T:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def settle(settle_future: Callable[[], None]) -> None:
        if not future.done():
            settle_future()

    def work() -> None:
        try:
            with contained(output):
                done = partial(future.set_result, call_with_thread_loop(call, name))
        except UserCodeError as error:
            done = partial(future.set_exception, error)
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, done)

    # Not a pool of fixed size: functions that never return must not use it up, or block the exit.
    _threads.start(partial(context.run, work), f"batchray-{name}")
    return await future


def protect_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Keep code of users from ending the loop: by an exit in a task or a callback of its own, or by `stop`.

    Functions that such code runs in threads of the loop's executors write to the same output.
    """
    if loop.get_task_factory() is not None:
        return
    loop.set_task_factory(_create_task)
    stop, run_in_executor = loop.stop, loop.run_in_executor

    def run_with_context(executor: Any, function: Callable[..., Any], *args: Any) -> Any:
        if is_capturing() and (executor is None or isinstance(executor, ThreadPoolExecutor)):
            function = partial(contextvars.copy_context().run, function)
        return run_in_executor(executor, function, *args)

    own: Any = loop
    with suppress(AttributeError):  # a loop in C, such as uvloop's
        own.stop = lambda: None if is_capturing() else stop()
        own.run_in_executor = run_with_context
        if threading.current_thread() is not threading.main_thread():  # which gets the interrupts of a terminal
            own._run_once = _contained_turns(own._run_once)


def _contained_turns(run_once: Callable[[], None]) -> Callable[[], None]:
    """Return a turn of an event loop that an exit in a plain callback of a user does not end."""

    def contained_run_once() -> None:
        try:
            run_once()
        except (KeyboardInterrupt, SystemExit) as error:  # the callbacks behind this one run in the next turn
            logger.warning("a callback of an agent's code tried to end the event loop: %r", error)

    return contained_run_once


def _create_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    if is_capturing():
        coroutine = _ContainedCoroutine(coroutine)
    return asyncio.Task(coroutine, loop=loop, **options)


class _ContainedCoroutine(Coroutine[Any, Any, Any]):
    """A coroutine whose KeyboardInterrupt or SystemExit is raised as UserCodeError."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)  # for debuggers, and the names of tasks

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coroutine.__await__()

    def send(self, value: Any) -> Any:
        try:
            return self._coroutine.send(value)
        except (KeyboardInterrupt, SystemExit) as raised:
            raise UserCodeError(raised) from raised

    def throw(self, *raised: Any) -> Any:
        try:
            return self._coroutine.throw(*raised)
        except (KeyboardInterrupt, SystemExit) as error:
            raise UserCodeError(error) from error

    def close(self) -> None:
        self._coroutine.close()


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return None

"""Whatever code of users raises or writes: one mechanism for tools, functions, imports and validators."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator, SecretStr

from batchray.agents import user_code as user_code_module
from batchray.agents.failures import MAX_TRACEBACK_CHARS, Masks, traceback_of, type_name
from batchray.agents.tools import ToolError, load_function, load_tools, make_tool
from batchray.agents.user_code import UserCodeError, call_for_text, contained, protect_loop
from batchray.config import Access
from batchray.errors import ConfigError
from batchray.support.captured_output import MAX_STREAM_CHARS, BoundedText, CapturedOutput, route_streams
from batchray.support.threads import LoopThread
from tests.builders.agents import bound


class Panic(BaseException):
    """As pyo3 raises it for a panic in Rust."""


class Unreadable(Exception):
    def __str__(self) -> str:
        raise Panic("no text")

    __repr__ = __str__


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__(threading.Lock())


RAISED: dict[str, Callable[[], BaseException]] = {
    "Panic": lambda: Panic("index out of bounds"),
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": lambda: SystemExit(3),
    "GeneratorExit": GeneratorExit,
    "StopIteration": lambda: StopIteration(5),
    "StopAsyncIteration": StopAsyncIteration,
    "CancelledError": asyncio.CancelledError,
    "TimeoutError": lambda: TimeoutError("own"),
    "Unreadable": Unreadable,
    "Unpicklable": Unpicklable,
    "BaseExceptionGroup": lambda: BaseExceptionGroup("both", [ValueError("a"), SystemExit(1)]),
}
each_exception = pytest.mark.parametrize("name", RAISED)


def raising(raised: BaseException) -> list[Callable[[], Any]]:
    """Functions of each kind that raise this."""

    def sync() -> None:
        raise raised

    async def coroutine() -> None:
        await asyncio.sleep(0)
        raise raised

    async def generator() -> AsyncIterator[int]:
        yield 1
        raise raised

    def items() -> Iterator[int]:
        yield 1
        raise raised

    async def in_a_task() -> None:
        await asyncio.gather(coroutine(), asyncio.Event().wait())

    class Value:
        def __str__(self) -> str:
            raise raised

    def value() -> object:
        return Value()

    async def async_value() -> object:
        return Value()

    return [sync, coroutine, generator, items, in_a_task, value, async_value]


@each_exception
@pytest.mark.parametrize("kind", range(7))
def test_any_exception_of_user_code_is_an_ordinary_error_for_the_loop(name: str, kind: int) -> None:
    async def call() -> str:
        protect_loop(asyncio.get_running_loop())
        with pytest.raises(UserCodeError) as caught:
            await call_for_text(raising(RAISED[name]())[kind], CapturedOutput())
        return type_name(caught.value.raised)

    with closing(LoopThread("side")) as loop:  # in the main thread an interrupt is Ctrl-C
        assert loop.run(call()) in (name, "RuntimeError")  # Python makes that of some inside of coroutines


@each_exception
def test_any_exception_of_an_argument_validator_goes_to_the_model(name: str) -> None:
    def check(value: int) -> int:
        raise RAISED[name]()

    def double(n: int) -> int:
        return 2 * n

    double.__annotations__["n"] = Annotated[int, AfterValidator(check)]
    with closing(LoopThread("side")) as loop, pytest.raises(ToolError, match=name):
        loop.run(make_tool(double, 1.0).call({"n": 1}))


@each_exception
def test_any_exception_of_an_import_is_a_configuration_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / f"raising_{name}.py").write_text(f"from {__name__} import RAISED\nraise RAISED[{name!r}]()\n")
    is_ctrl_c = name == "KeyboardInterrupt"  # as it arrives in the main thread
    with pytest.raises(KeyboardInterrupt if is_ctrl_c else ConfigError):
        load_function(f"raising_{name}:f", [str(tmp_path)])


async def test_code_that_cancels_its_own_task_fails_alone() -> None:
    async def cancel_itself() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return "returned"

    for _ in range(2):
        with pytest.raises(UserCodeError):
            await call_for_text(cancel_itself, CapturedOutput())
    await asyncio.sleep(0)  # the task of this test is not cancelled


async def test_a_real_cancel_passes_and_a_timeout_stays_a_timeout() -> None:
    started = asyncio.Event()

    async def wait() -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(call_for_text(wait, CapturedOutput()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async def swallow() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise Panic("while it was cancelled") from None

    with pytest.raises(ToolError, match=r"swallow did not return within 0 s"):
        await make_tool(swallow, 0.0).call({})


def test_a_coroutine_that_is_thrown_away_ends_silently() -> None:
    async def wait() -> None:
        await asyncio.Event().wait()

    coroutine = user_code_module._awaited(wait, CapturedOutput())
    loop = asyncio.new_event_loop()
    task = loop.create_task(coroutine)
    loop.call_soon(loop.stop)
    loop.run_forever()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coroutine.close()
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    del task, coroutine
    gc.collect()


async def test_generators_give_their_items() -> None:
    async def count() -> AsyncIterator[int]:
        for n in range(3):
            await asyncio.sleep(0)
            yield n

    def words() -> Iterator[str]:
        yield from ("a", "b")

    async def later() -> Iterator[str]:
        return words()

    output = CapturedOutput()
    assert await call_for_text(count, output) == "[0,1,2]"
    assert await call_for_text(lambda: count(), output) == "[0,1,2]"
    assert await call_for_text(words, output) == await call_for_text(later, output) == '["a","b"]'
    assert await call_for_text(lambda: map(str, range(2)), output) == '["0","1"]'


async def test_an_endless_generator_is_an_error_and_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_code_module, "MAX_ITEMS", 150)
    ended: list[str] = []

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            ended.append("async")

    def endless_too() -> Iterator[int]:
        while True:
            yield 1

    for function in (endless, endless_too):
        with pytest.raises(UserCodeError) as caught:
            await call_for_text(function, CapturedOutput())
        assert str(caught.value.raised) == "the generator gives more than 150 items"
    assert ended == ["async"]


# -- output


async def test_concurrent_calls_keep_their_output_apart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [logging.StreamHandler()])  # as `logging.basicConfig` makes it
    route_streams()
    loop = asyncio.get_running_loop()
    protect_loop(loop)

    async def greet(name: str) -> None:
        for _ in range(3):
            print("async", name)
            await asyncio.sleep(0)
        await asyncio.to_thread(print, "from a thread of", name)
        await loop.run_in_executor(None, print, "from an executor of", name)

    def greet_in_thread(name: str) -> None:
        print("sync", name)
        sys.stdout.buffer.write(f"bytes {name}\n".encode())
        sys.stdout.writelines(["line ", name, "\n"])
        print("error", name, file=sys.stderr, flush=True)
        logging.getLogger("of.a.user").warning("logged %s", name)
        assert not sys.stdout.isatty()

    outputs = [CapturedOutput() for _ in range(20)]
    calls = [call_for_text((greet, greet_in_thread)[n % 2], output, f"<{n}>") for n, output in enumerate(outputs)]
    await asyncio.gather(*calls)
    print("outside")
    for n, output in enumerate(outputs):
        if n % 2 == 0:
            in_threads = f"from a thread of <{n}>\nfrom an executor of <{n}>\n"
            assert (output.stdout, output.stderr) == (f"async <{n}>\n" * 3 + in_threads, "")
        else:
            assert output.stdout == f"sync <{n}>\nbytes <{n}>\nline <{n}>\n"
            assert output.stderr == f"error <{n}>\nlogged <{n}>\n"
    assert capsys.readouterr() == ("outside\n", "")


def test_a_stream_takes_only_text() -> None:
    route_streams()
    with pytest.raises(UserCodeError) as caught, contained(CapturedOutput()):
        sys.stdout.write(b"bytes")  # type: ignore[arg-type]
    assert isinstance(caught.value.raised, TypeError)


def test_output_of_an_import_goes_to_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    route_streams()
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "talkative.py").write_text("print('imported')\ndef f(): pass\n")
    load_function("talkative:f", [str(tmp_path)])
    assert capsys.readouterr() == ("", "imported\n")


@given(st.lists(st.text(max_size=30), max_size=20), st.integers(2, 40).map(lambda n: 2 * n))
def test_a_bounded_text_has_the_beginning_and_the_end(pieces: list[str], max_chars: int) -> None:
    bounded, whole = BoundedText(max_chars), "".join(pieces)
    for piece in pieces:
        bounded.write(piece)
    half, n_cut = max_chars // 2, len(whole) - max_chars
    if n_cut <= 0:
        assert bounded.text == whole
    else:
        assert bounded.text == f"{whole[:half]}\n[{n_cut:,} characters are left out]\n{whole[-half:]}"


async def test_output_is_bounded() -> None:
    route_streams()
    output = CapturedOutput()
    await call_for_text(lambda: print("x" * 1_000_000), output)
    assert MAX_STREAM_CHARS < len(output.stdout) < MAX_STREAM_CHARS + 100


# -- tracebacks


def fail(depth: int, key: str = "") -> None:
    if depth:
        fail(depth - 1, key)
    raise LookupError(f"no access with {key}")


KEYS = ["key-of-the-provider", "secret-of-its-header", "token-of-the-environment"]


@pytest.mark.parametrize("key", KEYS)
async def test_a_traceback_has_the_users_frames_and_no_keys(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    access = Access("https://example.test", secrets=(KEYS[1],))
    agent = replace(bound(model="offline/rules"), key=SecretStr(KEYS[0]), access=access)
    monkeypatch.setenv("THEIR_SERVICE_TOKEN", KEYS[2])
    with pytest.raises(UserCodeError) as caught:
        await call_for_text(fail, CapturedOutput(), 2, key)
    text = traceback_of(caught.value.raised, Masks(agent))
    frames = [line for line in text.splitlines() if line.startswith("  File ")]
    assert len(frames) == 3
    assert all(f'"{__file__}"' in frame for frame in frames)
    assert text.endswith("LookupError: no access with ***\n")


def test_values_that_are_words_are_not_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SORT_KEY", "created_at"), ("NO_TOKEN", "1"), ("AUTHOR", "Jane Doe 1975")):
        monkeypatch.setenv(name, value)
    assert Masks().clean("created_at 1 Jane Doe 1975") == "created_at 1 Jane Doe 1975"


async def test_a_long_traceback_is_cut_in_its_middle() -> None:
    with pytest.raises(UserCodeError) as caught:
        await call_for_text(fail, CapturedOutput(), 3, "x" * 100_000)
    text = traceback_of(caught.value.raised, Masks())
    assert text.startswith("Traceback (most recent call last):\n")
    assert "characters are left out" in text
    assert len(text) < MAX_TRACEBACK_CHARS + 100


@each_exception
def test_every_exception_has_a_traceback(name: str) -> None:
    assert name in traceback_of(RAISED[name](), Masks())


# -- the names of tools


@pytest.mark.parametrize("name", ["météo", "<lambda>", "two words", "x" * 65, "dotted.name"])
def test_a_tool_name_that_providers_refuse_is_refused(name: str) -> None:
    def function() -> None: ...

    function.__name__ = name
    with pytest.raises(ConfigError, match=r"^providers refuse the tool name"):
        load_tools([function], 1.0)


@pytest.mark.parametrize("name", ["get_weather", "get-weather", "A1", "x" * 64])
def test_other_tool_names_are_taken(name: str) -> None:
    def function() -> None: ...

    function.__name__ = name
    assert list(load_tools([function], 1.0)) == [name]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_a_callback_cannot_end_the_loop_of_a_thread(kind: type[BaseException]) -> None:
    def leave() -> None:
        raise kind

    async def plant() -> str:
        loop = asyncio.get_running_loop()
        loop.call_soon(leave)
        neighbour, later = loop.create_future(), loop.create_future()
        loop.call_soon(neighbour.set_result, "still")
        loop.call_later(0.001, leave)
        loop.call_later(0.002, later.set_result, "running")
        return f"{await neighbour} {await later}"

    async def call() -> str:
        protect_loop(asyncio.get_running_loop())
        return await call_for_text(plant, CapturedOutput())

    with ThreadPoolExecutor(1) as thread:  # as a lane's loop is not in the main thread, which Ctrl-C interrupts
        assert thread.submit(asyncio.run, call()).result(30) == "still running"


def test_code_cannot_stop_its_loop() -> None:
    async def stop() -> str:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)
        return "still running"

    async def call() -> str:
        protect_loop(asyncio.get_running_loop())
        return await call_for_text(stop, CapturedOutput())

    assert asyncio.run(call()) == "still running"

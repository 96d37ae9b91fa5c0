"""Answers of remote calls are awaited without an effect on the futures that Ray's threads complete."""

from __future__ import annotations

import ast
import asyncio
import concurrent.futures
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError

import batchray
from batchray.executors.ray.answers import answer_of, next_answer


class Reference:
    """An `ObjectRef` whose future the test completes, as a thread of Ray does."""

    def __init__(self) -> None:
        self.completed: concurrent.futures.Future[object] = concurrent.futures.Future()

    def future(self) -> concurrent.futures.Future[object]:
        return self.completed

    def __await__(self) -> object:
        raise AssertionError("cancelling this would cancel the future of Ray")


async def test_an_answer_ends_as_the_call_does() -> None:
    value, error = Reference(), Reference()
    answers = [answer_of(value), answer_of(error)]
    await asyncio.to_thread(value.completed.set_result, 7)
    await asyncio.to_thread(error.completed.set_exception, ActorDiedError())
    assert await answers[0] == 7
    with pytest.raises(ActorDiedError):
        await answers[1]


@pytest.mark.parametrize("is_error", [False, True])
async def test_a_call_is_completed_after_its_answer_was_cancelled(is_error: bool) -> None:
    reference = Reference()

    async def call() -> object:
        return await answer_of(reference)

    calling = asyncio.ensure_future(call())
    await asyncio.sleep(0)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert not reference.completed.done()
    if is_error:
        reference.completed.set_exception(ActorDiedError())
    else:
        reference.completed.set_result(7)
    await asyncio.sleep(0)


def test_a_call_is_completed_after_the_end_of_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    reference = Reference()

    async def call() -> object:
        return await answer_of(reference)

    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(call(), timeout=0.0))
    reference.completed.set_result(7)
    assert caplog.messages == []  # an error of a future's callback is logged, not raised


async def test_the_fetch_of_a_next_answer_continues_after_its_reader_was_cancelled() -> None:
    is_ready, fetched = asyncio.Event(), asyncio.Event()

    async def references() -> AsyncIterator[Reference]:
        await is_ready.wait()
        fetched.set()
        reference = Reference()
        reference.completed.set_result(7)
        yield reference

    answers = references()
    taking = asyncio.ensure_future(next_answer(answers))
    await asyncio.sleep(0)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    is_ready.set()
    await fetched.wait()
    with pytest.raises(StopAsyncIteration):
        await next_answer(answers)


def test_no_remote_call_is_awaited_as_it_is() -> None:
    awaited = [
        f"{path.name}:{node.lineno}"
        for path in Path(batchray.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Await) and isinstance(node.value, ast.Call)
        if isinstance(node.value.func, ast.Attribute) and node.value.func.attr == "remote"
    ]
    assert awaited == []

"""Errors of mixed sync and async code say what to write instead."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from batchray.agents import AttemptRunner, encode_input, read_report
from batchray.agents.loop_advice import advice_for
from batchray.schema import AgentRequest, new_job_id
from tests.builders.agents import bound

AWAIT_IT = "in an `async def`, await the async call"
ONE_LOOP = "an async client belongs to the event loop that uses it first"


async def ask() -> str:
    return "asked"


def drop(work: Any) -> str:
    work.close()
    return "dropped"


async def with_run(request: AgentRequest) -> str:
    work = ask()
    try:
        return asyncio.run(work)
    finally:
        drop(work)


async def with_the_loop(request: AgentRequest) -> str:
    work = ask()
    try:
        return asyncio.get_event_loop().run_until_complete(work)
    finally:
        drop(work)


async def with_a_new_loop(request: AgentRequest) -> str:
    loop, work = asyncio.new_event_loop(), ask()
    try:
        return loop.run_until_complete(work)
    finally:
        drop(work)
        loop.close()


async def with_another_loops_future(request: AgentRequest) -> str:
    loop = asyncio.new_event_loop()
    try:
        await loop.create_future()
    finally:
        loop.close()
    return "never"


async def with_a_closed_loop(request: AgentRequest) -> str:
    loop = asyncio.new_event_loop()
    loop.close()
    try:
        loop.call_soon(print)
    except RuntimeError as error:  # as SDKs do
        raise ConnectionError("Connection error.") from error
    return "never"


@pytest.mark.parametrize(
    ("function", "advice"),
    [
        (with_run, AWAIT_IT),
        (with_the_loop, AWAIT_IT),
        (with_a_new_loop, AWAIT_IT),
        (with_another_loops_future, ONE_LOOP),
        (with_a_closed_loop, ONE_LOOP),
    ],
)
async def test_an_error_of_sync_code_in_an_async_function_says_what_to_write(
    attempt_runner: AttemptRunner, function: Callable[[AgentRequest], Awaitable[str]], advice: str
) -> None:
    item = encode_input(new_job_id(), 0, 1, b'{"agent_id": "a", "input": "?"}')
    report = read_report(await attempt_runner.run_attempt(bound(run=function), item))
    assert report.error is not None
    assert advice in report.error["message"]


@pytest.mark.parametrize(
    "told",
    [
        "AgentRunner.run_sync() cannot be called when an event loop is already running.",
        "Runner.run() cannot be called from a running event loop",
        "Cannot run the event loop while another loop is running",
        "Already running asyncio in this thread",
        "<asyncio.locks.Event object at 0x7f> is bound to a different event loop",
    ],
)
def test_the_words_of_frameworks_are_known(told: str) -> None:
    assert advice_for(RuntimeError(told)) is not None


@pytest.mark.parametrize("error", [RuntimeError("no"), ValueError("This event loop is already running"), KeyError(1)])
def test_other_errors_get_no_advice(error: Exception) -> None:
    assert advice_for(error) is None

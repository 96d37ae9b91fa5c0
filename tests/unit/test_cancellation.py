"""A block of a task is cancelled with the exception that it then raises."""

from __future__ import annotations

import asyncio

import pytest

from batchray.support.cancellation import CancelScope


async def wait_in(scope: CancelScope) -> None:
    with scope:
        await asyncio.Event().wait()


async def begun(scope: CancelScope) -> asyncio.Task[None]:
    task = asyncio.create_task(wait_in(scope))
    await asyncio.sleep(0)
    return task


async def test_a_block_raises_the_error_that_it_was_cancelled_with() -> None:
    scope = CancelScope()
    task = await begun(scope)
    scope.cancel_with(LookupError("first"))
    scope.cancel_with(LookupError("second"))
    with pytest.raises(LookupError, match="first"):
        await task
    assert not task.cancelled()


async def test_the_task_continues_after_the_block() -> None:
    scope = CancelScope()

    async def work() -> int:
        with pytest.raises(LookupError):
            await wait_in(scope)
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    scope.cancel_with(LookupError())
    assert await task == 0


async def test_a_cancel_from_elsewhere_stays_a_cancel() -> None:
    for reasons in ((), (LookupError(),)):
        scope = CancelScope()
        task = await begun(scope)
        task.cancel()
        for error in reasons:
            scope.cancel_with(error)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()


async def test_a_block_that_fails_by_itself_raises_its_own_error() -> None:
    scope = CancelScope()

    async def work() -> None:
        with scope:
            try:
                await asyncio.Event().wait()
            finally:
                raise KeyError("own")

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    scope.cancel_with(LookupError())
    with pytest.raises(KeyError, match="own"):
        await task


async def test_a_block_that_has_ended_is_not_cancelled() -> None:
    scope = CancelScope()
    with scope:
        pass
    scope.cancel_with(LookupError())
    await asyncio.sleep(0)
    assert scope.error is None

"""A check whose success counts for a moment."""

from __future__ import annotations

import asyncio

import pytest

from batchray.server.recent_check import RecentCheck


class Checked:
    """A check that the test lets pass or fail, on a clock of the test's."""

    def __init__(self) -> None:
        self.now, self.n_begun = 0.0, 0
        self.error: Exception | None = None
        self.may_end = asyncio.Event()
        self.recent = RecentCheck(self._run, renew_s=1, valid_s=10, clock=lambda: self.now)

    async def _run(self) -> None:
        self.n_begun += 1
        await self.may_end.wait()
        if self.error is not None:
            raise self.error


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_first_callers_wait_for_one_check() -> None:
    checked = Checked()
    asking = [asyncio.create_task(checked.recent.passed()) for _ in range(10)]
    await settle()
    assert not any(task.done() for task in asking)
    checked.may_end.set()
    await asyncio.gather(*asking)
    assert checked.n_begun == 1


async def test_a_success_counts_for_a_while_and_is_renewed_meanwhile() -> None:
    checked = Checked()
    checked.may_end.set()
    await checked.recent.passed()
    checked.may_end.clear()
    await checked.recent.passed()
    assert checked.n_begun == 1
    checked.now = 2
    for _ in range(5):
        await checked.recent.passed()  # none of them waits
    await settle()
    assert checked.n_begun == 2
    checked.now = 11  # the check is still running
    late = asyncio.create_task(checked.recent.passed())
    await settle()
    assert not late.done()
    checked.may_end.set()
    await late


async def test_a_failure_of_the_check_is_raised_to_every_later_caller() -> None:
    checked = Checked()
    checked.may_end.set()
    await checked.recent.passed()
    checked.error, checked.now = OSError("gone"), 2
    await checked.recent.passed()  # renews it
    await settle()
    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            await checked.recent.passed()
    checked.error = None
    await checked.recent.passed()

from __future__ import annotations

import asyncio

import pytest

from batchray.config import Settings, load_settings
from batchray.errors import ClusterError
from batchray.server.executor_supervisor import supervise
from tests.polling import wait_until

SETTINGS = load_settings(executor="local")


class ExecutorSource:
    """An executor that is lost, and comes back at the given attempt."""

    def __init__(self, back_at: int) -> None:
        self.back_at, self.n_attempts, self.is_alive = back_at, 0, True

    def is_ready(self, settings: Settings) -> bool:
        return self.is_alive

    async def ensure_executor(self, settings: Settings) -> object:
        self.n_attempts += 1
        if self.n_attempts < self.back_at:
            raise ClusterError("not yet")
        self.is_alive = True
        return self


async def test_a_lost_executor_is_restarted_each_time() -> None:
    source = ExecutorSource(back_at=2)
    supervision = asyncio.create_task(supervise(source, SETTINGS, 0.001, delays_s=(0, 0, 0)))
    for _ in range(2):
        source.is_alive, source.n_attempts = False, 0
        await wait_until(lambda: source.is_alive)
        assert source.n_attempts == 2
    assert not supervision.done()
    supervision.cancel()
    with pytest.raises(asyncio.CancelledError):
        await supervision


async def test_supervision_ends_if_the_executor_cannot_be_restarted() -> None:
    source = ExecutorSource(back_at=9)
    source.is_alive = False
    with pytest.raises(ClusterError, match=r"could not be restarted \(not yet\); jobs continue when the server starts"):
        await supervise(source, SETTINGS, 0.001, delays_s=(0, 0, 0))
    assert source.n_attempts == 3

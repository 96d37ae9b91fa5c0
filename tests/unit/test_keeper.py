from __future__ import annotations

import asyncio

import pytest

from batchray.config import Settings, load_settings
from batchray.errors import ClusterError
from batchray.server.executor_supervisor import supervise
from tests.polling import wait_until

SETTINGS = load_settings(executor="local")


class ExecutorSource:
    """Something that is gone, and comes back at the try that a test wishes."""

    def __init__(self, back_at: int) -> None:
        self.back_at, self.n_tries, self.is_there = back_at, 0, True

    def is_ready(self, settings: Settings) -> bool:
        return self.is_there

    async def ensure_executor(self, settings: Settings) -> object:
        self.n_tries += 1
        if self.n_tries < self.back_at:
            raise ClusterError("not yet")
        self.is_there = True
        return self


async def test_what_is_gone_is_started_anew_as_often_as_it_goes() -> None:
    hosts = ExecutorSource(back_at=2)
    keeping = asyncio.create_task(supervise(hosts, SETTINGS, 0.001, waits_s=(0, 0, 0)))
    for _ in range(2):
        hosts.is_there, hosts.n_tries = False, 0
        await wait_until(lambda: hosts.is_there)
        assert hosts.n_tries == 2
    assert not keeping.done()
    keeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await keeping


async def test_what_cannot_be_started_anew_is_the_end() -> None:
    hosts = ExecutorSource(back_at=9)
    hosts.is_there = False
    with pytest.raises(ClusterError, match=r"could not be started anew \(not yet\); jobs go on when the server starts"):
        await supervise(hosts, SETTINGS, 0.001, waits_s=(0, 0, 0))
    assert hosts.n_tries == 3

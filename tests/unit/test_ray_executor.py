"""The executor on Ray, without a cluster."""

from __future__ import annotations

import threading

import pytest

from batchray.config import Settings, load_settings
from batchray.errors import ClusterError
from batchray.executors.ray import executor
from batchray.executors.ray.executor import RayExecutor
from tests.polling import wait_until


def refuse(settings: Settings) -> bool:
    raise ClusterError("no cluster there")


async def test_an_executor_that_does_not_connect_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "connect", refuse)
    before = set(threading.enumerate())
    with pytest.raises(ClusterError, match="no cluster there"):
        await RayExecutor(load_settings(executor="ray")).start()
    await wait_until(lambda: not set(threading.enumerate()) - before)


async def test_the_thread_of_a_connection_that_comes_late_lives_because_its_cluster_would_end_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connected = threading.Event()
    monkeypatch.setattr(executor, "connect", lambda settings: connected.wait(10))
    monkeypatch.setattr(executor, "disconnect", lambda: pytest.fail("the next executor takes the connection"))
    monkeypatch.setattr(executor, "_CONNECT_S", 0.01)
    before = set(threading.enumerate())
    started = RayExecutor(load_settings(executor="ray"))
    with pytest.raises(ClusterError, match="no connection to a Ray cluster"):
        await started.start()
    connected.set()
    await wait_until(lambda: [thread.name for thread in set(threading.enumerate()) - before] == ["batchray-ray"])
    started._thread.shutdown()

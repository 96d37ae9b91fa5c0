"""The executor on Ray, without a cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from batchray.config import Settings, load_settings
from batchray.errors import ClusterError
from batchray.executors.ray import executor
from batchray.executors.ray.executor import RayExecutor
from tests.polling import wait_until


def refuse(settings: Settings) -> bool:
    raise ClusterError("no cluster there")


def hang(settings: Settings) -> bool:
    return never.wait(10)


never = threading.Event()


@pytest.mark.parametrize(("connect", "said"), [(refuse, "no cluster there"), (hang, "no connection .* within 0 s")])
async def test_an_executor_that_does_not_connect_leaves_no_thread(
    connect: Callable[[Settings], bool], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "connect", connect)
    monkeypatch.setattr(executor, "_CONNECT_S", 0.0 if connect is hang else 60.0)
    before = set(threading.enumerate())
    with pytest.raises(ClusterError, match=said):
        await RayExecutor(load_settings(executor="ray")).start()
    never.set()
    await wait_until(lambda: not set(threading.enumerate()) - before)

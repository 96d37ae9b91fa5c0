"""The warning that all CPUs of the cluster are in use, while requests wait for processes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import pytest

from batchray.executors.ray import queued_processes
from batchray.executors.ray.calls import AttemptClock
from batchray.executors.ray.nodes import Node
from batchray.executors.ray.queued_processes import QueuedProcesses
from tests.polling import run_pending_tasks

BUSY = [Node("a", {"CPU": 4.0}, 0.5), Node("b", {"CPU": 2.0}, 0.0)]


class Cluster:
    """Nodes and a time that the test sets."""

    def __init__(self) -> None:
        self.nodes: Sequence[Node] = BUSY
        self.now = 100.0
        self.processes = QueuedProcesses(self.read, lambda: self.now)

    async def read(self) -> Sequence[Node]:
        return self.nodes


async def test_requests_that_wait_for_cpus_of_others_are_warned_of_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster, first, second = Cluster(), AttemptClock(), AttemptClock()
    await cluster.processes.look()
    with cluster.processes.containing(first, "heavy", {"CPU": 1.0}):
        for step_s in (10.0, 10.0, 30.0):
            cluster.now += step_s
            await cluster.processes.look()
        [warning] = caplog.messages
        assert warning == (
            "requests of agent 'heavy' have waited 20 s for CPUs: each takes 1 on one node, and of the cluster's 6 "
            "only 0.5 are free; they start when others release theirs, or a node joins"
        )
        cluster.now += 40.0
        await cluster.processes.look()
        assert len(caplog.messages) == 2
        with cluster.processes.containing(second, "heavy", {"CPU": 1.0}):
            cluster.now += 100.0
            first.place("a")
            await cluster.processes.look()  # one runs, and the other waits for it
    await cluster.processes.look()
    assert len(caplog.messages) == 2


async def test_a_process_that_only_starts_slowly_is_no_reason_to_warn(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    cluster = Cluster()
    cluster.nodes = [*BUSY, Node("c", {"CPU": 2.0}, 1.0)]
    with cluster.processes.containing(AttemptClock(), "heavy", {"CPU": 1.0}):
        cluster.now += 100.0
        await cluster.processes.look()
        assert caplog.messages == []
        cluster.nodes = [*BUSY, Node("c", {"CPU": 2.0}, 2.0)]
    with cluster.processes.containing(AttemptClock(), "heavy", {"CPU": 1.0, "GPU": 1.0}):
        cluster.now += 100.0
        await cluster.processes.look()
        assert len(caplog.messages) == 1  # its CPUs are free, on a node without a GPU


async def test_a_cluster_that_does_not_say_its_nodes_ends_no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queued_processes, "_POLL_S", 0)
    cluster = Cluster()
    n_read = 0

    async def read() -> Sequence[Node]:
        nonlocal n_read
        n_read += 1
        raise ConnectionError("away")

    monkeypatch.setattr(cluster.processes, "_read_nodes", read)
    with cluster.processes.containing(AttemptClock(), "heavy", {"CPU": 1.0}):
        cluster.now += 100.0
        watching = asyncio.ensure_future(cluster.processes.watch())
        await run_pending_tasks()
        assert n_read > 1
        assert not watching.done()
        watching.cancel()

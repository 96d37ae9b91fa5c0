"""Lanes follow the nodes of a cluster: which take calls when a node joins, drains or fails."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import ray.exceptions

from batchray.errors import ClusterError
from batchray.executors.provider_board import ProviderBoard
from batchray.executors.ray import lanes as module
from batchray.executors.ray.lanes import Lanes, LaneSinks
from batchray.executors.ray.nodes import Node
from batchray.executors.ray.worker_log import WorkerWarnings
from tests.polling import run_pending_tasks


class FakeLane:
    """A lane that never starts a process."""

    def __init__(self, node_id: str) -> None:
        self.node_id, self.actor, self.pid, self.n_connections = node_id, self, 1, 10
        self.in_flight, self.is_down, self.is_leaving = 0, False, False

    @property
    def is_open(self) -> bool:
        return not self.is_down and not self.is_leaving

    def forget(self) -> None:
        pass


class Cluster:
    """The lanes under test, and nodes that the test changes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes: Sequence[Node] = []
        self.error: Exception | None = None
        self.broken: set[str] = set()
        self.ended: list[Any] = []
        self.lost: list[str] = []
        sinks = LaneSinks("job-actor", ProviderBoard(), WorkerWarnings(time.monotonic))
        self.lanes = Lanes(self.lost.append, 300.0, sinks, self.read)
        monkeypatch.setattr(module, "_start_lane", self.start_lane)
        monkeypatch.setattr(module, "_restart_lane", self.start_lane)
        monkeypatch.setattr(ray, "kill", self.ended.append)

    async def read(self) -> Sequence[Node]:
        if self.error is not None:
            raise self.error
        return self.nodes

    async def start_lane(self, node_id: str, sinks: Any) -> FakeLane:
        if node_id in self.broken:
            raise ClusterError(f"no lane starts on {node_id}")
        return FakeLane(node_id)

    async def change(self, *nodes: Node) -> None:
        """Change the nodes, and make the lanes read them."""
        self.nodes = nodes
        await self.lanes._update_nodes()
        await run_pending_tasks()

    @property
    def open(self) -> Counter[str]:
        return Counter(lane.node_id for lane in self.lanes._started() if lane.is_open)


def node(name: str, cpus: float = 2, *, is_leaving: bool = False) -> Node:
    return Node(name, {"CPU": cpus}, cpus, is_leaving)


@pytest.fixture
async def cluster(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    made = Cluster(monkeypatch)
    made.nodes = [node("a")]
    await made.lanes.start()
    yield made
    made.lanes.forget()


async def test_a_node_that_joins_gets_lanes_and_takes_calls(cluster: Cluster) -> None:
    (await cluster.lanes.least_busy()).in_flight = 7
    await cluster.change(node("a"), node("b", 3))
    assert cluster.open == {"a": 2, "b": 3}
    for lane in cluster.lanes._started():
        lane.in_flight += lane.node_id == "a"
    assert (await cluster.lanes.least_busy()).node_id == "b"


async def test_a_lane_on_a_drained_node_takes_no_calls_and_ends_when_its_own_are_over(cluster: Cluster) -> None:
    await cluster.change(node("a"), node("b"))
    busy = next(lane for lane in cluster.lanes._started() if lane.node_id == "a")
    busy.in_flight = 1
    await cluster.change(node("a", is_leaving=True), node("b"))
    assert (cluster.open, [lane.node_id for lane in cluster.ended]) == ({"b": 2}, ["a"])
    assert busy not in cluster.ended
    busy.in_flight = 0
    await cluster.change(node("a", is_leaving=True), node("b"))
    assert busy in cluster.ended
    await cluster.change(node("a"), node("b"))  # it stays after all
    assert cluster.open == {"a": 2, "b": 2}


async def test_if_every_node_is_drained_lanes_take_calls_until_another_joins(cluster: Cluster) -> None:
    await cluster.change(node("a", is_leaving=True))
    assert cluster.open == {"a": 2}
    await cluster.change(node("a", is_leaving=True), node("b"))
    assert cluster.open == {"b": 2}


@pytest.mark.parametrize("error", [ray.exceptions.GetTimeoutError("slow"), ConnectionError("away"), RuntimeError("?")])
async def test_lanes_stay_while_the_nodes_cannot_be_read(cluster: Cluster, error: Exception) -> None:
    cluster.error = error
    await cluster.change()
    cluster.error = None
    await cluster.change()  # an empty list is no news either
    assert (cluster.open, cluster.ended, cluster.lost) == ({"a": 2}, [], [])


async def test_a_lane_that_cannot_start_is_tried_again_and_the_cluster_is_lost_only_without_any(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.broken = {"b"}
    await cluster.change(node("a"), node("b", 1))
    assert (cluster.open, cluster.lost, caplog.messages) == ({"a": 2}, [], ["no lane starts on b"])
    cluster.broken = set()
    await cluster.change(node("a"), node("b", 1))
    assert cluster.open == {"a": 2, "b": 1}
    cluster.broken = {"c"}
    await cluster.change(node("c", 1))
    assert (cluster.open, cluster.lost) == ({}, ["no lane starts on c"])


async def test_lanes_that_are_forgotten_while_the_nodes_are_read_start_no_others(cluster: Cluster) -> None:
    changing = asyncio.ensure_future(cluster.change(node("a"), node("b")))
    await asyncio.sleep(0)
    cluster.lanes.forget()
    await changing
    assert cluster.open == Counter()


async def test_a_call_waits_until_a_lane_has_started(cluster: Cluster) -> None:
    cluster.broken = {"b"}
    await cluster.change(node("b", 1))
    waiting = asyncio.ensure_future(cluster.lanes.least_busy())
    await run_pending_tasks()
    assert not waiting.done()
    cluster.broken = set()
    await cluster.change(node("b", 1))
    assert (await waiting).node_id == "b"


async def test_a_lane_takes_calls_again_if_its_drained_node_stays(cluster: Cluster) -> None:
    await cluster.change(node("a", 1), node("b", 1))
    for lane in cluster.lanes._started():
        lane.in_flight = 1
    await cluster.change(node("a", 1, is_leaving=True), node("b", 1))
    assert cluster.open == {"b": 1}
    waiting = asyncio.ensure_future(cluster.lanes.least_busy())
    await cluster.change(node("a", 1, is_leaving=True))  # no other node is left
    assert cluster.open == {"a": 2}
    await waiting


async def test_a_node_that_is_gone_before_its_first_lane_has_started_delays_no_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def start_lane(node_id: str, sinks: Any) -> FakeLane:
        if node_id == "gone":
            await asyncio.Event().wait()
        return FakeLane(node_id)

    cluster = Cluster(monkeypatch)
    monkeypatch.setattr(module, "_start_lane", start_lane)
    monkeypatch.setattr(module, "_NODES_S", 0)
    cluster.nodes = [node("a", 1), node("gone", 1)]
    starting = asyncio.ensure_future(cluster.lanes.start())
    await run_pending_tasks()
    assert not starting.done()
    cluster.nodes = [node("a", 1)]
    await run_pending_tasks()
    await starting
    assert cluster.open == {"a": 1}
    cluster.lanes.forget()

"""The executor on Ray: one remote call a request, on a lane or in a process of its own."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import ray
import ray.exceptions

from batchray.agents import SaveCheckpoints
from batchray.config import AgentSet, BoundAgent, Settings
from batchray.errors import ClusterError, ConfigError, RequestError, WorkerDiedError
from batchray.executors.base import AttemptSpec, ControlChannel
from batchray.executors.ray.calls import AttemptClock, LostCallError, call_lane, call_process, first_line
from batchray.executors.ray.connection import connect, disconnect
from batchray.executors.ray.exit_report import UNKNOWN_CAUSE
from batchray.executors.ray.job_actor import JobActorChannel
from batchray.executors.ray.lane import pack
from batchray.executors.ray.lane_client import PAUSE_S, LaneHandle
from batchray.executors.ray.lanes import Lanes
from batchray.executors.ray.monitor import ClusterMonitor, monitor_of_cluster
from batchray.executors.ray.oom import OUT_OF_MEMORY, is_oom_culprit
from batchray.support.threads import DaemonThread

logger = logging.getLogger(__name__)

_MAX_LANES = 8
_CONNECT_S = 60.0
_START_S = 120.0
_LEAVE_S = 30.0
# A suspect shares its process with nobody, but mostly waits, as it did on its lane: so many of them on each CPU.
_SUSPECTS_A_CPU = 4
_MAX_PAUSE_S = 2.0


class RayExecutor:
    """Lanes spread over the nodes of a cluster, kept for all jobs of one driver; and processes, on demand."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lanes = Lanes(self._lose, settings.lane_silence_s)
        self._packed: weakref.WeakKeyDictionary[BoundAgent, bytes] = weakref.WeakKeyDictionary()
        self._owns_connection = False
        self._lost_by: str | None = None
        self._running: set[asyncio.Task[Any]] = set()
        self._watching: asyncio.Task[None] | None = None
        # A daemon, so that a Ray that does not answer never holds up the end of this process; and kept until the end,
        # because the kernel kills what a thread has started (GCS, raylet) together with that thread.
        self._thread = DaemonThread("batchray-ray")
        self._link_thread = DaemonThread("batchray-links")

    async def start(self) -> None:
        """Connect and start the lanes.  Raises ClusterError."""
        try:
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(_CONNECT_S):
                self._owns_connection = await loop.run_in_executor(self._thread, connect, self._settings)
        except TimeoutError:
            raise ClusterError(f"no connection to a Ray cluster within {_CONNECT_S:g} s") from None
        self._watching = asyncio.ensure_future(self._watch(monitor_of_cluster()))
        try:
            await self._start_lanes(self._watching)
        except BaseException:
            await self.close()  # or the next one would take this connection for one to a living cluster
            raise

    async def _start_lanes(self, watching: asyncio.Task[None]) -> None:
        nodes = _nodes()
        n_cpus = int(sum(node.resources.get("CPU", 0) for node in nodes))
        n_lanes = self._settings.lanes or max(len(nodes), min(n_cpus, _MAX_LANES))
        places = itertools.islice(itertools.cycle(nodes), n_lanes)
        starting = asyncio.ensure_future(self._lanes.start([node.id for node in places]))
        try:
            await asyncio.wait((starting, watching), timeout=_START_S, return_when=asyncio.FIRST_COMPLETED)
            self._check_alive()
            if not starting.done():
                raise ClusterError(f"the lanes did not start within {_START_S:g} s")
            starting.result()
        except ray.exceptions.RayError as error:
            raise ClusterError(f"the lanes did not start: {first_line(error)}") from error
        finally:
            starting.cancel()

    async def _watch(self, pulse: ClusterMonitor) -> None:
        self._lose(await pulse.wait_until_lost())

    def _lose(self, reason: str) -> None:
        """Take note that the cluster is gone, and give up all that waits for it."""
        if self._lost_by is None:
            self._lost_by = reason
            logger.error("Ray is gone: %s", reason)
            for task in self._running:
                task.cancel()

    def check(self, agents: AgentSet) -> None:
        """Raise ConfigError where an agent asks for more CPUs or GPUs than any node has."""
        wanting = {agent_id: wanted for agent_id, bound in agents.agents.items() if (wanted := _resources(bound))}
        nodes = _nodes() if wanting else []  # it asks the GCS
        for agent_id, wanted in wanting.items():
            if not any(node.has(wanted) for node in nodes):
                asked = ", ".join(f"{amount:g} {name}" for name, amount in wanted.items() if amount)
                raise ConfigError(f"agent {agent_id!r} asks for {asked} a request; no node of the cluster has that")

    async def run(self, spec: AttemptSpec, keep: SaveCheckpoints) -> bytes:
        """Run one attempt on the least busy lane, or in a process where the agent or the order asks for it."""
        packed = self._packed.get(spec.agent)
        if packed is None:
            packed = self._packed[spec.agent] = pack(spec.agent)
        task = asyncio.current_task()
        assert task is not None
        n_cancels = task.cancelling()
        self._check_alive()
        self._running.add(task)
        try:
            return await self._placed(spec, packed, keep)
        except asyncio.CancelledError:
            if self._lost_by is not None and task.uncancel() <= n_cancels:
                self._check_alive()
            raise
        except ClusterError as error:
            self._lose(str(error))
            raise
        finally:
            self._running.discard(task)

    async def _placed(self, spec: AttemptSpec, packed: bytes, keep: SaveCheckpoints) -> bytes:
        """Run one attempt at its place; what Ray raises for it comes in our words."""
        try:
            if spec.is_isolated or spec.agent.agent.placement == "process":
                return await self._run_in_process(spec, packed, keep)
            return await self._run_on_lane(spec, packed, keep)
        except ray.exceptions.RayTaskError as error:  # not the agent's own failure, which is in the report
            cause = error.cause if isinstance(error.cause, Exception) else error
            raise RequestError("worker_error", f"{type(cause).__name__}: {first_line(cause)}") from error
        except ray.exceptions.RayError as error:  # as where a request finds no room on its way
            raise await _lost(spec, error) from error

    def _check_alive(self) -> None:
        if self._lost_by is not None:
            raise ClusterError(f"Ray is gone: {self._lost_by}")

    def is_alive(self) -> bool:
        """Whether the cluster was there when it was last needed, and the process is still connected to it."""
        return ray.is_initialized() and self._lost_by is None

    def control_channels(self, job_id: str) -> Sequence[ControlChannel]:
        """Return the job actor."""
        return (JobActorChannel(job_id, self._link_thread, self.is_alive),)

    async def close(self) -> None:
        """End the lanes, and the connection if it is ours.  What still runs on them ends too."""
        if self._watching is not None:
            self._watching.cancel()
        if self._lost_by is None and ray.is_initialized():  # or else a call would start another cluster, or hang
            await self._lanes.close()
        self._lanes.forget()
        if self._owns_connection:
            try:
                async with asyncio.timeout(_LEAVE_S):
                    await asyncio.get_running_loop().run_in_executor(self._thread, disconnect)
            except TimeoutError:
                logger.warning("Ray did not let go within %g s", _LEAVE_S)
        self._link_thread.shutdown(wait=False)
        self._thread.shutdown(wait=False)

    async def _run_on_lane(self, spec: AttemptSpec, packed: bytes, keep: SaveCheckpoints) -> bytes:
        lane = await self._lanes.least_busy()
        lane.in_flight += 1
        try:
            with lane.steps.following(spec.key, keep) if spec.agent.agent.keeps_steps else nullcontext():
                return await self._called(lane, spec, packed)
        except (ray.exceptions.RayTaskError, WorkerDiedError):  # it does not run any more
            raise
        except BaseException:
            if self._lost_by is None:
                lane.stop(spec.key)
            raise
        finally:
            lane.in_flight -= 1

    async def _called(self, lane: LaneHandle, spec: AttemptSpec, packed: bytes) -> bytes:
        """Call a lane for an attempt, and again where the call got lost: the lane knows the attempt by its key."""
        started, n_lost = time.monotonic(), 0
        while True:
            try:
                return await call_lane(lane.actor, spec, packed)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, WorkerDiedError):  # it has run, and nobody has its report
                    raise WorkerDiedError(error.cause.reason, False, time.monotonic() - started) from error
                raise
            except ray.exceptions.RayError as error:
                ran_s = time.monotonic() - started  # what is found out of a death takes its own time
                found = await self._lanes.post_mortem(lane, error)
                if found is not None:
                    is_suspect = (spec.job_id, spec.index) in found.suspects
                    reason = f"its lane died while it ran: {found.death}"
                    raise WorkerDiedError(reason, is_suspect, ran_s) from error
            n_lost += 1
            await asyncio.sleep(min(n_lost * PAUSE_S, _MAX_PAUSE_S))

    async def _run_in_process(self, spec: AttemptSpec, packed: bytes, keep: SaveCheckpoints) -> bytes:
        wanted = _resources(spec.agent) or {"CPU": 1 / _SUSPECTS_A_CPU}
        # Its name is what Ray's reports and a list of processes know it by.
        options = {"num_cpus": wanted["CPU"], "num_gpus": wanted.get("GPU", 0), "name": spec.key}
        options["enable_task_events"] = False
        began = AttemptClock()
        try:
            return await call_process(spec, packed, options, keep, began, self._settings.deadline_grace_s)
        except LostCallError as error:
            raise await _lost(spec, error, began.ago_s) from error
        except ray.exceptions.OutOfMemoryError as error:
            ran_s = began.ago_s
            death = (await self._lanes.exit_cause_of(spec.key, began.node_id) or UNKNOWN_CAUSE)._replace(
                cause=OUT_OF_MEMORY
            )
            is_suspect = is_oom_culprit(spec.key, death.n_bytes, str(error))
            raise WorkerDiedError(f"its process died while it ran: {death}", is_suspect, ran_s) from error
        except ray.exceptions.WorkerCrashedError as error:
            ran_s = began.ago_s
            found = await self._lanes.exit_cause_of(spec.key, began.node_id)
            if found is None:
                raise await _lost(spec, error, ran_s) from error
            raise WorkerDiedError(f"its process died while it ran: {found}", ran_s=ran_s) from error


async def _lost(spec: AttemptSpec, error: Exception, ran_s: float = 0.0) -> WorkerDiedError:
    """Return what is said of an attempt whose call got lost; after a while, longer for each earlier attempt.

    Or an item would have used up its attempts within a second in which Ray has no room for calls.
    """
    await asyncio.sleep(min(spec.attempt * PAUSE_S, _MAX_PAUSE_S))
    return WorkerDiedError(f"its call was lost: {first_line(error)}", is_suspect=False, ran_s=ran_s)


class _Node(NamedTuple):
    id: str
    resources: dict[str, float]

    def has(self, wanted: Mapping[str, float]) -> bool:
        return all(self.resources.get(name, 0) >= amount for name, amount in wanted.items())


def _nodes() -> list[_Node]:
    """Return the nodes that are alive."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return [_Node(node["NodeID"], node["Resources"]) for node in nodes if node["Alive"]]


def _resources(bound: BoundAgent) -> dict[str, float]:
    """Return what one request of the agent occupies; nothing on a lane."""
    agent = bound.agent
    if agent.placement == "lane":
        return {}
    return {"CPU": 1.0 if agent.num_cpus is None else agent.num_cpus, "GPU": agent.num_gpus or 0.0}

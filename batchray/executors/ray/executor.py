"""The executor on Ray: attempts on lanes, or each in a process of its own."""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import nullcontext

import ray
import ray.exceptions

from batchray.agents import SaveCheckpoints
from batchray.config import AgentSet, BoundAgent, Settings
from batchray.errors import ClusterError, ConfigError, RequestError, WorkerDiedError
from batchray.executors.base import AttemptSpec, ControlChannel
from batchray.executors.blocking import BlockingBoard
from batchray.executors.provider_board import ProviderBoard
from batchray.executors.ray import internals
from batchray.executors.ray.calls import AttemptClock, LostCallError, call_process, first_line
from batchray.executors.ray.connection import connect, disconnect
from batchray.executors.ray.exit_report import UNKNOWN_CAUSE
from batchray.executors.ray.job_actor import JobActorChannel, JobActorClient
from batchray.executors.ray.lane import pack
from batchray.executors.ray.lane_client import PAUSE_S, LaneClient
from batchray.executors.ray.lanes import Lanes, LaneSinks
from batchray.executors.ray.monitor import ClusterMonitor, monitor_of_cluster
from batchray.executors.ray.nodes import Node, read_nodes
from batchray.executors.ray.oom import OUT_OF_MEMORY, is_oom_culprit
from batchray.executors.ray.queued_processes import QueuedProcesses
from batchray.executors.ray.run_registry import Start
from batchray.executors.ray.worker_log import WorkerWarnings
from batchray.support.backoff import backoff_s
from batchray.support.cancellation import CancelScope
from batchray.support.threads import DaemonThread

logger = logging.getLogger(__name__)

_CONNECT_S = 60.0
_START_S = 120.0
_DISCONNECT_S = 30.0
# A suspect has a process of its own, but mostly waits, as it did on its lane.
_SUSPECTS_PER_CPU = 4
_MAX_PAUSE_S = 2.0


class RayExecutor:
    """Runs attempts on lanes, which are spread over the nodes and shared by all jobs of a driver, and in processes."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.providers, self.blocking = ProviderBoard(), BlockingBoard()
        self._nodes_thread = DaemonThread("batchray-nodes")
        self._job_actor = JobActorClient(self.is_alive, self.blocking)
        self._lanes = Lanes(
            self._lose,
            settings.lane_silence_s,
            LaneSinks(self._job_actor.name, self.providers, WorkerWarnings(time.monotonic)),
            self._read_nodes,
            settings.lanes,
        )
        self._packed: weakref.WeakKeyDictionary[BoundAgent, bytes] = weakref.WeakKeyDictionary()
        self._connecting: Future[bool] | None = None
        self._lost_by: str | None = None
        self._running: set[CancelScope] = set()
        self._queued = QueuedProcesses(self._read_nodes)
        self._monitoring: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        # A daemon, so that a Ray that does not answer never delays the end of this process.  It lives until the end,
        # because the kernel kills what a thread has started (GCS, raylet) together with that thread.
        self._thread = DaemonThread("batchray-ray")

    async def start(self) -> None:
        """Connect and start the lanes.  Raises ClusterError."""
        try:
            await self._connect()
            self._monitoring = asyncio.ensure_future(self._monitor(monitor_of_cluster()))
            await self._start_lanes(self._monitoring)
            self._watching = asyncio.ensure_future(self._queued.watch())
        except BaseException:
            await self.close()  # otherwise the next executor would take this connection for a live one
            raise

    async def _connect(self) -> None:
        self._connecting = self._thread.submit(connect, self._settings)
        try:
            async with asyncio.timeout(_CONNECT_S):
                await asyncio.wrap_future(self._connecting)
        except TimeoutError:
            raise ClusterError(f"no connection to a Ray cluster within {_CONNECT_S:g} s") from None

    async def _start_lanes(self, monitoring: asyncio.Task[None]) -> None:
        starting = asyncio.ensure_future(self._lanes.start())
        try:
            await asyncio.wait((starting, monitoring), timeout=_START_S, return_when=asyncio.FIRST_COMPLETED)
            if self._lost_by is not None:
                raise self._gone_error()
            if not starting.done():
                raise ClusterError(f"the lanes did not start within {_START_S:g} s")
            starting.result()
        except ray.exceptions.RayError as error:
            raise ClusterError(f"the lanes did not start: {first_line(error)}") from error
        finally:
            starting.cancel()

    async def _read_nodes(self) -> Sequence[Node]:
        return await asyncio.get_running_loop().run_in_executor(self._nodes_thread, read_nodes)

    async def _monitor(self, monitor: ClusterMonitor) -> None:
        self._lose(await monitor.wait_until_lost())

    def _lose(self, reason: str) -> None:
        """Mark the cluster as gone, and end all runs that wait for it with a ClusterError."""
        if self._lost_by is None:
            self._lost_by = reason
            logger.error("Ray is gone: %s", reason)
            for scope in self._running:
                scope.cancel_with(self._gone_error())

    def check(self, agents: AgentSet) -> None:
        """Raise ConfigError if an agent asks for more CPUs or GPUs than any node has, and no autoscaler may add one."""
        wanting = {agent_id: wanted for agent_id, bound in agents.agents.items() if (wanted := _resources(bound))}
        nodes = read_nodes() if wanting else []  # this asks the GCS
        for agent_id, wanted in wanting.items():
            if not any(node.has(wanted) for node in nodes):
                asked = ", ".join(f"{amount:g} {name}" for name, amount in wanted.items() if amount)
                if not internals.may_add_nodes():
                    raise ConfigError(f"agent {agent_id!r} asks for {asked} a request; no node of the cluster has that")
                logger.warning("agent %r asks for %s; its requests wait until the cluster adds a node", agent_id, asked)

    async def run(self, spec: AttemptSpec, save: SaveCheckpoints) -> bytes:
        """Run one attempt on the least busy lane, or in a process if its agent or the spec asks for one."""
        packed = self._packed.get(spec.agent)
        if packed is None:
            packed = self._packed[spec.agent] = pack(spec.agent)
        if self._lost_by is not None:
            raise self._gone_error()
        with CancelScope() as scope:
            self._running.add(scope)
            try:
                return await self._run_placed(spec, packed, save)
            except ClusterError as error:
                self._running.discard(scope)  # it has its error
                self._lose(str(error))
                raise
            finally:
                self._running.discard(scope)

    async def _run_placed(self, spec: AttemptSpec, packed: bytes, save: SaveCheckpoints) -> bytes:
        """Run one attempt on a lane or in a process; translate what Ray raises."""
        try:
            if spec.is_isolated or spec.agent.agent.placement == "process":
                return await self._run_in_process(spec, packed, save)
            return await self._run_on_lane(spec, packed, save)
        except ray.exceptions.RayTaskError as error:  # not the agent's own failure, which is in the report
            cause = error.cause if isinstance(error.cause, Exception) else error
            raise RequestError("worker_error", f"{type(cause).__name__}: {first_line(cause)}") from error
        except ray.exceptions.RayError as error:  # for example if Ray has no memory for the call
            raise await _lost_call(spec, error) from error

    def _gone_error(self) -> ClusterError:
        return ClusterError(f"Ray is gone: {self._lost_by}")

    def is_alive(self) -> bool:
        """Whether the process is connected to the cluster, and the last use of the cluster found it alive."""
        return ray.is_initialized() and self._lost_by is None

    @property
    def max_in_flight(self) -> int:
        """For how many requests the lanes have file descriptors."""
        return self._lanes.n_connections

    def control_channels(self, job_id: str) -> Sequence[ControlChannel]:
        """Return the channel to the job actor."""
        return (JobActorChannel(job_id, self._job_actor),)

    async def close(self) -> None:
        """End the lanes and what runs on them, and the connection if this executor opened it.

        A connection that is still being opened stays: the next executor takes it.
        """
        is_connecting = self._connecting is not None and not self._connecting.done()
        for task in (self._monitoring, self._watching):
            if task is not None:
                task.cancel()
        if self._lost_by is None and ray.is_initialized():  # otherwise a call would start another cluster, or hang
            await self._lanes.close()
        self._lanes.forget()
        if not is_connecting and _owns_connection(self._connecting):
            try:
                async with asyncio.timeout(_DISCONNECT_S):
                    await asyncio.get_running_loop().run_in_executor(self._thread, disconnect)
            except TimeoutError:
                logger.warning("Ray did not disconnect within %g s", _DISCONNECT_S)
        self._job_actor.close()
        self._nodes_thread.shutdown(wait=False)
        if not is_connecting:  # otherwise its cluster would end with it, unnoticed by this process
            self._thread.shutdown(wait=False)

    async def _run_on_lane(self, spec: AttemptSpec, packed: bytes, save: SaveCheckpoints) -> bytes:
        lane = await self._lanes.least_busy()
        provider = spec.agent.provider
        has_provider = provider is not None and provider.protocol != "offline"
        with lane.counting_call(), lane.providers.reading() if has_provider else nullcontext():
            try:
                with lane.checkpoints.following(spec.key, save) if spec.agent.agent.keeps_steps else nullcontext():
                    return await self._call_lane(lane, spec, packed)
            except (RequestError, WorkerDiedError):  # it does not run any more
                raise
            except BaseException:
                if self._lost_by is None:
                    lane.stop(spec.key)
                raise

    async def _call_lane(self, lane: LaneClient, spec: AttemptSpec, packed: bytes) -> bytes:
        """Run an attempt on a lane; call again if a call was lost, because the lane knows the attempt by its key."""
        start = Start(spec.key, packed, spec.encode(), spec.agent.agent.keeps_steps)
        started, n_lost = time.monotonic(), 0
        while True:
            try:
                return await lane.runs.run(start)
            except WorkerDiedError as error:  # it has run, and its report is lost
                raise WorkerDiedError(error.reason, False, time.monotonic() - started) from error
            except ray.exceptions.RayTaskError:  # a defect of the lane, which a second call would meet again
                raise
            except ray.exceptions.RayError as error:
                ran_s = time.monotonic() - started  # read it before the diagnosis, which takes time of its own
                found = await self._lanes.post_mortem(lane, error)
                if found is not None:
                    is_suspect = (spec.job_id, spec.index) in found.suspects
                    reason = f"its lane died while it ran: {found.cause}"
                    raise WorkerDiedError(reason, is_suspect, ran_s) from error
            await asyncio.sleep(backoff_s(n_lost, PAUSE_S, _MAX_PAUSE_S))
            n_lost += 1

    async def _run_in_process(self, spec: AttemptSpec, packed: bytes, save: SaveCheckpoints) -> bytes:
        wanted = _resources(spec.agent) or {"CPU": 1 / _SUSPECTS_PER_CPU}
        # Ray's reports and a list of processes show this name.
        options = {"num_cpus": wanted["CPU"], "num_gpus": wanted.get("GPU", 0), "name": spec.key}
        options["enable_task_events"] = False
        clock = AttemptClock()
        try:
            with self._queued.containing(clock, spec.agent.agent.id, wanted):
                return await call_process(spec, packed, options, save, clock, self.providers)
        except LostCallError as error:
            raise await _lost_call(spec, error, clock.ago_s) from error
        except ray.exceptions.OutOfMemoryError as error:
            ran_s = clock.ago_s
            cause = await self._lanes.exit_cause_of(spec.key, clock.node_id) or UNKNOWN_CAUSE
            is_suspect = is_oom_culprit(spec.key, cause.n_bytes, str(error))
            reason = f"its process died while it ran: {cause._replace(cause=OUT_OF_MEMORY)}"
            raise WorkerDiedError(reason, is_suspect, ran_s) from error
        except ray.exceptions.WorkerCrashedError as error:
            ran_s = clock.ago_s
            found = await self._lanes.exit_cause_of(spec.key, clock.node_id)
            if found is None:
                raise await _lost_call(spec, error, ran_s) from error
            raise WorkerDiedError(f"its process died while it ran: {found}", ran_s=ran_s) from error


def _owns_connection(connecting: Future[bool] | None) -> bool:
    """Return whether `connect` has opened a connection."""
    if connecting is None or connecting.cancelled() or connecting.exception() is not None:
        return False
    return connecting.result()


async def _lost_call(spec: AttemptSpec, error: Exception, ran_s: float = 0.0) -> WorkerDiedError:
    """Return the error of an attempt whose call was lost, after a pause that is longer for each earlier attempt.

    Without the pause an item could use up its attempts in one second in which Ray has no memory for calls.
    """
    await asyncio.sleep(backoff_s(spec.attempt - 1, PAUSE_S, _MAX_PAUSE_S))
    return WorkerDiedError(f"its call was lost: {first_line(error)}", is_suspect=False, ran_s=ran_s)


def _resources(bound: BoundAgent) -> dict[str, float]:
    """Return the resources that one request of the agent takes; none on a lane."""
    agent = bound.agent
    if agent.placement == "lane":
        return {}
    return {"CPU": 1.0 if agent.num_cpus is None else agent.num_cpus, "GPU": agent.num_gpus or 0.0}

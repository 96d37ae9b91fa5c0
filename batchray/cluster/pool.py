"""The executor on Ray: one remote call a request, on a lane or in a process of its own."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from batchray.agents import Keep
from batchray.cluster.calls import call_lane, call_process, first_line
from batchray.cluster.connect import connect, disconnect
from batchray.cluster.executor import Link, Order
from batchray.cluster.job_actor import JobLink
from batchray.cluster.lane import Lane, pack
from batchray.cluster.obituary import UNTOLD, Death
from batchray.cluster.pulse import Pulse, pulse_of_cluster
from batchray.cluster.step_reader import StepReader
from batchray.config import AgentSet, BoundAgent, Settings
from batchray.errors import ClusterError, ConfigError, RequestError, WorkerDiedError
from batchray.threads import DaemonThread

logger = logging.getLogger(__name__)

_MAX_LANES = 8
_MAX_CONCURRENCY = 100_000  # the window bounds what is in flight; a lane takes all that it is given
_CONNECT_S = 60.0
_START_S = 120.0
_RESTART_S = 60.0
_ANSWER_S = 5.0
_INQUEST_S = 15.0
_LEAVE_S = 30.0
_PAUSE_S = 0.2
_MAX_ASKED = 8
_PLACE_TRIES = 5
# Of several processes that were killed for want of memory, those of this share of the largest are suspects.
_OOM_SHARE = 0.5

_LaneActor = ray.remote(Lane)
_LANE_OPTIONS = {
    "num_cpus": 0,
    "max_restarts": -1,
    "max_task_retries": 0,  # a lost call is a counted attempt of the driver's, not a silent one of Ray's
    "max_concurrency": _MAX_CONCURRENCY,
    "enable_task_events": False,
}


class _PostMortem(NamedTuple):
    """What a lane died of, and which items it was executing then."""

    death: Death
    suspects: frozenset[tuple[str, int]] = frozenset()


@dataclass(eq=False)
class _LaneHandle:
    """A lane as its driver sees it.  `life` counts its processes; a call belongs to the life that it was made in."""

    actor: Any
    pid: int = 0
    in_flight: int = 0
    life: int = 0
    is_down: bool = False
    is_probed: bool = False
    post_mortems: dict[int, asyncio.Task[_PostMortem]] = field(default_factory=dict)
    steps: StepReader = field(init=False)

    def __post_init__(self) -> None:
        self.steps = StepReader(self.actor)


class RayExecutor:
    """Lanes spread over the nodes of a cluster, kept for all jobs of one driver; and processes, on demand."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lanes: list[_LaneHandle] = []
        self._packed: weakref.WeakKeyDictionary[BoundAgent, bytes] = weakref.WeakKeyDictionary()
        self._owns_connection = False
        self._lost_by: str | None = None
        self._running: set[asyncio.Task[Any]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._probes: set[asyncio.Task[None]] = set()
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
        self._watching = asyncio.ensure_future(self._watch(pulse_of_cluster()))
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
        starting = asyncio.gather(*(_start_lane(node.id) for node in places))
        try:
            await asyncio.wait((starting, watching), timeout=_START_S, return_when=asyncio.FIRST_COMPLETED)
            self._check_alive()
            if not starting.done():
                raise ClusterError(f"the lanes did not start within {_START_S:g} s")
            self._lanes = list(starting.result())
        except ray.exceptions.RayError as error:
            raise ClusterError(f"the lanes did not start: {first_line(error)}") from error
        finally:
            starting.cancel()

    async def _watch(self, pulse: Pulse) -> None:
        self._lose(await pulse.until_gone())

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

    async def run(self, order: Order, keep: Keep) -> bytes:
        """Run one attempt on the least busy lane, or in a process where the agent or the order asks for it."""
        packed = self._packed.get(order.agent)
        if packed is None:
            packed = self._packed[order.agent] = pack(order.agent)
        task = asyncio.current_task()
        assert task is not None
        n_cancels = task.cancelling()
        self._check_alive()
        self._running.add(task)
        try:
            if order.is_alone or order.agent.agent.placement == "process":
                return await self._run_in_process(order, packed, keep)
            return await self._run_on_lane(order, packed, keep)
        except asyncio.CancelledError:
            if self._lost_by is not None and task.uncancel() <= n_cancels:
                self._check_alive()
            raise
        except ClusterError as error:
            self._lose(str(error))
            raise
        except ray.exceptions.RayTaskError as error:  # not the agent's own failure, which is in the report
            cause = error.cause if isinstance(error.cause, Exception) else error
            raise RequestError("worker_error", f"{type(cause).__name__}: {first_line(cause)}") from error
        finally:
            self._running.discard(task)

    def _check_alive(self) -> None:
        if self._lost_by is not None:
            raise ClusterError(f"Ray is gone: {self._lost_by}")

    def is_alive(self) -> bool:
        """Whether the cluster was there when it was last needed, and the process is still connected to it."""
        return ray.is_initialized() and self._lost_by is None

    def links(self, job_id: str) -> Sequence[Link]:
        """Return the job actor."""
        return (JobLink(job_id, self._link_thread, self.is_alive),)

    async def close(self) -> None:
        """End the lanes, and the connection if it is ours.  What still runs on them ends too."""
        lanes, self._lanes = self._lanes, []
        for lane in lanes:
            lane.steps.close()
        if self._watching is not None:
            self._watching.cancel()
        if self._lost_by is None and ray.is_initialized():  # or else a call would start another cluster, or hang
            await _end_lanes(lanes)
        if self._owns_connection:
            try:
                async with asyncio.timeout(_LEAVE_S):
                    await asyncio.get_running_loop().run_in_executor(self._thread, disconnect)
            except TimeoutError:
                logger.warning("Ray did not let go within %g s", _LEAVE_S)
        self._link_thread.shutdown(wait=False)
        self._thread.shutdown(wait=False)

    async def _run_on_lane(self, order: Order, packed: bytes, keep: Keep) -> bytes:
        lane = min(self._lanes, key=lambda lane: (lane.is_down, lane.in_flight))
        life = lane.life
        lane.in_flight += 1
        try:
            return await call_lane(lane.actor, lane.steps, order, packed, keep)
        except ray.exceptions.RayActorError as error:
            found = await self._post_mortem(lane, life)
            is_suspect = (order.job_id, order.index) in found.suspects
            raise WorkerDiedError(f"its lane died while it ran: {found.death}", is_suspect) from error
        except asyncio.CancelledError:
            self._probe(lane)
            raise
        finally:
            lane.in_flight -= 1

    def _probe(self, lane: _LaneHandle) -> None:
        """Look whether a lane that has kept somebody waiting still answers; one that is blocked is started anew."""
        if not lane.is_down and not lane.is_probed and self._lost_by is None:
            lane.is_probed = True
            task = asyncio.ensure_future(self._restart_if_blocked(lane))
            self._probes.add(task)
            task.add_done_callback(self._probes.discard)

    async def _restart_if_blocked(self, lane: _LaneHandle) -> None:
        try:
            async with asyncio.timeout(_ANSWER_S):
                await lane.actor.last_words.remote()
        except TimeoutError:
            logger.warning("a lane (process %s) is blocked by code of a request and is started anew", lane.pid)
            ray.kill(lane.actor, no_restart=False)
        except ray.exceptions.RayError as error:  # it died by itself, which its calls will hear of
            logger.info("a lane did not answer: %s", error)
        finally:
            lane.is_probed = False

    async def _run_in_process(self, order: Order, packed: bytes, keep: Keep) -> bytes:
        wanted = _resources(order.agent)
        wanted_as_options = {"num_cpus": wanted.get("CPU", 1), "num_gpus": wanted.get("GPU", 0)}
        try:
            return await call_process(order, packed, {**wanted_as_options, "enable_task_events": False}, keep)
        except ray.exceptions.OutOfMemoryError as error:
            death = await self._death_of(order.key)
            is_suspect = death is UNTOLD or death.n_bytes >= _largest_killed(str(error)) * _OOM_SHARE
            cause = death._replace(cause="Ray's memory monitor killed it")
            raise WorkerDiedError(f"its process died while it ran: {cause}", is_suspect) from error
        except ray.exceptions.WorkerCrashedError as error:
            raise WorkerDiedError(f"its process died while it ran: {await self._death_of(order.key)}") from error

    async def _death_of(self, key: str) -> Death:
        """Ask the lanes what a process died of; one of them shares its node, but may be starting again itself."""
        asked = [asyncio.ensure_future(_answer(lane.actor.death_of, key)) for lane in self._lanes]
        try:
            for answer in asyncio.as_completed(asked, timeout=_INQUEST_S):
                try:
                    if (death := await answer) is not None:
                        return death  # type: ignore[no-any-return]
                except ray.exceptions.RayError as error:  # this lane will never know
                    logger.info("a lane cannot tell of a death: %s", first_line(error))
        except TimeoutError:
            logger.info("no lane could tell of a death in time")
        finally:
            for task in asked:
                task.cancel()
        return UNTOLD

    async def _post_mortem(self, lane: _LaneHandle, life: int) -> _PostMortem:
        """Return what one life of a lane died of; asked once for all calls that it took along."""
        if life == lane.life:
            lane.life += 1
            lane.post_mortems = {life: asyncio.ensure_future(self._ask_last_words(lane))}
        task = lane.post_mortems.get(life)
        return await asyncio.shield(task) if task else _PostMortem(UNTOLD)

    async def _ask_last_words(self, lane: _LaneHandle) -> _PostMortem:
        before = lane.pid
        lane.is_down = True
        try:
            async with asyncio.timeout(_RESTART_S):
                lane.pid, words, death = await _answer(lane.actor.last_words)
        except (TimeoutError, ray.exceptions.RayError) as error:
            raise ClusterError(f"a lane died and did not come back: {first_line(error)}") from error
        lane.is_down = False
        if lane.pid == before:
            logger.warning("the connection to a lane (process %s) broke; its requests are run again", before)
            return _PostMortem(Death("the connection to it broke"))
        logger.warning("a lane died (process %s); its requests are run again: %s", before, death)
        return _PostMortem(death, frozenset((job_id, index) for job_id, index in words))


def _largest_killed(report: str) -> float:
    """Return the bytes of the largest process that Ray's memory monitor killed at once; it takes small ones along."""
    held = re.findall(r"Selected to kill:.*?actual memory used=([0-9.]+)GB", report)
    return max(map(float, held), default=0.0) * 2**30


async def _start_lane(node_id: str) -> _LaneHandle:
    """Start a lane on a node and return it when it answers."""
    n_tries = 0
    while True:
        # Soft: elsewhere, should the node be lost.  Ray takes that for leave to start it elsewhere at once while the
        # news of a node has not reached all of the others; then it is started again.
        strategy = NodeAffinitySchedulingStrategy(node_id, soft=True)
        actor: Any = _LaneActor.options(**_LANE_OPTIONS, scheduling_strategy=strategy).remote()
        pid, *_ = await _answer(actor.last_words)
        n_tries += 1
        if n_tries == _PLACE_TRIES or await _answer(actor.node_id) == node_id:
            return _LaneHandle(actor, pid)
        ray.kill(actor)


async def _answer(method: Any, *args: Any) -> Any:
    """Call a lane's method until it answers: it may be starting, or the call may have been lost on the way.

    Now and then it is called once more beside, because Ray may take a second to tell that a call was lost.
    """
    asked: set[asyncio.Future[Any]] = set()
    try:
        while True:
            if len(asked) < _MAX_ASKED:
                asked.add(asyncio.ensure_future(method.remote(*args)))
            answered, asked = await asyncio.wait(asked, timeout=_PAUSE_S, return_when=asyncio.FIRST_COMPLETED)
            for each in answered:
                if not isinstance(each.exception(), ray.exceptions.ActorUnavailableError):
                    return each.result()
            if answered:
                await asyncio.sleep(_PAUSE_S)
    finally:
        for each in asked:
            each.cancel()


async def _end_lanes(lanes: Sequence[_LaneHandle]) -> None:
    try:
        async with asyncio.timeout(_ANSWER_S):
            await asyncio.gather(*(lane.actor.close.remote() for lane in lanes), return_exceptions=True)
    except TimeoutError:
        logger.warning("the lanes did not close in time and are killed")
    for lane in lanes:
        ray.kill(lane.actor)


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

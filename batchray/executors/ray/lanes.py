"""The lanes of one driver: which lane takes a call, why a dead one died, and its replacement.

A lane is one process.  Ray does not restart it, so the driver learns of its death at once, and from Ray itself whether
the memory monitor killed it; the monitor also prefers to spare actors that Ray does not restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from batchray.errors import ClusterError
from batchray.executors.provider_board import ProviderBoard
from batchray.executors.ray.answers import answer_of
from batchray.executors.ray.calls import first_line
from batchray.executors.ray.exit_report import UNKNOWN_CAUSE, ExitCause
from batchray.executors.ray.lane import Lane
from batchray.executors.ray.lane_client import (
    LANE_DEAD,
    PAUSE_S,
    REACH_S,
    LaneClient,
    PostMortem,
    call_until_answered,
)
from batchray.executors.ray.nodes import UNREADABLE, Node, places_for_lanes, staying
from batchray.executors.ray.oom import OUT_OF_MEMORY, is_oom_culprit
from batchray.executors.ray.worker_log import WorkerWarnings

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_CONCURRENCY = 100_000  # the window bounds what is in flight; a lane takes all calls
_DIAGNOSIS_S = 15.0
_CLOSE_S = 2.0
_CHECKS_IN_SILENCE = 4  # checks for silence in the time that a lane may be silent
_NODES_S = 3.0  # how often the nodes of the cluster are read
_READ_NODES_S = 5.0
_NODE_LEFT = ExitCause("its node has left the cluster, or is leaving it")

_LaneActor = ray.remote(Lane)
_LANE_OPTIONS = {
    "num_cpus": 0,
    "max_restarts": 0,  # the driver replaces it
    "max_task_retries": 0,  # the driver makes a lost call again, under the attempt's key
    "max_concurrency": _MAX_CONCURRENCY,
    "enable_task_events": False,
}


class LaneSinks(NamedTuple):
    """The receivers of what lanes report."""

    job_actor: str
    """The name of the driver's job actor."""
    board: ProviderBoard
    warnings: WorkerWarnings


class Lanes:
    """Lanes on the nodes of a cluster: replaced when they die, added when nodes join, moved before nodes leave.

    `on_lost` is called with the reason if no lane is left and none can start.  `read_nodes` returns the nodes that are
    alive; `n_lanes` is how many lanes there are together, by default as many as `places_for_lanes` says.
    """

    def __init__(
        self,
        on_lost: Callable[[str], None],
        silence_s: float,
        sinks: LaneSinks,
        read_nodes: Callable[[], Awaitable[Sequence[Node]]],
        n_lanes: int | None = None,
    ) -> None:
        self._on_lost, self._silence_s = on_lost, silence_s
        self._read_nodes, self._n_lanes = read_nodes, n_lanes
        self._sinks = sinks
        self._nodes: Sequence[Node] = ()
        # Lanes that have started or are starting, with the node that was chosen for each.
        self._slots: dict[asyncio.Task[LaneClient], str] = {}
        self._tasks: set[asyncio.Task[Any]] = set()  # diagnoses, checks for silence, and the one that follows the nodes
        self._changed = asyncio.Event()
        self._is_forgotten = False

    async def start(self) -> None:
        """Start the first lanes, and follow the nodes from then on.  Raises RayError."""
        self._nodes = await self._read_nodes()
        for node_id in places_for_lanes(self._nodes, (), self._n_lanes):
            self._slots[asyncio.ensure_future(_start_lane(node_id, self._sinks))] = node_id
        starting = tuple(self._slots)
        self._spawn(self._follow_nodes())
        for lane in await asyncio.gather(*starting, return_exceptions=True):
            if isinstance(lane, Exception):
                raise lane
            if isinstance(lane, LaneClient):  # otherwise its node has left meanwhile
                self._spawn(self._watch_for_silence(lane))

    async def least_busy(self) -> LaneClient:
        """Return the lane with the fewest calls in flight; wait until one is up."""
        while not (up := [lane for lane in self._started() if lane.is_open]):
            self._changed.clear()
            await self._changed.wait()
        return min(up, key=lambda lane: lane.in_flight)

    async def post_mortem(self, lane: LaneClient, error: Exception) -> PostMortem | None:
        """Diagnose a failed call: a PostMortem if the lane died, None if only the call was lost.

        All calls that failed together share one diagnosis.
        """
        while True:
            found = await asyncio.shield(lane.diagnose(lambda: self._spawn(self._diagnose(lane, error))))
            if found is not None or not isinstance(error, LANE_DEAD):
                return found  # otherwise it has died since it was found alive

    async def exit_cause_of(self, key: str, node_id: str | None) -> ExitCause | None:
        """Return why the process of this attempt died on this node; None if it never began or ended normally.

        If the process's report was lost on the way, Ray reports a death too.  A process that ended with its node has no
        cause of its own.
        """
        await self._update_nodes()
        if node_id is not None and self._is_leaving(node_id):
            return None
        cause, have_all_answered = await self._query_lanes("exit_cause_of", key)
        is_known = have_all_answered and (node_id is None or any(lane.node_id == node_id for lane in self._started()))
        return cause if cause is not None or is_known else UNKNOWN_CAUSE

    @property
    def n_connections(self) -> int:
        """For how many connections the lanes together have descriptors, if they share them equally."""
        started = self._started()
        return len(self._slots) * min((lane.n_connections for lane in started), default=1)

    async def close(self) -> None:
        """End the lanes, and what runs on them."""
        lanes = self._started()
        self.forget()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await asyncio.gather(*(answer_of(lane.actor.close.remote()) for lane in lanes), return_exceptions=True)
        except TimeoutError:
            logger.warning("the lanes did not close within %g s and are killed", _CLOSE_S)
        for lane in lanes:
            ray.kill(lane.actor)

    def forget(self) -> None:
        """Stop all work with the lanes of a cluster that is gone, and start none."""
        self._is_forgotten = True
        for lane in self._started():
            lane.forget()
        for task in (*self._slots, *self._tasks):
            task.cancel()
        self._slots = {}

    async def _follow_nodes(self) -> None:
        while True:
            await asyncio.sleep(_NODES_S)
            await self._update_nodes()

    async def _update_nodes(self) -> None:
        """Read the nodes, start lanes that are missing, and end those whose node leaves when their calls are over."""
        try:
            async with asyncio.timeout(_READ_NODES_S):
                self._nodes = await self._read_nodes() or self._nodes
        except UNREADABLE as error:
            logger.debug("the nodes of the cluster cannot be read: %s", first_line(error))
        if self._is_forgotten:
            return
        present = []
        for slot, node_id in list(self._slots.items()):
            lane = _lane_of(slot)
            present.append(lane.node_id if lane else node_id)
            if self._is_leaving(present[-1]):
                self._leave(slot, lane)
            elif lane is not None:  # its node stays after all, or no other is left
                lane.is_leaving = False
        self._changed.set()
        for node_id in places_for_lanes(self._nodes, present, self._n_lanes):
            logger.info("a lane starts on node %s", node_id)
            slot = asyncio.ensure_future(_restart_lane(node_id, self._sinks))
            self._slots[slot] = node_id
            slot.add_done_callback(self._on_started)

    def _is_leaving(self, node_id: str) -> bool:
        """Return whether a node is gone, or drained while others are not."""
        return all(node.id != node_id for node in staying(self._nodes))

    def _leave(self, slot: asyncio.Task[LaneClient], lane: LaneClient | None) -> None:
        """Give a lane no more calls, and end it if none is left."""
        if lane is None:
            slot.cancel()
            del self._slots[slot]
            return
        if not lane.is_leaving:
            logger.info("node %s leaves the cluster: its lane (process %s) takes no more calls", lane.node_id, lane.pid)
        lane.is_leaving = True
        if not lane.in_flight and not lane.is_down:
            del self._slots[slot]
            lane.forget()
            ray.kill(lane.actor)

    async def _watch_for_silence(self, lane: LaneClient) -> None:
        """Kill a lane that does not answer: code of one request may block all that share it until they are late."""
        while lane in self._started():
            await asyncio.sleep(self._silence_s / _CHECKS_IN_SILENCE)
            if lane.in_flight and not lane.is_down:
                await lane.kill_if_silent(self._silence_s)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _started(self) -> list[LaneClient]:
        """Return the lanes that have started."""
        return [lane for slot in self._slots if (lane := _lane_of(slot)) is not None]

    async def _diagnose(self, lane: LaneClient, error: Exception) -> PostMortem | None:
        death = error if isinstance(error, LANE_DEAD) else await _probe_lane(lane)
        if death is None:
            lane.mark_alive()
            self._changed.set()
            logger.info("a call to a lane (process %s) was lost and is made again", lane.pid)
            return None
        await self._replace(lane)
        if self._is_leaving(lane.node_id):
            logger.warning("a lane died (process %s); its requests are run again: %s", lane.pid, _NODE_LEFT)
            return PostMortem(_NODE_LEFT)
        record, _ = await self._query_lanes("read_crash_record", lane.actor_id)
        executing, cause = record or ([], UNKNOWN_CAUSE)
        found = PostMortem(cause, frozenset((job_id, index) for job_id, index in executing))
        if isinstance(death, ray.exceptions.OutOfMemoryError):
            is_culprit = is_oom_culprit(lane.actor_id, cause.n_bytes, str(death))
            suspects = found.suspects if is_culprit else frozenset()
            found = PostMortem(cause._replace(cause=OUT_OF_MEMORY), suspects)
        logger.warning("a lane died (process %s); its requests are run again: %s", lane.pid, found.cause)
        return found

    async def _replace(self, lane: LaneClient) -> None:
        """Start another lane in place of a dead one, on its node or, if that is leaving, on another."""
        lane.providers.close()
        for slot in list(self._slots):
            if _lane_of(slot) is lane:
                del self._slots[slot]
        await self._update_nodes()

    def _on_started(self, slot: asyncio.Task[LaneClient]) -> None:
        if slot.cancelled():
            return
        if (error := slot.exception()) is None:
            self._spawn(self._watch_for_silence(slot.result()))
        elif self._slots.pop(slot, None) is not None and not self._slots:
            self._on_lost(str(error))
        else:  # it is tried again when the nodes are read the next time
            logger.warning("%s", error)
        self._changed.set()

    async def _query_lanes(self, method: str, key: str) -> tuple[Any, bool]:
        """Ask the lanes about a death.  A lane of the same node knows, and may then delete the record.

        Returns the first answer that is not None, or None, and whether all lanes have answered.  Waits for lanes that
        are starting, but only if the others do not know.
        """
        have_all_answered = True
        queries = [asyncio.ensure_future(_query(slot, method, key)) for slot in self._slots]
        try:
            for query in asyncio.as_completed(queries, timeout=_DIAGNOSIS_S):
                try:
                    if (answer := await query) is not None:
                        return answer, True
                except (ClusterError, ray.exceptions.RayError) as error:  # this lane will never answer
                    logger.info("a lane cannot report a death on its node: %s", first_line(error))
                    have_all_answered = False
        except TimeoutError:
            logger.info("no lane reported the cause of a death within %g s", _DIAGNOSIS_S)
            have_all_answered = False
        finally:
            for task in queries:
                task.cancel()
        return None, have_all_answered


def _lane_of(slot: asyncio.Task[LaneClient]) -> LaneClient | None:
    """Return the lane that has started in a slot; None while it starts, or if it could not."""
    has_started = slot.done() and not slot.cancelled() and slot.exception() is None
    return slot.result() if has_started else None


async def _start_lane(node_id: str, sinks: LaneSinks) -> LaneClient:
    """Start a lane on this node, and return it when it answers."""
    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
    while True:
        actor: Any = _LaneActor.options(**_LANE_OPTIONS, scheduling_strategy=strategy).remote(sinks.job_actor)
        try:
            identity: tuple[str, str, int, int] = await call_until_answered(actor.identity)
            return LaneClient(actor, *identity, sinks.board, sinks.warnings)
        except ray.exceptions.ActorUnschedulableError:  # news of a new node has not reached all others
            await asyncio.sleep(PAUSE_S)


async def _restart_lane(node_id: str, sinks: LaneSinks) -> LaneClient:
    """Start a lane, again while it dies at once.  Raises ClusterError."""
    last_error: BaseException | None = None
    try:
        async with asyncio.timeout(REACH_S):
            while True:
                try:
                    return await _start_lane(node_id, sinks)
                except LANE_DEAD as error:  # like the one before it, while memory is short
                    last_error = error
                    await asyncio.sleep(PAUSE_S)
    except (TimeoutError, ray.exceptions.RayError) as error:
        raise ClusterError(f"a lane could not be started: {first_line(last_error or error)}") from error


async def _probe_lane(lane: LaneClient) -> Exception | None:
    """Return the error that reports a lane's death; None if only the connection to it broke."""
    try:
        async with asyncio.timeout(REACH_S):
            await call_until_answered(lane.actor.identity)
    except LANE_DEAD as error:
        return error
    except (TimeoutError, ray.exceptions.RayError) as error:
        ray.kill(lane.actor)  # dead or not, it does not answer
        return error
    return None


async def _query(slot: asyncio.Task[LaneClient], method: str, key: str) -> Any:
    lane = await asyncio.shield(slot)
    answer = await call_until_answered(getattr(lane.actor, method), key)
    if answer is not None:
        lane.actor.delete_records.remote(key)
    return answer

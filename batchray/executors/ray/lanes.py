"""The lanes of one driver: which lane takes a call, why a dead one died, and its replacement.

A lane is one process.  Ray does not restart it, so the driver learns of its death at once, and from Ray itself whether
the memory monitor killed it; the monitor also prefers to spare actors that Ray does not restart.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from batchray.errors import ClusterError
from batchray.executors.provider_board import ProviderBoard
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
from batchray.executors.ray.oom import OUT_OF_MEMORY, is_oom_culprit
from batchray.executors.ray.worker_log import WorkerWarnings

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_CONCURRENCY = 100_000  # the window bounds what is in flight; a lane takes all calls
_DIAGNOSIS_S = 15.0
_CLOSE_S = 2.0
_CHECKS_IN_SILENCE = 4  # checks for silence in the time that a lane may be silent
_MAX_START_TRIES = 8

_LaneActor = ray.remote(Lane)
_LANE_OPTIONS = {
    "num_cpus": 0,
    "max_restarts": 0,  # the driver replaces it
    "max_task_retries": 0,  # the driver makes a lost call again, under the attempt's key
    "max_concurrency": _MAX_CONCURRENCY,
    "enable_task_events": False,
}

_Sinks = tuple[ProviderBoard, WorkerWarnings]
"""The receivers of what lanes report."""


class Lanes:
    """Lanes that are replaced when they die.  `on_lost` is called with the reason if that fails."""

    def __init__(self, on_lost: Callable[[str], None], silence_s: float, board: ProviderBoard) -> None:
        self._on_lost, self._silence_s = on_lost, silence_s
        self._sinks: _Sinks = (board, WorkerWarnings(time.monotonic))
        self._slots: list[asyncio.Task[LaneClient]] = []  # in each a lane that has started or is starting
        self._tasks: set[asyncio.Task[Any]] = set()  # diagnoses, and checks for silence
        self._changed = asyncio.Event()

    async def start(self, node_ids: Sequence[str]) -> None:
        """Start a lane on each of these nodes.  Raises RayError."""
        starting = [_start_lane(node_id, _MAX_START_TRIES, self._sinks) for node_id in node_ids]
        self._slots = [asyncio.ensure_future(each) for each in starting]
        for lane in await asyncio.gather(*self._slots):
            self._spawn(self._watch_for_silence(lane))

    async def least_busy(self) -> LaneClient:
        """Return the lane with the fewest calls in flight; wait until one is up."""
        while not (up := [lane for lane in self._started() if not lane.is_down]):
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

        If the process's report was lost on the way, Ray reports a death too.
        """
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
                await asyncio.gather(*(lane.actor.close.remote() for lane in lanes), return_exceptions=True)
        except TimeoutError:
            logger.warning("the lanes did not close within %g s and are killed", _CLOSE_S)
        for lane in lanes:
            ray.kill(lane.actor)

    def forget(self) -> None:
        """Stop all work with the lanes of a cluster that is gone."""
        for lane in self._started():
            lane.forget()
        for task in (*self._slots, *self._tasks):
            task.cancel()
        self._slots = []

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
        return [slot.result() for slot in self._slots if slot.done() and not _has_failed(slot)]

    async def _diagnose(self, lane: LaneClient, error: Exception) -> PostMortem | None:
        death = error if isinstance(error, LANE_DEAD) else await _probe_lane(lane)
        if death is None:
            lane.mark_alive()
            self._changed.set()
            logger.info("a call to a lane (process %s) was lost and is made again", lane.pid)
            return None
        self._replace(lane)
        record, _ = await self._query_lanes("read_crash_record", lane.actor_id)
        executing, cause = record or ([], UNKNOWN_CAUSE)
        found = PostMortem(cause, frozenset((job_id, index) for job_id, index in executing))
        if isinstance(death, ray.exceptions.OutOfMemoryError):
            is_culprit = is_oom_culprit(lane.actor_id, cause.n_bytes, str(death))
            suspects = found.suspects if is_culprit else frozenset()
            found = PostMortem(cause._replace(cause=OUT_OF_MEMORY), suspects)
        logger.warning("a lane died (process %s); its requests are run again: %s", lane.pid, found.cause)
        return found

    def _replace(self, lane: LaneClient) -> None:
        """Start another lane in the slot of a dead one."""
        lane.providers.close()
        for n, slot in enumerate(self._slots):
            if slot.done() and not _has_failed(slot) and slot.result() is lane:
                self._slots[n] = asyncio.ensure_future(_restart_lane(lane.node_id, self._sinks))
                self._slots[n].add_done_callback(self._on_started)

    def _on_started(self, slot: asyncio.Task[LaneClient]) -> None:
        if slot.cancelled():
            return
        if (error := slot.exception()) is not None:
            self._on_lost(str(error))
        else:
            self._spawn(self._watch_for_silence(slot.result()))
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


def _has_failed(slot: asyncio.Task[LaneClient]) -> bool:
    return slot.cancelled() or slot.exception() is not None


async def _start_lane(node_id: str, max_tries: int, sinks: _Sinks) -> LaneClient:
    """Start a lane on a node and return it when it answers; after `max_tries`, wherever it has started."""
    n_tries = 0
    while True:
        # Soft: on another node if this one is lost.  Ray may then use another node at once, while news of a new node
        # has not reached all others; in that case it is started again.
        strategy = NodeAffinitySchedulingStrategy(node_id, soft=True)
        actor: Any = _LaneActor.options(**_LANE_OPTIONS, scheduling_strategy=strategy).remote()
        actor_id, its_node_id, pid, n_connections = await call_until_answered(actor.identity)
        lane = LaneClient(actor, actor_id, its_node_id, pid, n_connections, *sinks)
        n_tries += 1
        if n_tries == max_tries or lane.node_id == node_id:
            return lane
        ray.kill(actor)
        await asyncio.sleep(n_tries * PAUSE_S)


async def _restart_lane(node_id: str, sinks: _Sinks) -> LaneClient:
    """Start a lane in place of a dead one.  Raises ClusterError."""
    last_error: BaseException | None = None
    try:
        async with asyncio.timeout(REACH_S):
            while True:
                try:
                    return await _start_lane(node_id, max_tries=1, sinks=sinks)
                except LANE_DEAD as error:  # like the one before it, while memory is short
                    last_error = error
                    await asyncio.sleep(PAUSE_S)
    except (TimeoutError, ray.exceptions.RayError) as error:
        raise ClusterError(f"a lane died and could not be restarted: {first_line(last_error or error)}") from error


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

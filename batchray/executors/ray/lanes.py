"""The lanes of one driver: which of them takes a call, what one died of, and who takes its place.

A lane is one process, and is not restarted by Ray: then its driver hears of its death at once, and from Ray itself
whether the memory monitor did it, which spares what Ray would restart least of all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from batchray.errors import ClusterError
from batchray.executors.ray.calls import first_line
from batchray.executors.ray.exit_report import UNKNOWN_CAUSE, ExitCause
from batchray.executors.ray.lane import Lane
from batchray.executors.ray.lane_client import DEAD, PAUSE_S, REACH_S, LaneHandle, PostMortem, answer
from batchray.executors.ray.oom import OUT_OF_MEMORY, is_oom_culprit

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_CONCURRENCY = 100_000  # the window bounds what is in flight; a lane takes all that it is given
_INQUEST_S = 15.0
_CLOSE_S = 2.0
_LOOKS = 4  # so often in the time that a lane may stand still is looked at whether it does
_PLACE_TRIES = 8

_LaneActor = ray.remote(Lane)
_LANE_OPTIONS = {
    "num_cpus": 0,
    "max_restarts": 0,  # another one takes its place
    "max_task_retries": 0,  # a lost call is made again by its driver, under the attempt's key
    "max_concurrency": _MAX_CONCURRENCY,
    "enable_task_events": False,
}


class Lanes:
    """Lanes that are replaced where they die.  `on_lost` is told why where that cannot be done."""

    def __init__(self, on_lost: Callable[[str], None], silence_s: float) -> None:
        self._on_lost, self._silence_s = on_lost, silence_s
        self._places: list[asyncio.Task[LaneHandle]] = []  # the lane of each: it is there, or being started
        self._tasks: set[asyncio.Task[Any]] = set()  # inquests
        self._changed = asyncio.Event()

    async def start(self, node_ids: Sequence[str]) -> None:
        """Start a lane on each of these nodes.  Raises RayError."""
        self._places = [asyncio.ensure_future(_start_lane(node_id, _PLACE_TRIES)) for node_id in node_ids]
        for lane in await asyncio.gather(*self._places):
            self._begin(self._look_after(lane))

    async def least_busy(self) -> LaneHandle:
        """Return the lane with the fewest calls, as soon as one is up."""
        while not (up := [lane for lane in self._there() if not lane.is_down]):
            self._changed.clear()
            await self._changed.wait()
        return min(up, key=lambda lane: lane.in_flight)

    async def post_mortem(self, lane: LaneHandle, error: Exception) -> PostMortem | None:
        """Return what became of a lane one of whose calls ended so, or None where it lives, and only the call got lost.

        Asked once for all calls that it took along.
        """
        while True:
            if lane.diagnosis is None:
                lane.diagnosis = self._begin(self._diagnose(lane, error))
            found = await asyncio.shield(lane.diagnosis)
            if found is not None or not isinstance(error, DEAD):
                return found  # or it has died since, while others asked whether it lived

    async def exit_cause_of(self, key: str, node_id: str | None) -> ExitCause | None:
        """Return what a process of its own died of, on this node; None where it never began or had ended well.

        It is known by its key.  Where its answer got lost on the way, Ray tells of a death too.
        """
        told, is_known = await self._query_lanes("exit_cause_of", key)
        if told is None and node_id is not None:
            is_known = is_known and any(lane.node_id == node_id for lane in self._there())
        return told if told is not None or is_known else UNKNOWN_CAUSE

    async def close(self) -> None:
        """End the lanes, and what runs on them."""
        lanes = self._there()
        self.forget()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await asyncio.gather(*(lane.actor.close.remote() for lane in lanes), return_exceptions=True)
        except TimeoutError:
            logger.warning("the lanes did not close in time and are killed")
        for lane in lanes:
            ray.kill(lane.actor)

    def forget(self) -> None:
        """Stop all work on the lanes of a cluster that is gone."""
        for lane in self._there():
            lane.forget()
        for task in (*self._places, *self._tasks):
            task.cancel()
        self._places = []

    async def _look_after(self, lane: LaneHandle) -> None:
        """End a lane that stands still: one request's code may hold up all that share it, and make them late."""
        while lane in self._there():
            await asyncio.sleep(self._silence_s / _LOOKS)
            if lane.in_flight and not lane.is_down:
                await lane.end_if_silent(self._silence_s)

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _there(self) -> list[LaneHandle]:
        """Return the lanes that have started."""
        return [place.result() for place in self._places if place.done() and not _has_failed(place)]

    async def _diagnose(self, lane: LaneHandle, error: Exception) -> PostMortem | None:
        lane.is_down = True
        death = error if isinstance(error, DEAD) else await _probe_lane(lane)
        if death is None:
            lane.is_down, lane.diagnosis = False, None
            self._changed.set()
            logger.info("a call to a lane (process %s) got lost and is made again", lane.pid)
            return None
        self._replace(lane)
        words, _ = await self._query_lanes("read_crash_record", lane.actor_id)
        executing, told = words or ([], UNKNOWN_CAUSE)
        found = PostMortem(told, frozenset((job_id, index) for job_id, index in executing))
        if isinstance(death, ray.exceptions.OutOfMemoryError):
            is_cause = is_oom_culprit(lane.actor_id, told.n_bytes, str(death))
            found = PostMortem(told._replace(cause=OUT_OF_MEMORY), found.suspects if is_cause else frozenset())
        logger.warning("a lane died (process %s); its requests are run again: %s", lane.pid, found.death)
        return found

    def _replace(self, lane: LaneHandle) -> None:
        """Start another lane in the place of a dead one."""
        for n, place in enumerate(self._places):
            if place.done() and not _has_failed(place) and place.result() is lane:
                self._places[n] = asyncio.ensure_future(_start_again(lane.node_id))
                self._places[n].add_done_callback(self._has_started)

    def _has_started(self, place: asyncio.Task[LaneHandle]) -> None:
        if place.cancelled():
            return
        if (error := place.exception()) is not None:
            self._on_lost(str(error))
        else:
            self._begin(self._look_after(place.result()))
        self._changed.set()

    async def _query_lanes(self, method: str, key: str) -> tuple[Any, bool]:
        """Ask the lanes of a death: who shares its node knows, and may forget it then.

        None: nobody does; and with it, whether all of them have said so.  Lanes that are being started are waited for,
        but only where the others do not know.
        """
        have_all_answered = True
        asked = [asyncio.ensure_future(_ask(place, method, key)) for place in self._places]
        try:
            for asking in asyncio.as_completed(asked, timeout=_INQUEST_S):
                try:
                    if (told := await asking) is not None:
                        return told, True
                except (ClusterError, ray.exceptions.RayError) as error:  # this lane will never know
                    logger.info("a lane cannot tell of a death: %s", first_line(error))
                    have_all_answered = False
        except TimeoutError:
            logger.info("no lane could tell of a death in time")
            have_all_answered = False
        finally:
            for task in asked:
                task.cancel()
        return None, have_all_answered


def _has_failed(place: asyncio.Task[LaneHandle]) -> bool:
    return place.cancelled() or place.exception() is not None


async def _start_lane(node_id: str, max_tries: int) -> LaneHandle:
    """Start a lane on a node and return it when it answers; after so many tries, wherever it is."""
    n_tries = 0
    while True:
        # Soft: elsewhere, should the node be lost.  Ray takes that for leave to start it elsewhere at once while the
        # news of a node has not reached all of the others; then it is started again.
        strategy = NodeAffinitySchedulingStrategy(node_id, soft=True)
        actor: Any = _LaneActor.options(**_LANE_OPTIONS, scheduling_strategy=strategy).remote()
        lane = LaneHandle(actor, *await answer(actor.identity))
        n_tries += 1
        if n_tries == max_tries or lane.node_id == node_id:
            return lane
        ray.kill(actor)
        await asyncio.sleep(n_tries * PAUSE_S)


async def _start_again(node_id: str) -> LaneHandle:
    """Start a lane in the place of a dead one.  Raises ClusterError."""
    last_error: BaseException | None = None
    try:
        async with asyncio.timeout(REACH_S):
            while True:
                try:
                    return await _start_lane(node_id, max_tries=1)
                except DEAD as error:  # as its predecessor, while memory is short
                    last_error = error
                    await asyncio.sleep(PAUSE_S)
    except (TimeoutError, ray.exceptions.RayError) as error:
        raise ClusterError(f"a lane died and did not come back: {first_line(last_error or error)}") from error


async def _probe_lane(lane: LaneHandle) -> Exception | None:
    """Return the news of a lane's death, or None where only the connection to it broke."""
    try:
        async with asyncio.timeout(REACH_S):
            await answer(lane.actor.identity)
    except DEAD as error:
        return error
    except (TimeoutError, ray.exceptions.RayError) as error:
        ray.kill(lane.actor)  # whatever it is, it does not answer
        return error
    return None


async def _ask(place: asyncio.Task[LaneHandle], method: str, key: str) -> Any:
    lane = await asyncio.shield(place)
    told = await answer(getattr(lane.actor, method), key)
    if told is not None:
        lane.actor.discard_records.remote(key)
    return told

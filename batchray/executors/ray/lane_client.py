"""A lane as its driver sees it, from its start to its death."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any, NamedTuple

import ray
import ray.exceptions

from batchray.executors.ray.calls import first_line
from batchray.executors.ray.checkpoint_reader import CheckpointReader
from batchray.executors.ray.exit_report import ExitCause

logger = logging.getLogger(__name__)

REACH_S = 60.0
"""A lane that cannot be reached for so long is given up."""
PAUSE_S = 0.2
DEAD = (ray.exceptions.ActorDiedError, ray.exceptions.OutOfMemoryError)
"""What a call raises where its lane is dead for good."""
_MAX_ASKED = 8
# 5 s in which a call to a lane neither comes back nor breaks: the lane is there, and blocked.  Counted in looks, not by
# the clock, which would also count the time for which this driver itself stood still.
_MAX_SILENT_LOOKS = 25


class PostMortem(NamedTuple):
    """What a lane died of, and which items may have killed it: those whose own code it ran then."""

    death: ExitCause
    suspects: frozenset[tuple[str, int]] = frozenset()


class LaneHandle:
    """A lane: where it is, how much it has to do, and what is found where a call to it has failed (`diagnosis`)."""

    def __init__(self, actor: Any, actor_id: str, node_id: str, pid: int) -> None:
        self.actor, self.actor_id, self.node_id, self.pid = actor, actor_id, node_id, pid
        self.in_flight, self.is_down = 0, False
        self.diagnosis: asyncio.Task[PostMortem | None] | None = None
        self.steps = CheckpointReader(actor, self.stop)
        self._to_stop: list[str] = []
        self._stopping: asyncio.Task[None] | None = None

    def stop(self, key: str) -> None:
        """Stop an attempt for which nobody waits any more; a lane that is blocked, and does not hear of it, is ended.

        Not by Ray's own way, which needs a raylet that answers, and leaves out a call whose connection broke.
        """
        self._to_stop.append(key)
        if self._stopping is None or self._stopping.done():
            self._stopping = asyncio.ensure_future(self._stop())

    async def end_if_silent(self, silence_s: float) -> None:
        """Ask whether it is there, and end it where nothing is heard of it for so long, or it cannot be reached."""
        try:
            async with asyncio.timeout(silence_s + REACH_S):
                await answer(self.actor.identity, max_silent_looks=silence_s / PAUSE_S)
        except TimeoutError:
            self._end()
        except ray.exceptions.RayError as error:  # which its calls will hear of
            logger.info("a lane was asked whether it is there: %s", first_line(error))

    def _end(self) -> None:
        logger.warning(
            "a lane (process %s) does not answer, as where a request blocks it, and is started anew", self.pid
        )
        ray.kill(self.actor)

    def forget(self) -> None:
        """Ask it for nothing more."""
        self.steps.close()
        if self._stopping is not None:
            self._stopping.cancel()

    async def _stop(self) -> None:
        try:
            while self._to_stop:
                keys, self._to_stop = self._to_stop, []
                async with asyncio.timeout(REACH_S):
                    await self._say(keys)
        except TimeoutError:
            self._end()
        except DEAD as error:  # by itself, which its calls will hear of
            logger.info("a lane was to stop a run, and has died: %s", first_line(error))

    async def _say(self, keys: list[str]) -> None:
        """Say which runs are to be stopped until the lane has heard it."""
        while True:
            try:
                await answer(self.actor.stop, keys, max_silent_looks=_MAX_SILENT_LOOKS)
            except DEAD:
                raise
            except ray.exceptions.RayError as error:
                logger.info("a lane could not be told to stop a run, and is told again: %s", first_line(error))
                await asyncio.sleep(PAUSE_S)
            else:
                return


async def answer(method: Any, *args: Any, max_silent_looks: float = math.inf) -> Any:
    """Call a lane's method until it answers: it may be starting, or the call may have been lost on the way.

    Now and then it is called once more beside, because Ray may take a second to tell that a call was lost.
    Raises TimeoutError where so often in a row nothing came of any call: neither an answer, nor that it broke.
    """
    asked: set[asyncio.Future[Any]] = set()
    n_silent = 0
    try:
        while n_silent < max_silent_looks:
            if len(asked) < _MAX_ASKED:
                asked.add(asyncio.ensure_future(method.remote(*args)))
            answered, asked = await asyncio.wait(asked, timeout=PAUSE_S, return_when=asyncio.FIRST_COMPLETED)
            told = [each for each in answered if not isinstance(each.exception(), ray.exceptions.ActorUnavailableError)]
            if told:
                return told[0].result()
            n_silent = 0 if answered else n_silent + 1
            if answered:
                await asyncio.sleep(PAUSE_S)
        raise TimeoutError
    finally:
        for each in asked:
            each.cancel()

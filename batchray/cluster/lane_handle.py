"""A lane as its driver sees it, from its start to its death."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, NamedTuple

import ray
import ray.exceptions

from batchray.cluster.calls import first_line
from batchray.cluster.obituary import Death
from batchray.cluster.step_reader import StepReader

logger = logging.getLogger(__name__)

ANSWER_S = 5.0
"""A lane that does not answer for so long is blocked."""
PAUSE_S = 0.2
_MAX_ASKED = 8


class PostMortem(NamedTuple):
    """What a lane died of, and which items may have killed it: those whose own code it ran then."""

    death: Death
    suspects: frozenset[tuple[str, int]] = frozenset()


class LaneHandle:
    """A lane: where it is, how much it has to do, and what is found where a call to it has failed (`inquest`)."""

    def __init__(self, actor: Any, actor_id: str, node_id: str, pid: int) -> None:
        self.actor, self.actor_id, self.node_id, self.pid = actor, actor_id, node_id, pid
        self.in_flight, self.is_down = 0, False
        self.inquest: asyncio.Task[PostMortem | None] | None = None
        self.steps = StepReader(actor, self.stop)
        self._to_stop: list[str] = []
        self._stopping: asyncio.Task[None] | None = None

    def stop(self, key: str) -> None:
        """Stop an attempt for which nobody waits any more; a lane that does not hear of it is ended.

        Not by Ray's own way, which needs a raylet that answers, and leaves out a call whose connection broke.
        """
        self._to_stop.append(key)
        if self._stopping is None or self._stopping.done():
            self._stopping = asyncio.ensure_future(self._stop())

    def forget(self) -> None:
        """Ask it for nothing more."""
        self.steps.close()
        if self._stopping is not None:
            self._stopping.cancel()

    async def _stop(self) -> None:
        try:
            while self._to_stop:
                keys, self._to_stop = self._to_stop, []
                async with asyncio.timeout(ANSWER_S):
                    await answer(self.actor.stop, keys)
        except TimeoutError:
            logger.warning("a lane (process %s) is blocked by code of a request and is started anew", self.pid)
            ray.kill(self.actor)
        except ray.exceptions.RayError as error:  # it died by itself, which its calls will hear of
            logger.info("a lane did not answer: %s", first_line(error))


async def answer(method: Any, *args: Any) -> Any:
    """Call a lane's method until it answers: it may be starting, or the call may have been lost on the way.

    Now and then it is called once more beside, because Ray may take a second to tell that a call was lost.
    """
    asked: set[asyncio.Future[Any]] = set()
    try:
        while True:
            if len(asked) < _MAX_ASKED:
                asked.add(asyncio.ensure_future(method.remote(*args)))
            answered, asked = await asyncio.wait(asked, timeout=PAUSE_S, return_when=asyncio.FIRST_COMPLETED)
            told = [each for each in answered if not isinstance(each.exception(), ray.exceptions.ActorUnavailableError)]
            if told:
                return told[0].result()
            if answered:
                await asyncio.sleep(PAUSE_S)
    finally:
        for each in asked:
            each.cancel()

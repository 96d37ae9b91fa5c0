"""The driver's view of one lane: calls in flight, stops, checks for silence, and the diagnosis of a failed call."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import ray
import ray.exceptions

from batchray.executors.provider_board import ProviderBoard
from batchray.executors.ray.answers import answer_of
from batchray.executors.ray.calls import first_line
from batchray.executors.ray.checkpoint_reader import CheckpointReader
from batchray.executors.ray.exit_report import ExitCause
from batchray.executors.ray.lane_runs import LaneRuns
from batchray.executors.ray.provider_reader import ProviderReader
from batchray.executors.ray.worker_log import WorkerWarnings

logger = logging.getLogger(__name__)

REACH_S = 60.0
"""A lane that cannot be reached for this time is given up."""
PAUSE_S = 0.2
LANE_DEAD = (ray.exceptions.ActorDiedError, ray.exceptions.OutOfMemoryError)
"""The errors of a call whose lane is dead for good."""
_MAX_CALLS = 8
# 5 s in which a call to a lane neither returns nor fails: the lane is alive, and blocked.  Counted in polls and not by
# the clock, which would also count time for which this driver itself was stopped.
_MAX_SILENT_POLLS = 25


class PostMortem(NamedTuple):
    """Why a lane died, and which items may have killed it: those whose own code it was running."""

    cause: ExitCause
    suspects: frozenset[tuple[str, int]] = frozenset()


Diagnosis = asyncio.Task[PostMortem | None]


class LaneClient:
    """A lane on a node: how many calls it runs (`in_flight`), and whether it takes new ones (`is_open`).

    Only this class changes the first.  `n_connections` is for how many connections it has descriptors.
    """

    def __init__(
        self,
        actor: Any,
        actor_id: str,
        node_id: str,
        pid: int,
        n_connections: int,
        board: ProviderBoard,
        warnings: WorkerWarnings,
    ) -> None:
        self.actor, self.actor_id, self.node_id, self.pid = actor, actor_id, node_id, pid
        self.n_connections = n_connections
        self.in_flight = 0
        self.is_leaving = False
        """Whether it takes no more calls, because its node leaves the cluster."""
        self.runs = LaneRuns(actor)
        self.checkpoints = CheckpointReader(actor, self.stop)
        self.providers = ProviderReader(actor, board, warnings)
        self._diagnosis: Diagnosis | None = None
        self._to_stop: list[str] = []
        self._stopping: asyncio.Task[None] | None = None

    @property
    def is_down(self) -> bool:
        """Whether it takes no calls: a call to it failed, and it is dead, or being diagnosed."""
        return self._diagnosis is not None

    @property
    def is_open(self) -> bool:
        """Whether it takes new calls."""
        return self._diagnosis is None and not self.is_leaving

    @contextmanager
    def counting_call(self) -> Iterator[None]:
        """Count a call as in flight inside this block."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def diagnose(self, start: Callable[[], Diagnosis]) -> Diagnosis:
        """Return its diagnosis; `start` one if there is none.  It is down from then on."""
        if self._diagnosis is None:
            self._diagnosis = start()
        return self._diagnosis

    def mark_alive(self) -> None:
        """Take calls again: the diagnosis found it alive."""
        self._diagnosis = None

    def stop(self, key: str) -> None:
        """Stop an attempt for which nothing waits any more.  A lane that is blocked and does not answer is killed.

        Ray's own cancel is no use here: it needs a raylet that answers, and skips a call whose connection broke.
        """
        self._to_stop.append(key)
        if self._stopping is None or self._stopping.done():
            self._stopping = asyncio.ensure_future(self._stop_all())

    async def kill_if_silent(self, silence_s: float) -> None:
        """Ask whether it is alive; kill it if it does not answer for `silence_s` seconds, or cannot be reached."""
        try:
            async with asyncio.timeout(silence_s + REACH_S):
                await call_until_answered(self.actor.identity, max_silent_polls=silence_s / PAUSE_S)
        except TimeoutError:
            self._kill()
        except ray.exceptions.RayError as error:  # its calls raise it too
            logger.info("a lane (process %s) does not answer whether it is alive: %s", self.pid, first_line(error))

    def forget(self) -> None:
        """Make no more calls to it."""
        self.runs.close()
        self.checkpoints.close()
        self.providers.close()
        if self._stopping is not None:
            self._stopping.cancel()

    def _kill(self) -> None:
        logger.warning("a lane (process %s) does not answer, perhaps blocked by a request, and is restarted", self.pid)
        ray.kill(self.actor)

    async def _stop_all(self) -> None:
        try:
            while self._to_stop:
                keys, self._to_stop = self._to_stop, []
                async with asyncio.timeout(REACH_S):
                    await self._send_stop(keys)
        except TimeoutError:
            self._kill()
        except LANE_DEAD as error:  # its calls raise it too
            logger.info("a lane (process %s) died before it could stop a run: %s", self.pid, first_line(error))

    async def _send_stop(self, keys: list[str]) -> None:
        """Tell the lane which runs to stop, until it has answered."""
        while True:
            try:
                await call_until_answered(self.actor.stop, keys, max_silent_polls=_MAX_SILENT_POLLS)
            except LANE_DEAD:
                raise
            except ray.exceptions.RayError as error:
                logger.info("a stop of runs did not reach its lane, and is sent again: %s", first_line(error))
                await asyncio.sleep(PAUSE_S)
            else:
                return


async def call_until_answered(method: Any, *args: Any, max_silent_polls: float = math.inf) -> Any:
    """Call a lane's method until it answers: the lane may be starting, or the call may have been lost on the way.

    It is called once more at each poll, up to 8 times at once, because Ray may take a second to report a lost call.
    Raises TimeoutError if that many polls in a row bring neither an answer nor a failed call.
    """
    pending: set[asyncio.Future[Any]] = set()
    n_silent = 0
    try:
        while n_silent < max_silent_polls:
            if len(pending) < _MAX_CALLS:
                pending.add(answer_of(method.remote(*args)))
            done, pending = await asyncio.wait(pending, timeout=PAUSE_S, return_when=asyncio.FIRST_COMPLETED)
            final = [call for call in done if not isinstance(call.exception(), ray.exceptions.ActorUnavailableError)]
            if final:
                return final[0].result()
            n_silent = 0 if done else n_silent + 1
            if done:
                await asyncio.sleep(PAUSE_S)
        raise TimeoutError
    finally:
        for call in pending:
            call.cancel()

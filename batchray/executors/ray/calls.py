"""Calls that run one request: waited for, and their errors in our words."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import ray
import ray.exceptions

from batchray.agents import SaveCheckpoints
from batchray.errors import ClusterError
from batchray.executors.base import AttemptSpec
from batchray.executors.ray.lane import run_in_process
from batchray.support.timeouts import paused

# How long the import of an agent's code may take, in a process that starts: longer than any deadline of seconds.
_IMPORT_S = 300.0
# What a call raises where the cluster itself is gone.  A RaySystemError may be about one call alone.
_GONE = ray.exceptions.LocalRayletDiedError
# What a call raises that has come back, or whose process is dead.
_TOLD = (ray.exceptions.RayTaskError, ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError)


class LostCallError(Exception):
    """A call to a process got lost, and the process with it, for no fault of its request."""


class AttemptClock:
    """When an attempt began in its process, and on which node."""

    def __init__(self) -> None:
        self.node_id: str | None = None
        self._started: float | None = None

    def place(self, node_id: str) -> None:
        """Its process is there, on this node."""
        self.node_id = node_id

    def begin(self) -> None:
        """It begins now."""
        self._started = time.monotonic()

    @property
    def ago_s(self) -> float:
        """How long ago that was, in seconds; 0 before it has begun."""
        return 0.0 if self._started is None else time.monotonic() - self._started


async def call_lane(lane: Any, spec: AttemptSpec, packed: bytes) -> bytes:
    """Call for an attempt on a lane, an actor, and return its report; to call again for one is to ask for the same run.

    Raises RayError where the lane's process ended, or cannot be reached, or the call got lost.
    """
    method = lane.run_in_steps if spec.agent.agent.keeps_steps else lane.run
    try:
        return await method.remote(packed, spec.encode(), spec.key)  # type: ignore[no-any-return]
    except _GONE as error:
        raise ClusterError(f"Ray is gone: {first_line(error)}") from error


async def call_process(
    spec: AttemptSpec,
    packed: bytes,
    options: Mapping[str, Any],
    keep: SaveCheckpoints,
    began: AttemptClock,
    grace_s: float,
) -> bytes:
    """Run an attempt in a process of its own, with these options of Ray's, and return its report.

    `began` is told of its beginning.  Raises WorkerCrashedError or OutOfMemoryError where the process ended,
    LostCallError where the call got lost, and TimeoutError where it has not answered `grace_s` seconds after its
    deadline, which counts from then, or where its code could not be imported in time.
    """
    # With one result at a time on its way, the taking of the next one tells the process that the last one is kept.
    streaming = {**options, "num_returns": "streaming", "_generator_backpressure_num_objects": 1}
    results: Any = run_in_process.options(**streaming).remote(packed, spec.encode(), spec.key)
    try:
        began.place(await _next(results))  # it may have waited long for its CPUs
        async with asyncio.timeout(max(spec.left_s, _IMPORT_S) + grace_s):
            await _next(results)
        began.begin()
        async with asyncio.timeout(spec.left_s + grace_s) as limit:
            return await _followed(results, keep, limit)
    except (*_TOLD, ClusterError):
        raise
    except BaseException:  # whatever it is, nobody waits for the process any more
        ray.cancel(results, force=True)
        raise


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


async def _followed(results: Any, keep: SaveCheckpoints, limit: asyncio.Timeout) -> bytes:
    """Keep what a process has done as it comes, and return its report."""
    while True:
        fetched = await _next(results)
        if fetched is None:
            continue
        if fetched.report is not None:
            return fetched.report  # type: ignore[no-any-return]
        with paused(limit):  # the run may wait for it, and ends by its own clock
            await keep(fetched.checkpoints)


async def _next(results: Any) -> Any:
    """Take a process's next result."""
    try:
        return await (await anext(results))
    except _TOLD:
        raise
    except _GONE as error:
        raise ClusterError(f"Ray is gone: {first_line(error)}") from error
    except (ray.exceptions.RayError, StopAsyncIteration) as error:
        raise LostCallError(first_line(error)) from error

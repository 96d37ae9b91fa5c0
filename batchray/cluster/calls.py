"""Calls that run one request: waited for, and their errors in our words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import ray
import ray.exceptions

from batchray.agents import Keep
from batchray.cluster.executor import Order
from batchray.cluster.lane import run_in_process
from batchray.errors import ClusterError, WorkerDiedError

# What a call raises where the cluster itself is gone.
_GONE = (ray.exceptions.LocalRayletDiedError, ray.exceptions.RaySystemError)
# What a call raises that has come back, or whose process is dead.
_TOLD = (ray.exceptions.RayTaskError, ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError)


async def call_lane(lane: Any, order: Order, packed: bytes) -> bytes:
    """Call for an attempt on a lane, an actor, and return its report; to call again for one is to ask for the same run.

    Raises RayError where the lane's process ended, or cannot be reached, or the call got lost.
    """
    method = lane.run_in_steps if order.agent.agent.keeps_steps else lane.run
    try:
        return await method.remote(packed, order.encode(), order.key)  # type: ignore[no-any-return]
    except _GONE as error:
        raise ClusterError(f"Ray is gone: {first_line(error)}") from error


async def call_process(
    order: Order,
    packed: bytes,
    options: Mapping[str, Any],
    keep: Keep,
    *,
    grace_s: float,
    on_begin: Callable[[str], None],
) -> bytes:
    """Run an attempt in a process of its own, with these options of Ray's, and return its report.

    `on_begin` is called with the id of its node when the process has started.  Raises WorkerCrashedError or
    OutOfMemoryError where the process ended, WorkerDiedError where the call got lost, and TimeoutError where it has not
    answered `grace_s` seconds after its deadline, which counts from its start.
    """
    # With one result at a time on its way, the taking of the next one tells the process that the last one is kept.
    streaming = {**options, "num_returns": "streaming", "_generator_backpressure_num_objects": 1}
    results: Any = run_in_process.options(**streaming).remote(packed, order.encode(), order.key)
    try:
        on_begin(await _next(results))  # it may have waited long for its CPUs
        async with asyncio.timeout(order.left_s + grace_s):
            return await _followed(results, keep)
    except (*_TOLD, ClusterError):
        raise
    except BaseException:  # whatever it is, nobody waits for the process any more
        ray.cancel(results, force=True)
        raise


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


async def _followed(results: Any, keep: Keep) -> bytes:
    """Keep what a process has done as it comes, and return its report."""
    while True:
        fetched = await _next(results)
        if fetched is None:
            continue
        if fetched.report is not None:
            return fetched.report  # type: ignore[no-any-return]
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
        raise WorkerDiedError(f"its call was lost: {first_line(error)}", is_suspect=False) from error

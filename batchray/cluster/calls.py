"""Calls that run one request: waited for, cancelled with their wait, and their errors in our words."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

import ray
import ray.exceptions

from batchray.agents import Fetched, Keep
from batchray.cluster.executor import Order
from batchray.cluster.lane import run_in_process, step_in_process
from batchray.cluster.step_reader import StepReader
from batchray.errors import ClusterError, WorkerDiedError

T = TypeVar("T")


async def call_lane(lane: Any, steps: StepReader, order: Order, packed: bytes, keep: Keep) -> bytes:
    """Run an attempt on a lane, an actor, and return its report; `steps` reads what the lane's runs hand out.

    Raises RayActorError or OutOfMemoryError where the lane's process ended or cannot be reached, and WorkerDiedError
    where the call got lost.
    """
    if not order.agent.agent.keeps_steps:
        return await _result(ref := lane.run.remote(packed, order.encode()), ref, is_task=False)
    with steps.following(order.key, keep):
        ref = lane.run_in_steps.remote(packed, order.encode(), order.key)
        return await _result(ref, ref, is_task=False)


async def call_process(order: Order, packed: bytes, options: Mapping[str, Any], keep: Keep) -> bytes:
    """Run an attempt in a process of its own, with these options of Ray's, and return its report.

    Raises WorkerCrashedError or OutOfMemoryError where the process ended, and WorkerDiedError where the call got lost.
    """
    call = (packed, order.encode(), order.key)
    if not order.agent.agent.keeps_steps:
        return await _result(ref := run_in_process.options(**options).remote(*call), ref, is_task=True)
    # With one result at a time on its way, the taking of the next one tells the process that the last one is kept.
    streaming = {**options, "num_returns": "streaming", "_generator_backpressure_num_objects": 1}
    results: Any = step_in_process.options(**streaming).remote(*call)
    while True:
        fetched: Fetched | None = await _result(_next(results), results, is_task=True)
        if fetched is None:
            continue
        if fetched.report is not None:
            return fetched.report
        try:
            await keep(fetched.checkpoints)
        except BaseException:
            ray.cancel(results, force=True)
            raise


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


async def _next(results: Any) -> Any:
    return await (await anext(results))


async def _result(waiting: Awaitable[T], call: Any, *, is_task: bool) -> T:
    """Wait for a result of a call.  A cancelled wait cancels the call; errors of the cluster itself become ours."""
    try:
        return await waiting
    except asyncio.CancelledError:
        ray.cancel(call, force=is_task)
        raise
    except (ray.exceptions.RayTaskError, ray.exceptions.RayActorError):
        raise
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
        raise
    except (ray.exceptions.LocalRayletDiedError, ray.exceptions.RaySystemError) as error:
        raise ClusterError(f"Ray is gone: {first_line(error)}") from error
    except ray.exceptions.RayError as error:
        raise WorkerDiedError(f"its call was lost: {first_line(error)}", is_suspect=False) from error

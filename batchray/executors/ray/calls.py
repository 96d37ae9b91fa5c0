"""Remote calls that run one attempt in a process of its own: wait for them, and translate Ray's errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import ray
import ray.exceptions

from batchray.agents import SaveCheckpoints
from batchray.errors import ClusterError
from batchray.executors.base import AttemptSpec
from batchray.executors.provider_board import ProviderBoard
from batchray.executors.ray.answers import next_answer
from batchray.executors.ray.internals import one_result_at_a_time
from batchray.executors.ray.lane import run_in_process
from batchray.schema import ProviderWait
from batchray.support.timeouts import paused

# How long a new process may import an agent's code: longer than a deadline of seconds.
_IMPORT_S = 300.0
CLUSTER_GONE = ray.exceptions.LocalRayletDiedError
"""Raised by a call if the cluster itself is gone.  A RaySystemError may concern one call only."""
# Raised by a call that has returned, or whose process is dead.
_FINAL_ERRORS = (ray.exceptions.RayTaskError, ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError)


class LostCallError(Exception):
    """A call to a process was lost together with the process, which the request did not cause."""


class AttemptClock:
    """When an attempt began in its process, and on which node."""

    def __init__(self) -> None:
        self.node_id: str | None = None
        self._started: float | None = None

    def place(self, node_id: str) -> None:
        """Store the node on which the process has started."""
        self.node_id = node_id

    def begin(self) -> None:
        """Store that the attempt begins now."""
        self._started = time.monotonic()

    @property
    def ago_s(self) -> float:
        """How long ago the attempt began, in seconds; 0 before it has begun."""
        return 0.0 if self._started is None else time.monotonic() - self._started


async def call_process(
    spec: AttemptSpec,
    packed: bytes,
    options: Mapping[str, Any],
    save: SaveCheckpoints,
    clock: AttemptClock,
    board: ProviderBoard,
) -> bytes:
    """Run an attempt in a process of its own, with these options for the Ray task, and return its report.

    `clock` is set when the attempt begins, and its deadline counts from then.  Raises WorkerCrashedError or
    OutOfMemoryError if the process ended, LostCallError if the call was lost, and TimeoutError if it has not answered
    `spec.grace_s` seconds after its deadline, or if its code could not be imported in time.  Reports that it waits for
    a provider go to `board`; the deadline starts again with each of them, unless a client waits for the attempt.
    """
    # With one result at a time on its way, taking the next one tells the process that the last one is stored.
    results: Any = one_result_at_a_time(run_in_process, options).remote(packed, spec.encode(), spec.key)
    try:
        clock.place(await _next(results))  # it may have waited long for its CPUs
        async with asyncio.timeout(max(spec.left_s, _IMPORT_S) + spec.grace_s):
            await _next(results)
        clock.begin()
        async with asyncio.timeout(spec.left_s + spec.grace_s) as limit:
            on_wait = partial(board.report, results)
            return await _save_until_report(results, save, limit, on_wait, moves_limit=not spec.is_awaited)
    except (*_FINAL_ERRORS, ClusterError):
        raise
    except BaseException:  # whatever it is, nothing waits for the process any more
        ray.cancel(results, force=True)
        raise
    finally:
        board.forget(results)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text that is not blank."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


async def _save_until_report(
    results: Any,
    save: SaveCheckpoints,
    limit: asyncio.Timeout,
    on_wait: Callable[[Iterable[ProviderWait]], None],
    *,
    moves_limit: bool = True,
) -> bytes:
    """Save a process's checkpoints as they come, and return its report."""
    loop = asyncio.get_running_loop()
    limit_s = (limit.when() or 0.0) - loop.time()
    while True:
        fetched = await _next(results)
        if fetched is None:
            continue
        if isinstance(fetched, list):
            on_wait([ProviderWait(**each) for each in fetched])
            if moves_limit:
                limit.reschedule(loop.time() + limit_s)
            continue
        if fetched.report is not None:
            return fetched.report  # type: ignore[no-any-return]
        with paused(limit):  # the run may wait for this, and has a clock of its own
            await save(fetched.checkpoints)


async def _next(results: Any) -> Any:
    """Take a process's next result."""
    try:
        return await next_answer(results)
    except _FINAL_ERRORS:
        raise
    except CLUSTER_GONE as error:
        raise ClusterError(f"Ray is gone: {first_line(error)}") from error
    except (ray.exceptions.RayError, StopAsyncIteration) as error:
        raise LostCallError(first_line(error)) from error

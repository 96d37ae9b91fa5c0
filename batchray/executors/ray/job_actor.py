"""The job actor: a job's live state, for watching and steering it from any process of the cluster.

It holds no truth: its driver sends it a snapshot of fixed size a few times a second, so it can die and be replaced at
any time, and it never grows with the job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import ray
import ray.exceptions

from batchray.config import Settings
from batchray.errors import UnknownJobError
from batchray.executors.ray.connection import NAMESPACE, connect

_MAX_PENDING_CALLS = 1000
_ANSWER_S = 10.0


class JobActor:
    """A thin shell around the newest snapshot and the newest wishes."""

    def __init__(self) -> None:
        self._snapshot: dict[str, Any] = {}
        self._control: dict[str, Any] = {}

    def update(self, snapshot: dict[str, Any]) -> dict[str, Any]:
        """Take the driver's newest snapshot; return what was asked for so far."""
        self._snapshot = snapshot
        return self._control

    def snapshot(self) -> dict[str, Any]:
        """Return counts, in-flight items, timings and newest failures, as the driver last sent them."""
        return self._snapshot

    def pause(self) -> None:
        """Start no more items."""
        self._control["is_paused"] = True

    def resume(self) -> None:
        """Start items again."""
        self._control["is_paused"] = False

    def cancel(self) -> None:
        """End the job now."""
        self._control["is_canceled"] = True

    def resize(self, max_in_flight: int) -> None:
        """Set the window."""
        if max_in_flight < 1:
            raise ValueError(f"need max_in_flight >= 1, got {max_in_flight!r}")
        self._control["max_in_flight"] = max_in_flight


_Actor = ray.remote(JobActor)


def _name(job_id: str) -> str:
    return f"batchray-{job_id}"


class JobActorChannel:
    """The driver's end: starts the actor, feeds it, and starts it again when it is lost."""

    def __init__(self, job_id: str, thread: Executor, is_alive: Callable[[], bool]) -> None:
        self._job_id, self._thread, self._is_alive = job_id, thread, is_alive
        self._actor: Any = None
        self._has_answered = self._is_too_late = False

    async def update(self, snapshot: dict[str, Any]) -> dict[str, Any] | None:
        """Send a snapshot and return what was asked for.  A lost actor costs one update, never the job."""
        if self._is_too_late or not self._is_alive():
            return None
        try:
            async with asyncio.timeout(_ANSWER_S):
                if self._actor is None:  # on a thread: it waits for the GCS
                    await asyncio.get_running_loop().run_in_executor(self._thread, self._find_or_start)
                control: dict[str, Any] = await self._actor.update.remote(snapshot)
        except (ray.exceptions.RayError, TimeoutError):
            self._actor = None  # found or started again at the next update
            return None
        except asyncio.CancelledError:  # the job is over; what was to show it is not waited for
            self._is_too_late = not self._has_answered
            raise
        self._has_answered = True
        return control

    def close(self) -> None:
        """End the actor; on the thread that may be starting it at this moment."""
        self._thread.submit(self._end)

    def _find_or_start(self) -> None:
        self._actor = _Actor.options(
            name=_name(self._job_id),
            namespace=NAMESPACE,
            num_cpus=0,
            max_restarts=-1,
            max_pending_calls=_MAX_PENDING_CALLS,
            get_if_exists=True,
        ).remote()

    def _end(self) -> None:
        if self._actor is not None and self._is_alive():
            ray.kill(self._actor)


def find_job(job_id: str, ray_address: str | None = None) -> Any:
    """Return the handle of a running job's actor, from any process of its cluster.

    A process that is not connected yet joins the cluster at `ray_address`.  The methods are JobActor's, called with
    `.remote()`.  Raises UnknownJobError where no such job runs there, and ClusterError for a cluster that is not there.
    """
    if ray_address is not None:
        connect(Settings(ray_address=ray_address))
    try:
        return ray.get_actor(_name(job_id), namespace=NAMESPACE)
    except ValueError:
        raise UnknownJobError(job_id, "this cluster") from None

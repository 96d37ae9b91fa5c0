"""The job actor: the live state of a driver's jobs, readable and steerable from any process of the cluster.

It is only a copy: the driver of the jobs sends it a snapshot of bounded size of each, a few times a second.  So the
actor can die and be replaced at any time, and it does not grow with a job.  It forgets a job at its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable
from typing import Any

import ray
import ray.exceptions
from ray.util import list_named_actors

from batchray.agents import Blocked
from batchray.executors.base import own_pause
from batchray.executors.blocking import BlockingBoard
from batchray.executors.ray.answers import answer_of
from batchray.executors.ray.connection import NAMESPACE
from batchray.support.threads import DaemonThread

logger = logging.getLogger(__name__)

_NAMES = "batchray-jobs-"
_MAX_PENDING_CALLS = 10_000
_ANSWER_S = 10.0
_BLOCKING = "blocking"
# A lane repeats each second what blocks it; if it dies, what it said last is dropped.
_BLOCKING_S = 5.0


class _LiveJob:
    """The newest snapshot of a job, the newest control request, and which requests block a lane."""

    def __init__(self) -> None:
        self.snapshot: dict[str, Any] = {}
        self.control: dict[str, Any] = {}
        self.blocking: dict[str, tuple[float, Blocked]] = {}


class JobActor:
    """Holds the live state of all jobs of a driver.  A call about a job that it does not know raises KeyError."""

    def __init__(self) -> None:
        self._jobs: dict[str, _LiveJob] = {}

    def update(self, job_id: str, snapshot: dict[str, Any]) -> dict[str, Any]:
        """Store the driver's newest snapshot; return the control request so far, and what blocks lanes now."""
        job = self._jobs.setdefault(job_id, _LiveJob())
        job.control |= own_pause(job.snapshot.get("paused_because"), snapshot)
        job.snapshot = snapshot
        oldest = time.monotonic() - _BLOCKING_S
        blocking = [blocked for at, blocked in job.blocking.values() if at > oldest]
        return {**job.control, _BLOCKING: blocking} if blocking else job.control

    def remove(self, job_id: str) -> None:
        """Forget a job that has ended."""
        self._jobs.pop(job_id, None)

    def has(self, job_id: str) -> bool:
        """Whether the driver runs this job."""
        return job_id in self._jobs

    def set_blocking(self, job_id: str, lane: str, blocked: Blocked | None) -> None:
        """Store the request that blocks a lane; the lane repeats it while it is blocked."""
        if (job := self._jobs.get(job_id)) is None:
            return
        job.blocking.pop(lane, None)
        if blocked is not None:
            job.blocking[lane] = time.monotonic(), blocked

    def snapshot(self, job_id: str) -> dict[str, Any]:
        """Return counts, in-flight items, timings and newest failures, as the driver last sent them."""
        return self._jobs[job_id].snapshot

    def pause(self, job_id: str) -> None:
        """Start no more items."""
        self._jobs[job_id].control["is_paused"] = True

    def unpause(self, job_id: str) -> None:
        """Start items again."""
        self._jobs[job_id].control["is_paused"] = False

    def cancel(self, job_id: str) -> None:
        """End the job now."""
        self._jobs[job_id].control["is_canceled"] = True

    def resize(self, job_id: str, max_in_flight: int) -> None:
        """Set the window."""
        if max_in_flight < 1:
            raise ValueError(f"need max_in_flight >= 1, got {max_in_flight!r}")
        self._jobs[job_id].control["max_in_flight"] = max_in_flight


_Actor = ray.remote(JobActor)


def actor_names() -> list[str]:
    """Return the names of the job actors of all drivers on this cluster."""
    found = list_named_actors(all_namespaces=True)
    return [each["name"] for each in found if each["namespace"] == NAMESPACE and each["name"].startswith(_NAMES)]


class BlockingReports:
    """Tells the driver's job actor which request blocks this lane.  Its calls come from a thread of the lane."""

    def __init__(self, lane: str, actor_name: str) -> None:
        self._lane, self._actor_name, self._job_id = lane, actor_name, ""

    def report(self, blocked: Blocked | None) -> None:
        """Report that a request blocks the lane, or that the last one does not any more."""
        if blocked is not None:
            self._job_id = blocked.owner.job_id
        try:
            actor: Any = ray.get_actor(self._actor_name, namespace=NAMESPACE)
            actor.set_blocking.remote(self._job_id, self._lane, blocked)
        except (ValueError, ray.exceptions.RayError) as error:  # small jobs need no actor, and one may be lost
            logger.info("job %s cannot be told what blocks its lane: %s", self._job_id, error)


class JobActorClient:
    """The driver's side: starts the actor with the first job, and again if it is lost.

    Its thread is a daemon, because Ray may not answer.
    """

    def __init__(self, is_alive: Callable[[], bool], blocking: BlockingBoard) -> None:
        self.name = f"{_NAMES}{uuid.uuid4().hex}"
        self.is_alive, self.blocking = is_alive, blocking
        self._thread = DaemonThread("batchray-job-actor")
        self._actor: Any = None

    @property
    def is_open(self) -> bool:
        """Whether it takes updates: it is not closed, and the cluster is there."""
        return self._thread.is_open and self.is_alive()

    async def call_update(self, job_id: str, snapshot: dict[str, Any]) -> dict[str, Any] | None:
        """Send a job's snapshot and return its control request; None if the actor does not answer."""
        actor: Any = None
        try:
            async with asyncio.timeout(_ANSWER_S):
                actor = self._actor
                if actor is None:  # on a thread: it waits for the GCS
                    actor = await asyncio.get_running_loop().run_in_executor(self._thread, self._find_or_start)
                control: dict[str, Any] = await answer_of(actor.update.remote(job_id, snapshot))
                return control
        except (ray.exceptions.ActorUnavailableError, TimeoutError):
            return None  # it may be starting; Ray ends an actor without a handle, also for those that have found it
        except ray.exceptions.RayError:
            if self._actor is actor:
                self._actor = None  # found or started again at the next update
            return None

    def remove(self, job_id: str) -> None:
        """Remove a job from the actor, after all its updates so far.  A job may outlive the executor at a shutdown."""
        self._thread.submit_if_open(self._remove, job_id)

    def close(self) -> None:
        """End the actor, on the thread that may be starting it at this moment.  Has no effect a second time."""
        self._thread.submit_if_open(self._end)
        self._thread.shutdown(wait=False)

    def _find_or_start(self) -> Any:
        if self._actor is None:
            self._actor = _Actor.options(
                name=self.name,
                namespace=NAMESPACE,
                num_cpus=0,
                max_restarts=-1,
                max_pending_calls=_MAX_PENDING_CALLS,
                get_if_exists=True,
            ).remote()
        return self._actor

    def _remove(self, job_id: str) -> None:
        if self.is_alive() and (actor := self._found()) is not None:
            actor.remove.remote(job_id)

    def _end(self) -> None:
        # Also if the cluster counts as lost: if it is there, the actor would show its jobs as they were, for good.
        if ray.is_initialized() and (actor := self._found()) is not None:
            ray.kill(actor)

    def _found(self) -> Any:
        """Return the actor, also one whose last answer did not come; None if none was started."""
        if self._actor is None:
            with contextlib.suppress(ValueError):
                return ray.get_actor(self.name, namespace=NAMESPACE)
        return self._actor


class JobActorChannel:
    """The channel of one job to its driver's actor.  A lost actor costs one update, never the job."""

    def __init__(self, job_id: str, client: JobActorClient) -> None:
        self._job_id, self._client = job_id, client
        self._has_answered = self._is_too_late = False

    async def update(self, snapshot: dict[str, Any]) -> dict[str, Any] | None:
        """Send a snapshot and return the control request."""
        if self._is_too_late or not self._client.is_open:
            return None
        try:
            control = await self._client.call_update(self._job_id, snapshot)
        except asyncio.CancelledError:  # the job is over; do not wait for its display
            self._is_too_late = not self._has_answered
            raise
        if control is not None:
            self._has_answered = True
            self._client.blocking.put(self._job_id, control.pop(_BLOCKING, ()))
        return control

    def close(self) -> None:
        """Remove the job from the actor."""
        self._client.remove(self._job_id)

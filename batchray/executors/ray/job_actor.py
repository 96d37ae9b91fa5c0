"""The job actor: a job's live state, readable and steerable from any process of the cluster.

It is only a copy: the job's driver sends it a snapshot of bounded size a few times a second.  So the actor can die and
be replaced at any time, and it does not grow with the job.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

import ray
import ray.exceptions

from batchray.agents import Blocked
from batchray.config import Settings
from batchray.errors import ClusterError, ConfigError, UnknownJobError
from batchray.executors.base import own_pause
from batchray.executors.blocking import BlockingBoard
from batchray.executors.ray.connection import NAMESPACE, connect
from batchray.schema.progress import Progress

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_MAX_PENDING_CALLS = 1000
_ANSWER_S = 10.0
_BLOCKING = "blocking"
# A lane repeats each second what blocks it; if it dies, what it said last is dropped.
_BLOCKING_S = 5.0
_APPEAR_S, _LOOK_AGAIN_S = 10.0, 0.1


class JobActor:
    """Holds the newest snapshot, the newest control request, and which requests block a lane."""

    def __init__(self) -> None:
        self._snapshot: dict[str, Any] = {}
        self._control: dict[str, Any] = {}
        self._blocking: dict[str, tuple[float, Blocked]] = {}

    def update(self, snapshot: dict[str, Any]) -> dict[str, Any]:
        """Store the driver's newest snapshot; return the control request so far, and what blocks lanes now."""
        self._control |= own_pause(self._snapshot.get("paused_because"), snapshot)
        self._snapshot = snapshot
        oldest = time.monotonic() - _BLOCKING_S
        blocking = [blocked for at, blocked in self._blocking.values() if at > oldest]
        return {**self._control, _BLOCKING: blocking} if blocking else self._control

    def set_blocking(self, lane: str, blocked: Blocked | None) -> None:
        """Store the request that blocks a lane; the lane repeats it while it is blocked."""
        self._blocking.pop(lane, None)
        if blocked is not None:
            self._blocking[lane] = time.monotonic(), blocked

    def snapshot(self) -> dict[str, Any]:
        """Return counts, in-flight items, timings and newest failures, as the driver last sent them."""
        return self._snapshot

    def pause(self) -> None:
        """Start no more items."""
        self._control["is_paused"] = True

    def unpause(self) -> None:
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


class BlockingReports:
    """Tells the actors of jobs which of their requests blocks this lane.  Its calls come from a thread of the lane."""

    def __init__(self, lane: str) -> None:
        self._lane, self._job_id = lane, ""

    def report(self, blocked: Blocked | None) -> None:
        """Report that a request blocks the lane, or that the last one does not any more."""
        if blocked is not None:
            self._job_id = blocked.owner.job_id
        try:
            actor: Any = ray.get_actor(_name(self._job_id), namespace=NAMESPACE)
            actor.set_blocking.remote(self._lane, blocked)
        except (ValueError, ray.exceptions.RayError) as error:  # a small job has no actor, and one may be lost
            logger.info("job %s cannot be told what blocks its lane: %s", self._job_id, error)


class JobActorChannel:
    """The driver's side: starts the actor, sends it snapshots, and starts it again if it is lost."""

    def __init__(self, job_id: str, thread: Executor, is_alive: Callable[[], bool], blocking: BlockingBoard) -> None:
        self._job_id, self._thread, self._is_alive, self._blocking = job_id, thread, is_alive, blocking
        self._actor: Any = None
        self._has_answered = self._is_too_late = False

    async def update(self, snapshot: dict[str, Any]) -> dict[str, Any] | None:
        """Send a snapshot and return the control request.  A lost actor costs one update, never the job."""
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
        except asyncio.CancelledError:  # the job is over; do not wait for its display
            self._is_too_late = not self._has_answered
            raise
        self._has_answered = True
        self._blocking.put(self._job_id, control.pop(_BLOCKING, ()))
        return control

    def close(self) -> None:
        """End the actor, on the thread that may be starting it at this moment."""
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


class _ActorMethod(Generic[P, T]):
    """A method of `RemoteJob`.  Called, it waits for the actor's answer.

    `.remote()` returns Ray's object reference instead, which is how 0.1.0 called the actor itself.
    """

    def __init__(self, call: Callable[P, T], actor: Any) -> None:
        functools.update_wrapper(self, call)
        self._call, self._actor = call, actor

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._call(*args, **kwargs)

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Call the actor without waiting.  Deprecated: call the method itself."""
        name = self._call.__name__
        warnings.warn(f"find_job(...).{name}.remote() is deprecated; call .{name}()", DeprecationWarning, stacklevel=2)
        return getattr(self._actor, name).remote(*args, **kwargs)


class _actor_method(Generic[P, T]):
    """Decorator that makes a method of `RemoteJob` an `_ActorMethod`."""

    def __init__(self, function: Callable[Concatenate[RemoteJob, P], T]) -> None:
        self.__doc__ = function.__doc__
        self._function = function

    @overload
    def __get__(self, job: None, _: type[RemoteJob]) -> Self: ...
    @overload
    def __get__(self, job: RemoteJob, _: type[RemoteJob]) -> _ActorMethod[P, T]: ...
    def __get__(self, job: RemoteJob | None, _: type[RemoteJob]) -> Self | _ActorMethod[P, T]:
        if job is None:
            return self
        call = functools.partial(self._function, job)
        functools.update_wrapper(call, self._function)
        return _ActorMethod(call, job._actor)


class RemoteJob:
    """A running job, watched and steered from any process of its cluster.  `find_job` returns it.

    Each call waits for the job's actor, at most `timeout_s` seconds.  It raises UnknownJobError if the job has ended,
    and ClusterError if the actor does not answer in that time.
    """

    def __init__(self, job_id: str, actor: Any, timeout_s: float = _ANSWER_S) -> None:
        self.id, self._actor, self._timeout_s = job_id, actor, timeout_s

    def __repr__(self) -> str:
        return f"<RemoteJob {self.id}>"

    @_actor_method
    def snapshot(self) -> dict[str, Any]:
        """Return counts, in-flight items, timings and newest failures, as the driver last sent them.

        Empty until the driver has sent them for the first time.
        """
        snapshot: dict[str, Any] = self._ask("snapshot")
        return snapshot

    @property
    def progress(self) -> Progress:
        """Counts, tokens and timings so far."""
        progress = self._ask("snapshot").get("progress")
        return Progress.from_dict(progress) if progress else Progress()

    @_actor_method
    def pause(self) -> None:
        """Start no more items until `unpause`; items in flight continue."""
        self._ask("pause")

    @_actor_method
    def unpause(self) -> None:
        """Start items again."""
        self._ask("unpause")

    @_actor_method
    def cancel(self) -> None:
        """End the job: items in flight are stopped, and every item without an outcome is canceled."""
        self._ask("cancel")

    @_actor_method
    def resize(self, max_in_flight: int) -> None:
        """Set how many requests may be in flight at once."""
        if max_in_flight < 1:
            raise ConfigError(f"need max_in_flight >= 1, got {max_in_flight!r}")
        self._ask("resize", max_in_flight)

    @property
    def resume(self) -> _ActorMethod[[], None]:
        """The name of `unpause` in 0.1.0.  Deprecated."""
        warnings.warn("find_job(...).resume is deprecated; use .unpause", DeprecationWarning, stacklevel=2)
        return self.unpause

    def _ask(self, method: str, *args: Any) -> Any:
        try:
            return ray.get(getattr(self._actor, method).remote(*args), timeout=self._timeout_s)
        except ray.exceptions.GetTimeoutError:
            raise ClusterError(f"job {self.id}: its actor did not answer within {self._timeout_s:g} s") from None
        except ray.exceptions.ActorUnavailableError as error:
            raise ClusterError(f"job {self.id}: its actor cannot be reached now; try again: {error}") from error
        except ray.exceptions.RayActorError:
            raise UnknownJobError(self.id, "this cluster") from None


def find_job(
    job_id: str, ray_address: str | None = None, *, timeout_s: float = _ANSWER_S, wait_s: float = _APPEAR_S
) -> RemoteJob:
    """Return a running job's handle, from any process of its cluster.

    A process that is not connected yet joins the cluster at `ray_address`.  Calls of the handle wait at most
    `timeout_s` seconds.  Raises UnknownJobError if no such job runs there after `wait_s` seconds, because a job's actor
    starts a moment after the job, and ClusterError if the cluster cannot be reached.
    """
    if ray_address is not None:
        connect(Settings(ray_address=ray_address))
    end = time.monotonic() + wait_s
    while True:
        try:
            return RemoteJob(job_id, ray.get_actor(_name(job_id), namespace=NAMESPACE), timeout_s)
        except ValueError:
            if time.monotonic() >= end:
                raise UnknownJobError(job_id, "this cluster") from None
        time.sleep(_LOOK_AGAIN_S)

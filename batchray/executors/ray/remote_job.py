"""A job of another process of the cluster, read and steered through the job actor of its driver."""

from __future__ import annotations

import contextlib
import functools
import time
import warnings
from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

import ray
import ray.exceptions

from batchray.errors import ClusterError, ConfigError, UnknownJobError
from batchray.executors.ray.connection import NAMESPACE, connect_existing
from batchray.executors.ray.job_actor import actor_names
from batchray.schema.progress import Progress

P = ParamSpec("P")
T = TypeVar("T")

_ANSWER_S, _APPEAR_S, _LOOK_AGAIN_S = 10.0, 10.0, 0.1
# How long a look waits for answers; the last one waits for as long as any call.
_LOOK_S = 1.0
# After a restart the actor knows a job again when the driver has sent its next snapshot.
_KNOWN_AGAIN_S = 1.0


class _ActorMethod(Generic[P, T]):
    """A method of `RemoteJob`.  Called, it waits for the actor's answer.

    `.remote()` returns Ray's object reference instead, which is how 0.1.0 called the actor itself.
    """

    def __init__(self, call: Callable[P, T], job: RemoteJob) -> None:
        functools.update_wrapper(self, call)
        self._call, self._job = call, job

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._call(*args, **kwargs)

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Call the actor without waiting.  Deprecated: call the method itself."""
        name = self._call.__name__
        warnings.warn(f"find_job(...).{name}.remote() is deprecated; call .{name}()", DeprecationWarning, stacklevel=2)
        return getattr(self._job._actor, name).remote(self._job.id, *args, **kwargs)


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
        return _ActorMethod(call, job)


class RemoteJob:
    """A running job, watched and steered from any process of its cluster.  `find_job` returns it.

    Each call waits for the job actor, at most `timeout_s` seconds.  It raises UnknownJobError if the job has ended, and
    ClusterError if the actor does not answer in that time.
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
        call = getattr(self._actor, method)
        end = time.monotonic() + _KNOWN_AGAIN_S
        while True:
            try:
                return ray.get(call.remote(self.id, *args), timeout=self._timeout_s)
            except ray.exceptions.GetTimeoutError:
                reason = f"its job actor did not answer within {self._timeout_s:g} s"
                raise ClusterError(f"job {self.id}: {reason}") from None
            except ray.exceptions.ActorUnavailableError as error:
                raise ClusterError(f"job {self.id}: its actor cannot be reached now; try again: {error}") from error
            except ray.exceptions.RayActorError:
                raise UnknownJobError(self.id, "this cluster") from None
            except KeyError:  # Ray raises an error of the actor as its own class
                if time.monotonic() >= end:
                    raise UnknownJobError(self.id, "this cluster") from None
            time.sleep(_LOOK_AGAIN_S)


def find_job(
    job_id: str, ray_address: str | None = None, *, timeout_s: float = _ANSWER_S, wait_s: float = _APPEAR_S
) -> RemoteJob:
    """Return a running job's handle, from any process of its cluster.

    A process that is not connected yet joins the cluster at `ray_address` or RAY_ADDRESS; it never starts one.  Calls
    of the handle wait at most `timeout_s` seconds.  Raises UnknownJobError if no such job runs there after `wait_s`
    seconds, because a job is known there a moment after its start, and ClusterError if there is no cluster or it cannot
    be reached, or if a driver on it does not answer and no other runs the job.
    """
    connect_existing(ray_address, wait_s)
    end = time.monotonic() + wait_s
    while True:
        is_last = time.monotonic() >= end
        actor, n_silent = _look(job_id, timeout_s if is_last else min(timeout_s, _LOOK_S))
        if actor is not None:
            return RemoteJob(job_id, actor, timeout_s)
        if is_last and n_silent:
            reason = f"{n_silent} of this cluster's drivers did not answer within {timeout_s:g} s; no other runs it"
            raise ClusterError(f"job {job_id}: {reason}")
        if is_last:
            raise UnknownJobError(job_id, "this cluster")
        time.sleep(_LOOK_AGAIN_S)


def _look(job_id: str, timeout_s: float) -> tuple[Any, int]:
    """Return the actor of the driver that runs a job, or None, and how many actors have not answered by then.

    An actor that starts at this moment, of any driver, is one of those.
    """
    if not ray.is_initialized():  # any call would start another cluster
        raise ClusterError(f"job {job_id}: this process's connection to the cluster was closed")
    asked = {}
    for name in actor_names():
        with contextlib.suppress(ValueError):  # it has ended meanwhile
            actor: Any = ray.get_actor(name, namespace=NAMESPACE)
            asked[actor.has.remote(job_id)] = actor
    waiting, end = list(asked), time.monotonic() + timeout_s
    while waiting:
        done, waiting = ray.wait(waiting, timeout=max(0.0, end - time.monotonic()))
        if not done:
            break
        with contextlib.suppress(ray.exceptions.RayError):  # its driver has ended, or it starts again
            if ray.get(done[0]):
                return asked[done[0]], len(waiting)
    return None, len(waiting)

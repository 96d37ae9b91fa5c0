"""What all jobs of one process share: an event loop on a thread of its own, open stores, executors."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from batchray.config import AgentSet, Settings
from batchray.errors import ConfigError
from batchray.executors import ControlChannel, LocalExecutor, ManagedExecutor
from batchray.jobs.control import ControlFile, LeaseChannel
from batchray.jobs.deadlines import PausableDeadlines
from batchray.jobs.driver import run_job, start_job
from batchray.jobs.handle import Job
from batchray.jobs.running import RunningJob
from batchray.jobs.slots import KeyedSemaphore
from batchray.store import JobRecord, Store
from batchray.support.interpreter import tune_interpreter

T = TypeVar("T")


_DRAIN_POLL_S = 0.05
_STOP_S = 15.0


class Runtime:
    """What all jobs of this process share: one event loop on a thread of its own, open stores, executors."""

    def __init__(self) -> None:
        tune_interpreter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="batchray-driver", daemon=True)
        self._thread.start()
        self._lock = threading.RLock()
        self._stores: dict[tuple[Path, str | None], tuple[Store, int]] = {}
        self._executors: dict[tuple[Any, ...], asyncio.Task[ManagedExecutor]] = {}
        self._jobs: set[Job] = set()
        self._sharing: dict[RunningJob, None] = {}  # in the order of their start
        self._shared_window: int | None = None
        self._is_draining = False
        self._turns, self._deadlines = KeyedSemaphore(), PausableDeadlines()
        atexit.register(self.close)

    def share_window(self, size: int) -> None:
        """Let all jobs together have `size` requests in flight, each its equal share and at least one.

        A job that starts takes its share at once; the others come down to theirs as their requests finish.
        """
        self._shared_window = size

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the session's loop, and wait for it on another one."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the session's loop and wait for it; an interrupt of the wait cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def open_store(self, settings: Settings) -> Store:
        """Return the open store of these settings; it closes when its last user releases it."""
        key = (settings.data_dir.absolute(), settings.url)
        with self._lock:
            store, n_users = self._stores.get(key) or (_open(settings), 0)
            self._stores[key] = (store, n_users + 1)
            return store

    def release_store(self, store: Store) -> None:
        """Give a store back."""
        with self._lock:
            [key] = [key for key, (opened, _) in self._stores.items() if opened is store]
            _, n_users = self._stores.pop(key)
            if n_users > 1:
                self._stores[key] = (store, n_users - 1)
            else:
                store.close()

    def start(self, job_id: str, agents: AgentSet, store: Store, settings: Settings) -> Job:
        """Run a job in the background.  The store is released when it stops."""
        if job_id in {job.id for job in list(self._jobs)}:  # copied at once: the loop's thread changes it
            raise ConfigError(f"job {job_id} is running in this process already")
        job = Job(job_id, store.data_dir, self._loop, url=settings.url)
        ControlFile(store.data_dir, job_id).close()  # of an earlier run that was killed
        store.mark_running(job_id)
        self._jobs.add(job)
        job.runs_here(asyncio.run_coroutine_threadsafe(self._run(job, agents, store, settings), self._loop))
        return job

    async def _run(self, job: Job, agents: AgentSet, store: Store, settings: Settings) -> JobRecord:
        """Run a job to its end: on the executor of its settings, linked to those who watch and steer it."""
        control = ControlFile(store.data_dir, job.id)
        running: RunningJob | None = None
        try:
            executor = await self._executor(settings)
            executor.check(agents)
            running = await start_job(job.id, agents, store, settings, self._turns, self._deadlines)
            job.started(running)
            self._take_share(running)
            record = running.record
            if not record.is_ended:  # by whoever led it before; it may even be open again, and led elsewhere
                record = await run_job(running, store, executor, _channels_of(running, control, executor, store))
            control.forget()
            return record
        finally:
            if running is not None:
                self._give_share_back(running)
            store.unmark_running(job.id)
            self._jobs.discard(job)
            # On a thread of its own: closing waits for the writer's thread, and this loop must not.
            threading.Thread(target=self.release_store, args=(store,), name="batchray-release").start()

    def _take_share(self, running: RunningJob) -> None:
        if self._is_draining:
            running.window.pause()
        if running.record.kind == "batch":
            self._sharing[running] = None
            self._share()

    def _give_share_back(self, running: RunningJob) -> None:
        self._sharing.pop(running, None)
        self._share()

    def _share(self) -> None:
        if self._shared_window is not None:
            for running in self._sharing:
                running.window.resize(max(1, self._shared_window // len(self._sharing)))

    async def drain(self, grace_s: float) -> None:
        """Start no more items, and wait for those that run, for so long at most.  On the session's loop."""
        self._is_draining = True
        for running in self._sharing:
            running.window.pause()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while any(job.in_flight for job in list(self._jobs)):  # noqa: ASYNC110  # no one event says it of all
                    await asyncio.sleep(_DRAIN_POLL_S)

    def executor(self, settings: Settings) -> ManagedExecutor:
        """Return the executor of these settings, started on first use."""
        return self.wait(self._executor(settings))

    def is_ready(self, settings: Settings) -> bool:
        """Whether there is an executor of these settings that can run requests now."""
        task = self._executors.get(_executor_key(settings))
        return task is not None and _is_ready(task)

    async def ensure_executor(self, settings: Settings) -> ManagedExecutor:
        """Return the executor of these settings, started anew where it is gone; on any loop.  Raises ClusterError."""
        return await self.run(self._executor(settings))

    async def _executor(self, settings: Settings) -> ManagedExecutor:
        key = _executor_key(settings)
        task = self._executors.get(key)
        if task is None or (task.done() and not _is_ready(task)):
            task = self._executors[key] = asyncio.ensure_future(self._new_executor(settings, task))
        return await asyncio.shield(task)

    async def _new_executor(self, settings: Settings, gone: asyncio.Task[ManagedExecutor] | None) -> ManagedExecutor:
        if gone is not None and not gone.cancelled() and gone.exception() is None:
            await gone.result().close()  # or Ray would take its connection for one to a living cluster
        if settings.executor == "local":
            return LocalExecutor()
        from batchray.executors.ray.executor import RayExecutor

        executor = RayExecutor(settings)
        await executor.start()
        atexit.unregister(self.close)
        atexit.register(self.close)  # after Ray's own, so that it runs before it
        return executor

    def close(self, stop_s: float = _STOP_S) -> None:
        """Interrupt the jobs, then end executors, stores and the loop.  A second call does nothing.

        Jobs that do not stop within `stop_s` seconds are left as they are.
        """
        if self._loop.is_closed():
            return
        stopping = [future for job in list(self._jobs) if (future := job.interrupt()) is not None]
        concurrent.futures.wait(stopping, stop_s)
        self.wait(self._close_executors())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    async def _close_executors(self) -> None:
        """Close them, the newest first: the first one may own the connection to Ray that the others use."""
        while self._executors:
            _, task = self._executors.popitem()
            task.cancel()  # does nothing to one that is done
            [executor] = await asyncio.gather(task, return_exceptions=True)
            if not isinstance(executor, BaseException):
                await executor.close()


def _open(settings: Settings) -> Store:
    return Store.open(
        settings.data_dir.absolute(),
        settings.url,
        lease_s=settings.lease_s,
        allow_network_fs=settings.allow_network_fs,
    )


def _executor_key(settings: Settings) -> tuple[Any, ...]:
    return (settings.executor, settings.ray_address, settings.lanes, settings.num_cpus)


def _is_ready(task: asyncio.Task[ManagedExecutor]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None and task.result().is_alive()


def _channels_of(
    running: RunningJob, control: ControlFile, executor: ManagedExecutor, store: Store
) -> Sequence[ControlChannel]:
    """Return the ways in which a job is watched and steered; one request alone is over too soon for most."""
    leases = [LeaseChannel(store, running.record)] if store.is_shared else []
    if running.record.kind == "run":
        return leases
    is_watched = running.record.total >= running.settings.min_watched_items
    return [*leases, control, *(executor.control_channels(running.record.id) if is_watched else ())]

"""The resources that all jobs of one process share: an event loop, open stores, executors and limits."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from batchray.config import AgentSet, Settings
from batchray.errors import ConfigError, JobEndedError
from batchray.executors import ControlChannel, LocalExecutor, ManagedExecutor
from batchray.jobs.control import ControlFile, LeaseChannel
from batchray.jobs.deadlines import PausableDeadlines
from batchray.jobs.driver import run_job, start_job
from batchray.jobs.local_run import LocalRun
from batchray.jobs.running import RunningJob
from batchray.jobs.slots import Slots
from batchray.jobs.window_shares import WindowShares
from batchray.store import JobRecord, RetryingStore, Store
from batchray.support.descriptors import raise_descriptor_limit
from batchray.support.interpreter import tune_interpreter
from batchray.support.threads import LoopThread

logger = logging.getLogger(__name__)

T = TypeVar("T")


_DRAIN_POLL_S = 0.05
_STOP_S = 15.0
_CLOSE_LOOP_S = 10.0


class Runtime:
    """Runs all jobs of this process in the background, on one event loop."""

    def __init__(self) -> None:
        tune_interpreter()
        raise_descriptor_limit()  # before Ray starts, whose processes inherit it
        self._thread = LoopThread("batchray-driver")
        self._stores = _OpenStores()
        self._executors = _Executors(self._on_ray_started)
        self._runs: set[LocalRun] = set()
        self.keeps_paused_jobs = False
        """Whether a job that has paused itself stays here until it is unpaused, instead of stopping."""
        self._shares, self._slots, self._deadlines = WindowShares(), Slots(), PausableDeadlines()
        self._answered: set[str] = set()
        atexit.register(self.close)

    def share_window(self, size: int) -> None:
        """Give all jobs together `size` requests in flight, each its equal share and at least one.

        A job that starts gets its share at once; the others shrink to theirs as their requests finish.
        """
        self._shares.set_size(size)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the runtime's loop, and wait for it on another one."""
        return await asyncio.wrap_future(self._thread.submit(work))

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the runtime's loop and wait for it; an interrupt of the wait cancels it."""
        return self._thread.run(work)

    def open_store(self, settings: Settings) -> Store:
        """Return the open store of these settings; it closes when its last user releases it."""
        return self._stores.open(settings)

    def release_store(self, store: Store) -> None:
        """Give a store back."""
        self._stores.release(store)

    def start(self, job_id: str, agents: AgentSet, store: Store, settings: Settings) -> LocalRun:
        """Run a job in the background.  The store is released when it stops."""
        if job_id in {run.id for run in list(self._runs)}:  # a copy, because the loop's thread changes the set
            raise ConfigError(f"job {job_id} is running in this process already")
        run = LocalRun(job_id, self._thread.loop)
        ControlFile(store.data_dir, job_id).close()  # an earlier run that was killed has not closed it
        store.mark_running(job_id)
        self._runs.add(run)
        run.set_future(self._thread.submit(self._run(run, agents, store, settings)))
        return run

    async def _run(self, run: LocalRun, agents: AgentSet, store: Store, settings: Settings) -> JobRecord:
        """Run a job to its end, on the executor of its settings and with its control channels."""
        running: RunningJob | None = None
        try:
            executor = await self._executors.get(settings)
            executor.check(agents)
            started = await self._start_or_get(run.id, agents, store, fit_window(settings, executor))
            if isinstance(started, JobRecord):
                record = started
            else:
                running = started
                running.blocking = executor.blocking
                run.on_started(running)
                self._shares.add(running)
                record = await run_job(
                    running,
                    executor,
                    _channels_of(running, executor, store),
                    executor.providers,
                    stays_when_paused=self.keeps_paused_jobs,
                )
            ControlFile(store.data_dir, run.id).clear()
            return record
        finally:
            if running is not None:
                self._shares.remove(running)
            store.unmark_running(run.id)
            self._runs.discard(run)
            # On a thread of its own: closing waits for the writer's thread, which may wait for this loop.  If this was
            # cancelled the store may be stuck, and must not delay the end of the process.
            task = asyncio.current_task()
            is_cancelled = task is not None and task.cancelling() > 0
            threading.Thread(
                target=self.release_store, args=(store,), name="batchray-release", daemon=is_cancelled
            ).start()

    async def _start_or_get(
        self, job_id: str, agents: AgentSet, store: Store, settings: Settings
    ) -> RunningJob | JobRecord:
        """Start a job; return its record if its earlier leader has ended it."""
        while True:
            try:
                shared = (self._slots, self._deadlines, self._answered)
                return await start_job(job_id, agents, store, settings, *shared)
            except JobEndedError:
                record = await RetryingStore(store, f"job {job_id}").jobs.get(job_id)
                if record.is_ended:  # or it was reopened between the two reads, and can be started
                    return record

    async def drain(self, grace_s: float) -> None:
        """Start no more items, and wait up to `grace_s` seconds for those in flight.  Runs on the runtime's loop."""
        self._shares.pause()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while any(run.in_flight for run in list(self._runs)):  # noqa: ASYNC110  # there is no event for all jobs
                    await asyncio.sleep(_DRAIN_POLL_S)

    def executor(self, settings: Settings) -> ManagedExecutor:
        """Return the executor of these settings, started on first use."""
        return self.wait(self._executors.get(settings))

    def is_ready(self, settings: Settings) -> bool:
        """Whether there is an executor of these settings that can run requests now."""
        return self._executors.is_ready(settings)

    async def ensure_executor(self, settings: Settings) -> ManagedExecutor:
        """Return the executor of these settings, restarted if it is gone; on any loop.  Raises ClusterError."""
        return await self.run(self._executors.get(settings))

    def close(self, stop_s: float = _STOP_S) -> None:
        """Interrupt the jobs, then end executors, stores and the loop.  A second call does nothing.

        Jobs that have not stopped after `stop_s` seconds are cancelled with the loop.
        """
        if self._thread.has_ended:
            return
        stopping = [run.interrupt() for run in list(self._runs)]
        concurrent.futures.wait(stopping, stop_s)
        self.wait(self._executors.close())
        self._thread.close(_CLOSE_LOOP_S)

    def _on_ray_started(self) -> None:
        """Register `close` again, behind Ray's own exit handler, so that it runs before that."""
        atexit.unregister(self.close)
        atexit.register(self.close)


def fit_window(settings: Settings, executor: ManagedExecutor) -> Settings:
    """Return settings with a window for which the executor has file descriptors."""
    wanted, possible = settings.max_in_flight, executor.max_in_flight
    if wanted <= possible:
        return settings
    logger.warning(
        "max_in_flight is lowered from %d to %d: each request may open a connection, and a process may not open more "
        "files; raise the hard limit (`ulimit -Hn`, LimitNOFILE), or use more lanes",
        *(wanted, possible),
    )
    return settings.model_copy(update={"max_in_flight": possible})


class _OpenStores:
    """The open stores of a process, each with the number of its users.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._stores: dict[tuple[Path, str | None], tuple[Store, int]] = {}

    def open(self, settings: Settings) -> Store:
        key = (settings.data_dir.absolute(), settings.url)
        with self._lock:
            store, n_users = self._stores.get(key) or (_open(settings), 0)
            self._stores[key] = (store, n_users + 1)
            return store

    def release(self, store: Store) -> None:
        with self._lock:
            [key] = [key for key, (opened, _) in self._stores.items() if opened is store]
            _, n_users = self._stores.pop(key)
            if n_users > 1:
                self._stores[key] = (store, n_users - 1)
            else:
                store.close()


class _Executors:
    """The executors of a process, one for each combination of the settings that concern them."""

    def __init__(self, on_ray_started: Callable[[], None]) -> None:
        self._on_ray_started = on_ray_started
        self._executors: dict[tuple[Any, ...], asyncio.Task[ManagedExecutor]] = {}

    async def get(self, settings: Settings) -> ManagedExecutor:
        """Return the executor of these settings, started if there is none or the last one is gone."""
        key = _executor_key(settings)
        task = self._executors.get(key)
        if task is None or (task.done() and not _is_ready(task)):
            task = self._executors[key] = asyncio.ensure_future(self._start(settings, task))
        return await asyncio.shield(task)

    def is_ready(self, settings: Settings) -> bool:
        task = self._executors.get(_executor_key(settings))
        return task is not None and _is_ready(task)

    async def close(self) -> None:
        """Close them, the newest first: the first one may own the connection to Ray that the others use."""
        while self._executors:
            _, task = self._executors.popitem()
            task.cancel()  # does nothing if it is done
            [executor] = await asyncio.gather(task, return_exceptions=True)
            if not isinstance(executor, BaseException):
                await executor.close()

    async def _start(self, settings: Settings, gone: asyncio.Task[ManagedExecutor] | None) -> ManagedExecutor:
        if gone is not None and not gone.cancelled() and gone.exception() is None:
            await gone.result().close()  # or Ray would use its connection as one to a living cluster
        if settings.executor == "local":
            return LocalExecutor()
        from batchray.executors.ray.executor import RayExecutor

        executor = RayExecutor(settings)
        await executor.start()
        self._on_ray_started()
        return executor


def _open(settings: Settings) -> Store:
    store = Store.open(
        settings.data_dir.absolute(),
        settings.url,
        lease_s=settings.lease_s,
        allow_network_fs=settings.allow_network_fs,
    )
    store.purge_soon()
    return store


def _executor_key(settings: Settings) -> tuple[Any, ...]:
    return (settings.executor, settings.ray_address, settings.lanes, settings.num_cpus)


def _is_ready(task: asyncio.Task[ManagedExecutor]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None and task.result().is_alive()


def _channels_of(running: RunningJob, executor: ManagedExecutor, store: Store) -> Sequence[ControlChannel]:
    """Return the channels on which a job is watched and controlled; a single request has ended too soon for most."""
    record = running.record
    if record.is_single:
        return (LeaseChannel(store, record),) if store.is_shared else ()
    kept = LeaseChannel(store, record) if store.is_shared else ControlFile(store.data_dir, record.id)
    is_watched = record.total >= running.settings.min_watched_items
    return (kept, *(executor.control_channels(record.id) if is_watched else ()))

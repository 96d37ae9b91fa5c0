"""What the endpoint does: accept batches, run them side by side, go on after a restart, stop in good order."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from batchray.batch.parse import read_body
from batchray.config import Agent, AgentSet, BoundAgent, ServerSettings
from batchray.errors import (
    BatchrayError,
    ClusterError,
    ConfigError,
    JobInterruptedError,
    KeyInUseError,
    LeaseLostError,
    StoreError,
    StoreUnavailableError,
    UnknownAgentError,
)
from batchray.jobs.control import ControlRequest, reopen_job
from batchray.jobs.driver import cancel_idle_job, end_idle_job, expire_idle_job
from batchray.jobs.handle import Job
from batchray.jobs.retention import run_retention
from batchray.jobs.running import CANCELED
from batchray.jobs.runtime import Runtime
from batchray.schema import new_job_id
from batchray.server.errors import NO_RETRY, HttpError, unavailable
from batchray.server.upload import Body
from batchray.store import (
    AsyncStore,
    ItemPage,
    JobRecord,
    NewItem,
    NewJob,
    RetryingStore,
    Store,
    StoredResult,
    ThreadedStore,
    lock,
)

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

# Before a job whose driver failed, as where Ray is gone, is started again.
_RESTART_S = 2.0
# How often jobs that do not run are looked at, whether their deadline has passed.
_EXPIRY_S = 30.0
# How long a cancel waits for a store that cannot be written, before who asked for it is told.
_KEEP_S = 5.0


class Service:
    """The jobs of one server: which wait, which run, and how they come and go.  On the server's event loop."""

    def __init__(self, settings: ServerSettings, agents: AgentSet, session: Runtime) -> None:
        self.settings, self.agents, self.session = settings, agents, session
        self.store = AsyncStore(session.open_store(settings))
        self.reader = ThreadedStore(Store.open_for_reading(settings.data_dir, settings.url))
        # What is uploaded is spooled there, and a server empties that at its start.
        self._directory = lock(settings.data_dir) if self.store.is_shared else None
        self.is_draining = False
        self.on_end: Callable[[], None] = lambda: None
        self._waiting: deque[str] = deque()
        self._starting: dict[str, asyncio.Task[None]] = {}  # no longer waiting, and not yet running
        self._running: dict[str, Job] = {}
        self._single: set[str] = set()  # of those that run, the runs of one request
        self._giving_up: set[str] = set()  # single runs that nobody asks for any more, and that cannot be ended now
        self._restarting: set[str] = set()  # failed, and to be started again in a moment
        self._reopening: set[str] = set()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._keys_in_use: set[tuple[str, str]] = set()
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        session.share_window(settings.max_in_flight)

    # -- batches

    async def accept(self, user_id: str, body: Body, key: str | None) -> JobRecord:
        """Store a batch and start its job; on disk when this returns.

        With an idempotency key that the user has used, returns the job of then.  Raises BatchFormatError, and
        HttpError 422 for a key that came with another body, 503 while the server is stopping.
        """
        if self.is_draining:
            raise _stopping()
        with self._holding(user_id, key):
            if key is not None and (known := await self.reader.jobs.find_by_idempotency_key(user_id, key)) is not None:
                if known.body_digest != body.digest:
                    raise HttpError(422, "this Idempotency-Key came with another body before", NO_RETRY)
                return known
            job_id = new_job_id()
            new = NewJob(job_id, self.snapshot, user_id=user_id, idempotency_key=key, body_digest=body.digest)
            agent_ids = {*self.agents.agents, *await self.reader.agents.ids(user_id)}
            try:
                await self.store.call(self._create, new, body, agent_ids)
            except KeyInUseError:  # another server has accepted it in this moment
                raise unavailable(1, "a batch with this Idempotency-Key is being accepted") from None
        self._waiting.append(job_id)
        self._start_next()
        return await self.reader.jobs.get(job_id)

    async def cancel(self, record: JobRecord) -> None:
        """Cancel a job; one that has ended stays as it is.  Kept when this returns: a crash after it does not undo it.

        Raises StoreUnavailableError, and HttpError 503, where that cannot be kept; what runs is stopped all the same.
        """
        async with self._turn(record.id):
            if starting := self._starting.get(record.id):
                await asyncio.wait({starting})
            job = self._running.get(record.id)
            if job is not None and job.steer(ControlRequest(is_canceled=True)):
                await self._keep_cancel(record)
                return
            with self._not_waiting(record.id):
                await self.store.call_chunked(cancel_idle_job, self.store.sync, record.id)
        self.on_end()

    async def retry(self, record: JobRecord) -> None:
        """Run the items of an ended job again that did not succeed.  Raises HttpError 409 before its end."""
        if record.is_ended and (job := self._running.get(record.id)):  # the store knows a moment before we do
            with suppress(BatchrayError):
                await job.ended()
        if not record.is_ended or record.id in self._reopening or self._has(record.id):
            raise HttpError(409, f"job {record.id} has not ended yet", NO_RETRY)
        if record.counts["succeeded"] < record.total:
            self._reopening.add(record.id)
            try:
                await self.store.call(reopen_job, self.store.sync, record.id)
            finally:
                self._reopening.discard(record.id)
            self._waiting.append(record.id)
            self._start_next()

    async def ask(self, user_id: str, agent_id: str, request: bytes) -> tuple[JobRecord, StoredResult]:
        """Run one request to one agent at once, and return its job with the result; otherwise as `start_run`."""
        return await self.result_of(await self.start_run(user_id, agent_id, request))

    async def start_run(self, user_id: str, agent_id: str, request: bytes) -> Job:
        """Start to run one request to one agent at once.

        Raises UnknownAgentError, and HttpError 503 while the server is stopping.
        """
        if self.is_draining:
            raise _stopping()
        await self.read(self.agent, user_id, agent_id)
        try:
            await self.session.ensure_executor(
                self.settings
            )  # first: a job that waited for it would be taken for left alone
        except ClusterError as error:
            raise unavailable(5, f"nothing can be run now: {error}") from None
        new = NewJob(new_job_id(), self.snapshot, kind="run", user_id=user_id, agent_id=agent_id)
        await self.store.jobs.create(new, [NewItem(agent_id, None, request)])
        self._single.add(new.id)
        try:
            return await self._launch(new.id)
        except BaseException:
            self._single.discard(new.id)
            raise

    async def result_of(self, job: Job) -> tuple[JobRecord, StoredResult]:
        """Wait for the end of a run, and return its job with the result.  A cancelled wait cancels the run."""
        try:
            record = await job.ended()
        except asyncio.CancelledError:  # the client has gone
            job.steer(ControlRequest(is_canceled=True))
            raise
        except BatchrayError as error:
            with suppress(StoreError):  # or it would be run again, for nobody
                async with self._turn(job.id):
                    await self.store.call_chunked(cancel_idle_job, self.store.sync, job.id)
            raise unavailable(5, f"the request could not be run: {error}") from None
        result = await self.reader.items.result(record, 0)
        if result is None:
            raise HttpError(500, "the request ended without a result", NO_RETRY)
        return record, result

    # -- agents

    def agent(self, user_id: str, agent_id: str) -> BoundAgent:
        """Return an agent that a user may ask.  Raises UnknownAgentError."""
        if agent_id in self.agents.agents:
            return self.agents.agents[agent_id]
        stored = self.reader.sync.agents.find(agent_id, user_id)
        if stored is None:
            raise UnknownAgentError(f"Agent with ID {agent_id} not found")
        return self.agents.bind(Agent.model_validate(stored.spec["agent"]))

    def snapshot(self, agent_ids: Set[str]) -> dict[str, Any]:
        """Return the settings of these agents, for a job to keep."""
        made = {
            agent_id: self.reader.sync.agents.find_of_any_user(agent_id)
            for agent_id in agent_ids - self.agents.agents.keys()
        }
        bound = {
            agent_id: self.agents.bind(Agent.model_validate(stored.spec["agent"]))
            for agent_id, stored in made.items()
            if stored is not None  # or deleted, a moment ago
        }
        known = replace(self.agents, agents={**self.agents.agents, **bound})
        if missing := agent_ids - known.agents.keys():
            raise UnknownAgentError(f"Agent with ID {min(missing)} not found")
        return known.snapshot(agent_ids)

    # -- the server's life

    async def start(self) -> None:
        """Go on with the jobs that an earlier server left unfinished, and that no other one leads."""
        await self._adopt()
        self._spawn(self._expire_waiting())
        if self.store.is_shared:
            self._spawn(self._adopt_orphans())
        if self.settings.retention_days is not None:
            self._spawn(run_retention(self.store, self.settings.retention_days))

    async def stop(self) -> None:
        """Start nothing more, let running items finish within the grace period, leave the rest for the next start."""
        self.is_draining = True
        self._waiting.clear()
        await self.session.run(self.session.drain(self.settings.shutdown_grace_s))

    def close(self) -> None:
        """Let go of the store; the session ends the jobs."""
        for task in self._tasks:
            task.cancel()
        self.reader.sync.close()
        self.session.release_store(self.store.sync)
        if self._directory is not None:
            os.close(self._directory)

    def in_flight(self) -> int:
        """Return how many requests are in flight."""
        return sum(job.in_flight for job in self._running.values())

    async def is_over(self, job_id: str) -> bool:
        """Tell whether nothing more will come of a job as long as this server runs."""
        if self.store.is_shared and not self.is_draining:  # it may be led elsewhere
            return (await self.reader.jobs.get(job_id)).is_ended
        return self.is_draining or not (self._has(job_id) or job_id in self._restarting)

    async def read(self, query: Callable[P, T], /, *args: P.args, **options: P.kwargs) -> T:
        """Run a query on a thread, so that no other client waits for it."""
        return await asyncio.to_thread(query, *args, **options)

    # -- inside

    async def _keep_cancel(self, record: JobRecord) -> None:
        patience = RetryingStore(self.store.sync, f"the cancel of job {record.id}")
        limit = self._loop.call_later(_KEEP_S, patience.end)  # a writer that is busy is waited for
        try:
            await patience.leases.request(record, is_canceled=True)
        except StoreUnavailableError:
            raise unavailable(
                5, "the batch is being cancelled, but that cannot be written down now; ask again"
            ) from None
        finally:
            limit.cancel()

    @contextmanager
    def _not_waiting(self, job_id: str) -> Iterator[None]:
        """Let a job not start while entered, nor after it, unless this fails."""
        was_waiting = job_id in self._waiting
        if was_waiting:
            self._waiting.remove(job_id)
        try:
            yield
        except BaseException:
            if was_waiting:
                self._waiting.appendleft(job_id)
                self._start_next()
            raise

    def _turn(self, job_id: str) -> asyncio.Lock:
        """Return what lets one at a time end a job that does not run: that is done in pieces."""
        return self._turns.setdefault(job_id, asyncio.Lock())

    def _has(self, job_id: str) -> bool:
        return job_id in self._running or job_id in self._starting or job_id in self._waiting

    async def _adopt(self) -> None:
        for record in await self.reader.jobs.unended():
            if self._has(record.id):
                continue
            if record.kind == "batch":
                self._waiting.append(record.id)
            elif record.id not in self._giving_up and not await self._gave_up(record.id):
                self._giving_up.add(record.id)
                self._spawn(self._give_up_later(record.id))
        self._start_next()

    async def _gave_up(self, job_id: str) -> bool:
        """End a run of a server that is gone, as whoever asked for it is; False where it cannot be ended now."""
        try:
            async with self._turn(job_id):
                await self.store.call_chunked(end_idle_job, self.store.sync, job_id, CANCELED)
        except LeaseLostError:  # another server was faster
            return True
        except StoreError as error:
            logger.warning("job %s cannot be ended at the moment: %s", job_id, error)
            return False
        return True

    async def _give_up_later(self, job_id: str) -> None:
        has_ended = False
        while not has_ended:
            await asyncio.sleep(_RESTART_S)
            has_ended = await self._gave_up(job_id)
        self._giving_up.discard(job_id)

    async def _adopt_orphans(self) -> None:
        """Go on with jobs whose leaders have died."""
        while not self.is_draining:
            await asyncio.sleep(self.settings.lease_s / 3)
            try:
                await self._adopt()
            except StoreError as error:
                logger.warning("jobs of other servers cannot be looked for: %s", error)

    def _create(self, new: NewJob, body: Body, agent_ids: Set[str]) -> None:
        """Store a body's batch: a small one is checked whole before, a large one while it is stored."""
        if body.checker is None:
            small = read_body(body.data, agent_ids)
            items = [NewItem(*request) for request in small.requests]
            self.store.sync.jobs.create(replace(new, callback_url=small.callback_url), items)
        else:
            with body.checker.check(agent_ids) as large:
                pages = (ItemPage(*page) for page in self._unless_stopping(large.pages))
                self.store.sync.jobs.create_paged(replace(new, callback_url=large.callback_url), pages)

    def _unless_stopping(self, pages: Iterable[T]) -> Iterator[T]:
        """Yield them; a large batch that is being stored when the server has to stop is given up whole."""
        for page in pages:
            if self.is_draining:
                raise _stopping()
            yield page

    @contextmanager
    def _holding(self, user_id: str, key: str | None) -> Iterator[None]:
        """Hold an idempotency key while its batch is being accepted."""
        held = (user_id, key or "")
        if key is not None and held in self._keys_in_use:
            raise HttpError(409, "a batch with this Idempotency-Key is being accepted", {"Retry-After": "1"})
        self._keys_in_use.add(held)
        try:
            yield
        finally:
            self._keys_in_use.discard(held)

    def _start_next(self) -> None:
        while self._waiting and not self.is_draining:
            if len(self._running.keys() - self._single) + len(self._starting) >= self.settings.max_running_jobs:
                return
            job_id = self._waiting.popleft()
            self._starting[job_id] = self._spawn(self._start_one(job_id))

    async def _start_one(self, job_id: str) -> None:
        try:
            await self._launch(job_id)
        except ConfigError as error:  # an agent whose key or code is not there any more
            logger.error("job %s cannot go on: %s", job_id, error)
        except Exception as error:  # noqa: BLE001  # whatever it is, the job must not be left without anybody
            logger.error("job %s could not be started and will be tried again: %s", job_id, error)
            self._restart_later(job_id)
        finally:
            self._starting.pop(job_id, None)
            self._start_next()

    async def _launch(self, job_id: str) -> Job:
        agents = AgentSet.from_snapshot(await self.reader.jobs.agent_snapshot(job_id))
        store = self.session.open_store(self.settings)
        try:
            job = self.session.start(job_id, agents, store, self.settings)
        except BaseException:
            self.session.release_store(store)
            raise
        self._running[job_id] = job
        job.when_over(lambda: self._loop.call_soon_threadsafe(self._over, job))
        return job

    def _over(self, job: Job) -> None:
        """A job has ended, or its driver has failed: then it is started again after a while."""
        del self._running[job.id]
        self._single.discard(job.id)
        error = job.error()
        if error is not None and not isinstance(error, JobInterruptedError) and not self.is_draining:
            logger.error("job %s stopped and will go on: %s", job.id, error)
            self._restart_later(job.id)
        self._start_next()
        self.on_end()

    def _restart_later(self, job_id: str) -> None:
        self._restarting.add(job_id)  # at once: it has just left where else it could be found
        self._spawn(self._restart(job_id))

    async def _restart(self, job_id: str) -> None:
        try:
            await asyncio.sleep(_RESTART_S)
        finally:
            self._restarting.discard(job_id)
        if self._has(job_id):  # adopted meanwhile
            return
        self._waiting.append(job_id)
        self._start_next()

    async def _expire_waiting(self) -> None:
        """End jobs whose deadline passes while they wait for their turn, or for an agent that is not there."""
        while True:
            await asyncio.sleep(_EXPIRY_S)
            try:
                await self._expire_at_rest()
            except (StoreError, LeaseLostError) as error:
                logger.warning("deadlines of waiting jobs cannot be looked at: %s", error)

    async def _expire_at_rest(self) -> None:
        for record in await self.reader.jobs.unended():
            async with self._turn(record.id):
                is_at_rest = record.id not in self._running and record.id not in self._starting
                if not is_at_rest or self.is_draining:
                    continue
                if await self.store.call_chunked(expire_idle_job, self.store.sync, record, self.settings):
                    if record.id in self._waiting:
                        self._waiting.remove(record.id)
                    self.on_end()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _stopping() -> HttpError:
    return unavailable(10, "the server is stopping; try again in a moment")

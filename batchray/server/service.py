"""What the endpoint does: accept batches, run them side by side, go on after a restart, stop in good order."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Set
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

from batchray.agents import Clients, build_agent
from batchray.config import Agent, AgentSet, BoundAgent, ServerSettings
from batchray.control import Wishes
from batchray.driver import cancel_at_rest
from batchray.errors import BatchrayError, ConfigError, JobInterruptedError, UnknownAgentError
from batchray.intake import read_body
from batchray.job import Job
from batchray.schema import new_job_id
from batchray.server.errors import FINAL, HttpError, later
from batchray.server.upload import Body
from batchray.session import Session
from batchray.store import ItemPage, JobRecord, NewItem, NewJob, Store, StoredResult

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

# Before a job whose driver failed, as where Ray is gone, is started again.
_RESTART_S = 5.0


class Service:
    """The jobs of one server: which wait, which run, and how they come and go.  On the server's event loop."""

    def __init__(self, settings: ServerSettings, fleet: AgentSet, session: Session) -> None:
        self.settings, self.fleet, self.session = settings, fleet, session
        self.store = session.open_store(settings.data_dir)
        self.reader = Store.open_for_reading(settings.data_dir)
        self.is_draining = False
        self.on_end: Callable[[], None] = lambda: None
        self._waiting: deque[str] = deque()
        self._running: dict[str, Job] = {}
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
            raise later(10, "the server is stopping; come again in a moment")
        with self._holding(user_id, key):
            if key is not None and (known := await self.read(self.reader.job_of_key, user_id, key)) is not None:
                if known.body_digest != body.digest:
                    raise HttpError(422, "this Idempotency-Key came with another body before", FINAL)
                return known
            job_id = new_job_id()
            new = NewJob(job_id, self.snapshot, user_id=user_id, idempotency_key=key, body_digest=body.digest)
            agent_ids = {*self.fleet.agents, *await self.read(self.reader.agent_ids, user_id)}
            await self.store.call(self._create, new, body, agent_ids)
        self._waiting.append(job_id)
        self._start_next()
        return await self.read(self.reader.job, job_id)

    async def cancel(self, record: JobRecord) -> None:
        """Cancel a job; one that has ended stays as it is."""
        job = self._running.get(record.id)
        if job is not None and job.steer(Wishes(is_canceled=True)):
            return
        if record.id in self._waiting:
            self._waiting.remove(record.id)
        await self.store.call(cancel_at_rest, self.store, record.id)
        self.on_end()

    async def retry(self, record: JobRecord) -> None:
        """Run the items of an ended job again that did not succeed.  Raises HttpError 409 before its end."""
        if not record.is_ended or record.id in self._running:
            raise HttpError(409, f"job {record.id} has not ended yet", FINAL)
        if record.counts["succeeded"] < record.total:
            await self.store.call(self.store.reopen, record.id)
            self._waiting.append(record.id)
            self._start_next()

    async def ask(self, user_id: str, agent_id: str, request: bytes) -> tuple[JobRecord, StoredResult]:
        """Run one request to one agent at once, and return its job with the result.

        Raises UnknownAgentError, and HttpError 503 while the server is stopping.
        """
        if self.is_draining:
            raise later(10, "the server is stopping; come again in a moment")
        await self.read(self.agent, user_id, agent_id)
        new = NewJob(new_job_id(), self.snapshot, kind="run", user_id=user_id, agent_id=agent_id)
        await self.store.call(self.store.create_job, new, [NewItem(agent_id, None, request)])
        job = await self._launch(new.id)
        try:
            record = await job.ended()
        except asyncio.CancelledError:  # the client has gone
            job.steer(Wishes(is_canceled=True))
            raise
        except BatchrayError as error:
            raise later(5, f"the request could not be run: {error}") from None
        result = await self.read(self.reader.result, record, 0)
        if result is None:
            raise HttpError(500, "the request ended without a result", FINAL)
        return record, result

    # -- agents

    def agent(self, user_id: str, agent_id: str) -> BoundAgent:
        """Return an agent that a user may ask.  Raises UnknownAgentError."""
        if agent_id in self.fleet.agents:
            return self.fleet.agents[agent_id]
        stored = self.reader.agent(agent_id, user_id)
        if stored is None:
            raise UnknownAgentError(f"Agent with ID {agent_id} not found")
        return self.fleet.bind(Agent.model_validate(stored.spec["agent"]))

    def snapshot(self, agent_ids: Set[str]) -> dict[str, Any]:
        """Return the settings of these agents, for a job to keep."""
        made = {agent_id: self.reader.agent_of_any(agent_id) for agent_id in agent_ids - self.fleet.agents.keys()}
        bound = {
            agent_id: self.fleet.bind(Agent.model_validate(stored.spec["agent"]))
            for agent_id, stored in made.items()
            if stored is not None  # or deleted, a moment ago
        }
        known = replace(self.fleet, agents={**self.fleet.agents, **bound})
        if missing := agent_ids - known.agents.keys():
            raise UnknownAgentError(f"Agent with ID {min(missing)} not found")
        return known.snapshot(agent_ids)

    # -- the server's life

    async def start(self) -> None:
        """Go on with the jobs that an earlier server left unfinished."""
        for record in await self.read(self.reader.unended_jobs):
            if record.kind == "batch":
                self._waiting.append(record.id)
            else:  # whoever asked for it has gone
                await self.store.call(cancel_at_rest, self.store, record.id)
        self._start_next()

    async def stop(self) -> None:
        """Start nothing more, let running items finish within the grace period, leave the rest for the next start."""
        self.is_draining = True
        self._waiting.clear()
        await self.session.run(self.session.drain(self.settings.shutdown_grace_s))

    def close(self) -> None:
        """Let go of the store; the session ends the jobs."""
        for task in self._tasks:
            task.cancel()
        self.reader.close()
        self.session.release_store(self.store)

    def in_flight(self) -> int:
        """Return how many requests are in flight."""
        return sum(job.in_flight for job in self._running.values())

    def is_running(self, job_id: str) -> bool:
        """Tell whether a job runs or waits for its turn."""
        return job_id in self._running or job_id in self._waiting

    async def read(self, query: Callable[P, T], /, *args: P.args, **options: P.kwargs) -> T:
        """Run a query on a thread, so that no other client waits for it."""
        return await asyncio.to_thread(query, *args, **options)

    # -- inside

    def _create(self, new: NewJob, body: Body, agent_ids: Set[str]) -> None:
        """Store a body's batch: a small one is checked whole before, a large one while it is stored."""
        if body.checker is None:
            small = read_body(body.data, agent_ids)
            items = [NewItem(*request) for request in small.requests]
            self.store.create_job(replace(new, callback_url=small.callback_url), items)
        else:
            with body.checker.check(agent_ids) as large:
                pages = (ItemPage(*page) for page in large.pages)
                self.store.create_large_job(replace(new, callback_url=large.callback_url), pages)

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
        while self._waiting and len(self._running) < self.settings.max_running_jobs and not self.is_draining:
            self._spawn(self._run(self._waiting.popleft()))

    async def _run(self, job_id: str) -> None:
        try:
            await self._launch(job_id)
        except ConfigError as error:  # an agent whose key or code is not there any more
            logger.error("job %s cannot go on: %s", job_id, error)

    async def _launch(self, job_id: str) -> Job:
        agents = AgentSet.from_snapshot(await self.read(self.reader.agent_snapshot, job_id))
        store = self.session.open_store(self.settings.data_dir)
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
        error = job.error()
        if error is not None and not isinstance(error, JobInterruptedError) and not self.is_draining:
            logger.error("job %s stopped and will go on: %s", job.id, error)
            self._spawn(self._restart(job.id))
        self._start_next()
        self.on_end()

    async def _restart(self, job_id: str) -> None:
        await asyncio.sleep(_RESTART_S)
        self._waiting.append(job_id)
        self._start_next()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def check_fleet(fleet: AgentSet) -> None:
    """Build every agent once, so that what cannot be built is known at the start.  Raises ConfigError."""
    clients = Clients()
    for bound in fleet.agents.values():
        build_agent(bound, clients)

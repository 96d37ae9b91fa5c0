"""The scheduler of a server's jobs, with a runtime whose jobs end when the test says so."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from batchray.config import Agent, AgentSet, Provider, Settings, bind_agents, load_server_settings
from batchray.errors import ClusterError, ConfigError, StoreError
from batchray.jobs.control import ControlRequest
from batchray.jobs.idle import cancel_idle_job
from batchray.schema import new_job_id
from batchray.server.agent_catalog import AgentLookup
from batchray.server.background import BackgroundTasks
from batchray.server.errors import HttpError
from batchray.server.idle_jobs import IdleJobs
from batchray.server.job_table import JobState
from batchray.server.scheduler import JobScheduler
from batchray.server.single_runs import NewRun, SingleRuns
from batchray.server.storage import ServerStorage
from batchray.store import JobRecord, NewItem, NewJob, Store, run_all
from tests.polling import run_pending_tasks, wait_until


class ScriptedJob:
    """A job that runs until `finish` is called."""

    def __init__(self, job_id: str) -> None:
        self.id, self.in_flight = job_id, 1
        self.requests: list[ControlRequest] = []
        self._future: concurrent.futures.Future[None] = concurrent.futures.Future()

    def finish(self, error: Exception | None = None) -> None:
        if error is None:
            self._future.set_result(None)
        else:
            self._future.set_exception(error)

    def add_done_callback(self, call: Callable[[], object]) -> None:
        self._future.add_done_callback(lambda _: call())

    def error(self) -> BaseException | None:
        return self._future.exception()

    def steer(self, request: ControlRequest) -> bool:
        self.requests.append(request)
        return not self._future.done()

    async def wait_async(self) -> None:
        await asyncio.wrap_future(self._future)


class ScriptedRuntime:
    """Starts scripted jobs; `started` holds them in the order of their start."""

    def __init__(self) -> None:
        self.started: list[ScriptedJob] = []
        self.agents: list[AgentSet] = []
        self.error: Exception | None = None
        self.on_ensure_executor: Callable[[], object] = lambda: None
        self._store: Store | None = None

    def open_store(self, settings: Settings) -> Store:
        if self._store is None:
            self._store = Store.open(settings.data_dir)
        return self._store

    def release_store(self, store: Store) -> None:
        pass

    def share_window(self, size: int) -> None:
        pass

    async def ensure_executor(self, settings: Settings) -> None:
        self.on_ensure_executor()

    def start(self, job_id: str, agents: AgentSet, *_: object) -> ScriptedJob:
        if self.error is not None:
            raise self.error
        self.agents.append(agents)
        self.started.append(ScriptedJob(job_id))
        return self.started[-1]

    async def run(self, work: Coroutine[Any, Any, None]) -> None:
        await work

    async def drain(self, grace_s: float) -> None:
        pass

    def close(self) -> None:
        if self._store is not None:
            self._store.close()


class Server:
    """A scheduler with its store and its scripted runtime."""

    def __init__(self, data_dir: Path, *, providers: Mapping[str, Provider] | None = None, **settings: Any) -> None:
        self.runtime, self.n_ends = ScriptedRuntime(), 0
        self.settings = load_server_settings(data_dir=data_dir, **settings)
        self.storage = ServerStorage(self.settings, cast(Any, self.runtime))
        self.tasks = BackgroundTasks()
        self.scheduler = JobScheduler(
            self.settings,
            cast(Any, self.runtime),
            self.storage,
            self.tasks,
            self._on_job_end,
            restart_delay_s=0.01,
            providers=providers,
        )
        self.idle_jobs = IdleJobs(self.settings, self.storage, self.scheduler, self.tasks, expiry_interval_s=0.01)

    def _on_job_end(self) -> None:
        self.n_ends += 1

    def new_job(self, kind: str = "batch", agents: AgentSet | None = None) -> str:
        job_id, agents = new_job_id(), agents or AgentSet()
        items = [NewItem("a", None, b"{}")]
        self.storage.store.sync.jobs.create(NewJob(job_id, agents.snapshot, kind=cast(Any, kind)), items)
        return job_id

    def record(self, job_id: str) -> JobRecord:
        return self.storage.reader.sync.jobs.get(job_id)

    def state(self, job_id: str) -> JobState | None:
        return self.scheduler.table.state(job_id)

    def started_ids(self) -> list[str]:
        return [job.id for job in self.runtime.started]

    async def enqueue_running(self) -> str:
        """Queue a job, and return its id when it runs."""
        job_id = self.new_job()
        self.scheduler.enqueue(job_id)
        await wait_until(lambda: self.state(job_id) is JobState.RUNNING)
        return job_id


@asynccontextmanager
async def server_of(data_dir: Path, **settings: Any) -> AsyncIterator[Server]:
    server = Server(data_dir, **settings)
    try:
        yield server
    finally:
        server.tasks.cancel()
        await run_pending_tasks()
        server.storage.close()
        server.runtime.close()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """Return a server that runs one batch at a time."""
    async with server_of(tmp_path, max_running_jobs=1) as server:
        yield server


async def test_jobs_run_in_order_within_the_limit(server: Server) -> None:
    job_ids = [server.new_job() for _ in range(3)]
    for job_id in job_ids:
        server.scheduler.enqueue(job_id)
    for n in range(3):
        await wait_until(lambda n=n: server.state(job_ids[n]) is JobState.RUNNING)  # type: ignore[misc]
        assert server.started_ids() == job_ids[: n + 1]
        server.runtime.started[n].finish()
    await wait_until(lambda: server.n_ends == 3)
    assert [job_id in server.scheduler.table for job_id in job_ids] == [False] * 3


async def test_secrets_that_are_not_stored_come_from_the_servers_own_providers(tmp_path: Path) -> None:
    providers = {"p": Provider(protocol="openai", base_url="http://h", headers={"api-key": "written-out"})}
    agents = bind_agents([Agent(id="a", model="p/m")], providers, {})
    async with server_of(tmp_path, providers=providers) as server:
        job_id = server.new_job(agents=agents)
        assert "written-out" not in str(await server.storage.reader.jobs.agent_snapshot(job_id))
        server.scheduler.enqueue(job_id)
        await wait_until(lambda: server.state(job_id) is JobState.RUNNING)
    [started] = server.runtime.agents
    assert started.agents["a"].access == agents.agents["a"].access


async def test_a_single_run_takes_no_slot(server: Server) -> None:
    run_id = server.new_job("run")
    job = await server.scheduler.start_now(run_id)
    assert (job.id, server.state(run_id)) == (run_id, JobState.RUNNING)
    await server.enqueue_running()
    assert server.scheduler.table.n_in_flight() == 2


async def test_a_single_run_that_cannot_be_started_is_not_scheduled(server: Server) -> None:
    server.runtime.error = ConfigError("no key")
    run_id = server.new_job("run")
    with pytest.raises(ConfigError):
        await server.scheduler.start_now(run_id)
    assert run_id not in server.scheduler.table


async def test_a_cancel_during_the_start_waits_for_it_and_stops_the_job(server: Server) -> None:
    job_id = server.new_job()
    server.scheduler.enqueue(job_id)
    assert server.state(job_id) is JobState.STARTING
    await server.scheduler.cancel(server.record(job_id))
    [job] = server.runtime.started
    assert [request.is_canceled for request in job.requests] == [True]
    assert not server.record(job_id).is_ended  # its driver ends it


async def test_a_cancel_ends_a_queued_job_in_the_store(server: Server) -> None:
    await server.enqueue_running()
    job_id = server.new_job()
    server.scheduler.enqueue(job_id)
    await server.scheduler.cancel(server.record(job_id))
    assert server.record(job_id).status == "cancelled"
    assert (job_id in server.scheduler.table, server.n_ends) == (False, 1)


async def test_a_queued_job_that_cannot_be_ended_returns_to_the_front(server: Server) -> None:
    await server.enqueue_running()
    job_ids = [server.new_job() for _ in range(3)]
    for job_id in job_ids:
        server.scheduler.enqueue(job_id)

    def fail_to_end() -> None:
        with server.scheduler.ending(job_ids[1]):
            assert server.state(job_ids[1]) is JobState.ENDING
            raise StoreError("full")

    with pytest.raises(StoreError):
        fail_to_end()
    assert server.scheduler.table.first_queued() == job_ids[1]


async def test_a_job_whose_driver_failed_is_restarted_after_a_delay(server: Server) -> None:
    job_id = await server.enqueue_running()
    server.runtime.started[0].finish(ClusterError("lost"))
    await wait_until(lambda: server.state(job_id) is JobState.RESTARTING)
    await wait_until(lambda: server.started_ids() == [job_id, job_id])


async def test_a_job_that_could_not_be_started_is_restarted_unless_an_agent_is_unusable(server: Server) -> None:
    server.runtime.error = ConfigError("no key")
    unusable = server.new_job()
    server.scheduler.enqueue(unusable)
    await wait_until(lambda: unusable not in server.scheduler.table)
    server.runtime.error = StoreError("busy")
    job_id = server.new_job()
    server.scheduler.enqueue(job_id)
    await wait_until(lambda: server.state(job_id) is JobState.RESTARTING)
    server.runtime.error = None
    await wait_until(lambda: server.started_ids() == [job_id])


async def test_a_job_that_was_deleted_through_another_server_is_not_started_again_and_again(server: Server) -> None:
    await server.enqueue_running()
    job_id = server.new_job()
    server.scheduler.enqueue(job_id)
    store = server.storage.store.sync
    run_all(cancel_idle_job(store, job_id))
    assert store.retention.forget(server.record(job_id))
    server.runtime.started[0].finish()
    await wait_until(lambda: server.state(job_id) not in (JobState.QUEUED, JobState.STARTING))
    assert job_id not in server.scheduler.table


async def test_a_cancel_before_the_restart_prevents_it(server: Server) -> None:
    job_id = await server.enqueue_running()
    server.runtime.started[0].finish(ClusterError("lost"))
    await wait_until(lambda: server.state(job_id) is JobState.RESTARTING)
    await server.scheduler.cancel(server.record(job_id))
    later_id = await server.enqueue_running()
    server.runtime.started[1].finish(ClusterError("lost"))
    await wait_until(lambda: server.started_ids().count(later_id) == 2)  # so the delay of the first one is over, too
    assert server.started_ids() == [job_id, later_id, later_id]
    assert (server.record(job_id).status, server.state(job_id)) == ("cancelled", None)


async def test_one_of_two_concurrent_retries_reopens_the_job(server: Server) -> None:
    job_id = server.new_job()
    await server.scheduler.cancel(server.record(job_id))
    record = server.record(job_id)
    both = await asyncio.gather(*(server.scheduler.retry(record) for _ in range(2)), return_exceptions=True)
    assert [getattr(each, "status", None) for each in both] == [None, 409]
    await wait_until(lambda: server.started_ids() == [job_id])


async def test_a_job_that_has_not_ended_cannot_be_retried(server: Server) -> None:
    job_id = await server.enqueue_running()
    with pytest.raises(HttpError, match="has not ended yet"):
        await server.scheduler.retry(server.record(job_id))


async def test_a_start_adopts_batches_once_and_cancels_single_runs(server: Server) -> None:
    batch_ids, run_id = [server.new_job() for _ in range(2)], server.new_job("run")
    server.scheduler.enqueue(batch_ids[0])
    await server.idle_jobs.start()
    server.scheduler.enqueue(batch_ids[1])
    await wait_until(lambda: len(server.runtime.started) == 1)
    server.runtime.started[0].finish()
    await wait_until(lambda: len(server.runtime.started) == 2)
    server.runtime.started[1].finish()
    await wait_until(lambda: server.n_ends == 2)
    assert server.started_ids() == batch_ids
    assert server.record(run_id).status == "cancelled"


async def test_a_queued_job_expires_at_its_deadline(tmp_path: Path) -> None:
    async with server_of(tmp_path, max_running_jobs=1, job_deadline_s=0.05) as server:
        await server.enqueue_running()
        job_id = server.new_job()
        server.scheduler.enqueue(job_id)
        await server.idle_jobs.start()
        await wait_until(lambda: server.record(job_id).status == "expired")
        await wait_until(lambda: job_id not in server.scheduler.table)


async def test_a_draining_server_starts_and_restarts_nothing(server: Server) -> None:
    job_id = await server.enqueue_running()
    queued = server.new_job()
    server.scheduler.enqueue(queued)
    await server.scheduler.drain()
    assert queued not in server.scheduler.table
    server.runtime.started[0].finish(ClusterError("lost"))
    await wait_until(lambda: job_id not in server.scheduler.table)
    server.scheduler.enqueue(queued)
    await run_pending_tasks()
    assert server.started_ids() == [job_id]


BOUND = bind_agents([Agent(id="a", model="offline/rules")]).agents["a"]


def single_runs(server: Server) -> SingleRuns:
    lookup = AgentLookup(AgentSet(), server.storage.reader)
    return SingleRuns(server.settings, cast(Any, server.runtime), server.storage, lookup, server.scheduler)


@pytest.mark.parametrize("answers", [[True], [False, True]], ids=["before it is stored", "while it is stored"])
async def test_a_request_whose_client_leaves_while_it_starts_is_not_run(server: Server, answers: list[bool]) -> None:
    runs = single_runs(server)
    with pytest.raises(ConnectionResetError):
        await runs.start(NewRun("user", "a", b"{}", agent=BOUND), iter(answers).__next__)
    assert server.runtime.started == []
    assert await server.storage.reader.jobs.unended() == []
    kept = await runs.start(NewRun("user", "a", b"{}", "key", agent=BOUND), lambda: True)
    assert server.started_ids() == [kept.id]


async def test_a_request_that_another_server_starts_at_the_same_time_is_one_run(server: Server) -> None:
    run = NewRun("user", "a", b"{}", "key")

    def start_elsewhere() -> None:
        new = NewJob(new_job_id(), AgentSet().snapshot, user_id="user", idempotency_key="key", body_digest=run.digest)
        server.storage.store.sync.jobs.create(new, [NewItem("a", None, b"{}")])

    server.runtime.on_ensure_executor = start_elsewhere
    started = await single_runs(server).start(replace(run, agent=BOUND))
    assert [started.id] == [job.id for job in await server.storage.reader.jobs.unended()]

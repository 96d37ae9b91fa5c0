"""Jobs that pause themselves: why, with what left behind, and how they continue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Literal

import pytest

from batchray.config import Agent, AgentSet, Provider, bind_agents
from batchray.errors import JobInterruptedError, JobPausedError
from batchray.executors import LocalExecutor
from batchray.jobs.control import ControlFile, ControlRequest
from batchray.jobs.driver import run_job
from batchray.jobs.running import RunningJob
from batchray.jobs.steering import sync_control
from batchray.store import JobRecord, Store
from tests.builders.jobs import Scripted, new_job, started
from tests.polling import run_pending_tasks, wait_until
from tests.provider_server import ProviderServer
from tests.sqlite_lock import locked

REFUSED = "[[status:401]]"
N_IN_A_ROW = 4


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    with Store.open(tmp_path / "data") as opened:
        yield opened


@pytest.fixture
async def server() -> AsyncIterator[ProviderServer]:
    async with ProviderServer() as running:
        running.always = REFUSED
        yield running


@pytest.fixture
async def executor() -> AsyncIterator[LocalExecutor]:
    local = LocalExecutor()
    yield local
    await local.close()


def agents_of(server: ProviderServer) -> AgentSet:
    provider = Provider(protocol="openai", base_url=server.base_url)
    return bind_agents([Agent(id="a", model="p/m"), Agent(id="m", model="offline/rules")], {"p": provider}, {})


async def paused(store: Store, job_id: str, agents: AgentSet, executor: LocalExecutor, **settings: object) -> JobRecord:
    """Run a job that pauses itself, and return it."""
    job = await started(store, job_id, agents, **{"max_consecutive_failures": N_IN_A_ROW, **settings})
    with pytest.raises(JobPausedError) as raised:
        await run_job(job, executor, providers=executor.providers)
    record = store.jobs.get(job_id)
    assert (raised.value.job_id, raised.value.reason) == (job_id, record.paused_because)
    assert f"`batchray resume {job_id}`" in str(raised.value)
    return record


async def test_a_key_that_is_refused_pauses_the_job_and_costs_no_request(
    store: Store, server: ProviderServer, executor: LocalExecutor
) -> None:
    agents, job_id = agents_of(server), new_job(store, *["a"] * 400)
    record = await paused(store, job_id, agents, executor)
    assert (record.status, record.is_ended, record.done) == ("running", False, 0)
    assert record.paused_because is not None
    assert record.paused_because.startswith("4 requests in a row failed alike: p: status 401")
    assert server.n_calls <= 64
    server.always = ""
    record = await run_job(await started(store, job_id, agents), executor)
    assert (record.status, record.counts["succeeded"], record.paused_because) == ("completed", 400, None)


async def test_too_few_failures_for_a_pause_are_outcomes_at_the_end(
    store: Store, server: ProviderServer, executor: LocalExecutor
) -> None:
    job = await started(store, new_job(store, *["a"] * 3, *["m"] * 30), agents_of(server))
    record = await run_job(job, executor)
    assert (record.status, record.counts["errored"], record.counts["succeeded"]) == ("completed", 3, 30)
    assert job.progress == record.progress
    assert {each["type"] for each in job.failures} == {"authentication_error"}


@pytest.mark.parametrize("end", [RunningJob.cancel, RunningJob.expire])
async def test_failures_before_an_early_end_stay_failures(
    store: Store, server: ProviderServer, end: Callable[[RunningJob], None]
) -> None:
    executor = Scripted(lambda spec: asyncio.Event().wait() if spec.agent.agent.id == "m" else None)
    job = await started(store, new_job(store, "a", "a", "a", "m", "m"), agents_of(server))
    running = asyncio.create_task(run_job(job, executor))
    await wait_until(lambda: len(job.held) == 3)
    end(job)
    record = await running
    await executor.close()
    assert (record.counts["errored"], record.counts["canceled"] + record.counts["expired"]) == (3, 2)


async def test_failures_between_successes_are_outcomes_of_their_requests(
    store: Store, server: ProviderServer, executor: LocalExecutor
) -> None:
    server.always = ""
    agents = bind_agents(
        [Agent(id="a", model="p/m"), Agent(id="refused", model="p/[[status:401]]")],
        {"p": Provider(protocol="openai", base_url=server.base_url)},
        {},
    )
    job = await started(store, new_job(store, *["a", "a", "refused"] * 6), agents, max_in_flight=4)
    record = await run_job(job, executor)
    assert (record.counts["succeeded"], record.counts["errored"]) == (12, 6)


async def test_a_pause_lets_requests_of_other_agents_finish(
    store: Store, server: ProviderServer, executor: LocalExecutor
) -> None:
    record = await paused(store, new_job(store, *["m"] * 5, *["a"] * 100), agents_of(server), executor)
    assert (record.counts["succeeded"], record.counts["errored"]) == (5, 0)


async def test_a_job_that_stays_continues_when_it_is_unpaused(
    store: Store, server: ProviderServer, executor: LocalExecutor
) -> None:
    job = await started(store, new_job(store, *["a"] * 100), agents_of(server), max_consecutive_failures=N_IN_A_ROW)
    running = asyncio.create_task(run_job(job, executor, providers=executor.providers, stays_when_paused=True))
    async with asyncio.timeout(20):
        while (reason := (await job.store.jobs.get(job.record.id)).paused_because) is None:
            await run_pending_tasks()
    snapshot = job.snapshot()
    assert (snapshot["is_paused"], snapshot["n_in_flight"], snapshot["paused_because"]) == (True, 0, reason)
    server.always = ""
    job.steer(ControlRequest(is_paused=False))
    record = await running
    assert (record.counts["succeeded"], record.paused_because) == (100, None)


@pytest.mark.parametrize("end", [RunningJob.cancel, RunningJob.interrupt])
async def test_a_job_that_ends_during_its_pause_runs_nothing_more(
    store: Store, server: ProviderServer, executor: LocalExecutor, end: Callable[[RunningJob], None]
) -> None:
    job = await started(store, new_job(store, *["a"] * 100), agents_of(server), max_consecutive_failures=N_IN_A_ROW)
    running = asyncio.create_task(run_job(job, executor, providers=executor.providers, stays_when_paused=True))
    await wait_until(lambda: job.paused_because is not None and job.window.in_flight == 0)
    server.always, n_calls = "", server.n_calls
    end(job)
    await asyncio.wait([running])
    assert (server.n_calls, store.jobs.get(job.record.id).counts["succeeded"]) == (n_calls, 0)
    assert (running.exception() is None) == (job.ending is not None)


async def test_a_job_that_stays_can_be_canceled(store: Store, server: ProviderServer, executor: LocalExecutor) -> None:
    job = await started(store, new_job(store, *["a"] * 100), agents_of(server), max_consecutive_failures=N_IN_A_ROW)
    running = asyncio.create_task(run_job(job, executor, providers=executor.providers, stays_when_paused=True))
    await wait_until(lambda: job.paused_because is not None)
    job.steer(ControlRequest(is_canceled=True))
    record = await running
    assert (record.status, record.counts["canceled"], record.paused_because) == ("cancelled", 100, None)


async def test_a_second_unpause_through_the_control_file_is_carried_out(store: Store) -> None:
    job = await started(store, new_job(store, "echo", "echo"))
    file = ControlFile(store.data_dir, job.record.id)
    file.ask(is_paused=False)  # an earlier one
    watching = asyncio.create_task(sync_control(job, file))
    job.pause_for("its provider is away")
    await wait_until(lambda: (file.read() or {}) == {"is_paused": True})
    file.ask(is_paused=False)
    await job.until_continued()
    await wait_until(lambda: not job.snapshot()["is_paused"])
    watching.cancel()


async def test_more_failures_than_are_allowed_pause_the_job(store: Store, executor: LocalExecutor) -> None:
    job_id = new_job(store, *["echo", "fail"] * 50)
    job = await started(store, job_id, max_failures=5, max_in_flight=2)
    with pytest.raises(JobPausedError, match=r"requests failed in this run, and at most 5 may \(max_failures\)"):
        await run_job(job, executor)
    record = store.jobs.get(job_id)
    assert 6 <= record.counts["errored"] <= 8
    record = await run_job(await started(store, job_id, max_failures="100%"), executor)
    assert (record.status, record.counts["errored"]) == ("completed", 50)


# -- providers that are away, or ask to wait


async def test_an_address_that_never_answers_pauses_the_job_until_it_is_corrected(
    store: Store, server: ProviderServer, executor: LocalExecutor
) -> None:
    agents, job_id = agents_of(server), new_job(store, *["a"] * 100)
    server.always = ""
    await server.close()
    record = await paused(store, job_id, agents, executor, provider_start_patience_s=0.2)
    assert (record.done, server.n_calls) == (0, 0)
    assert record.paused_because is not None
    assert record.paused_because.startswith("provider 'p' has never answered, for ")
    async with ProviderServer(port=server.port):
        job = await started(store, job_id, agents, provider_start_patience_s=60)
        record = await run_job(job, executor, providers=executor.providers)
    assert (record.counts["succeeded"], record.paused_because) == (100, None)


async def test_a_provider_of_the_same_name_at_another_address_holds_up_no_job(
    store: Store, server: ProviderServer, executor: LocalExecutor
) -> None:
    server.always = "[[429:retry-after=200000]]"
    async with ProviderServer() as other:
        # Both are made before one runs: its writes, on another thread, would share the connection.
        job_id, ending_id = new_job(store, *["a"] * 10), new_job(store, *["a"] * 50)
        job = await started(store, job_id, agents_of(server))
        waiting = asyncio.create_task(run_job(job, executor, providers=executor.providers, stays_when_paused=True))
        await wait_until(lambda: job.paused_because is not None)
        ending = await started(store, ending_id, agents_of(other))
        record = await run_job(ending, executor, providers=executor.providers)
        job.steer(ControlRequest(is_canceled=True))
        await waiting
    assert record.counts["succeeded"] == 50


async def test_an_unpaused_job_gives_its_provider_the_same_time_again(
    store: Store, server: ProviderServer, executor: LocalExecutor
) -> None:
    server.always = ""
    await server.close()
    job = await started(store, new_job(store, *["a"] * 10), agents_of(server), provider_start_patience_s=0.2)
    running = asyncio.create_task(run_job(job, executor, providers=executor.providers, stays_when_paused=True))
    await wait_until(lambda: job.paused_because is not None and job.window.in_flight == 0)
    before = job.window
    job.settings = job.settings.model_copy(update={"provider_start_patience_s": 3600.0})
    job.steer(ControlRequest(is_paused=False))
    await wait_until(lambda: job.window is not before)
    [gate] = job.gates
    assert gate.hopeless_because(time.monotonic(), 1e6, max_unanswered_s=0.1) is None
    job.interrupt()
    with pytest.raises(JobInterruptedError):
        await running


async def test_a_job_whose_last_requests_finish_during_its_pause_ends(store: Store) -> None:
    release = asyncio.Event()
    executor = Scripted(lambda spec: release.wait() if spec.index > 1 else None)
    job = await started(store, new_job(store, "fail", "fail", "echo", "echo"), max_failures=1)
    running = asyncio.create_task(run_job(job, executor))
    await wait_until(lambda: job.paused_because is not None)
    release.set()
    record = await running
    assert (record.status, record.counts["succeeded"], record.paused_because) == ("completed", 2, None)


async def test_outcomes_committed_after_a_pause_has_stopped_its_window_count(store: Store, tmp_path: Path) -> None:
    release = asyncio.Event()
    executor = Scripted(lambda spec: release.wait() if spec.index > 1 else None)
    job = await started(store, new_job(store, "fail", "fail", "echo", "echo"), max_failures=1)
    running = asyncio.create_task(run_job(job, executor))
    await wait_until(lambda: job.paused_because is not None)
    with locked(tmp_path / "data"):
        release.set()
        await wait_until(lambda: len(job.window._left) == 2)
        job.window.stop()
        await run_pending_tasks()
    record = await running
    assert (record.status, record.counts["succeeded"], record.paused_because) == ("completed", 2, None)


@pytest.mark.parametrize(("kind", "is_awaited"), [("run", True), ("batch", False)])
async def test_only_a_single_request_is_awaited(store: Store, kind: Literal["run", "batch"], is_awaited: bool) -> None:
    executor = Scripted()
    await run_job(await started(store, new_job(store, "echo", kind=kind)), executor)
    assert [spec.is_awaited for spec in executor.specs] == [is_awaited]


async def test_a_single_request_to_an_address_that_never_answers_fails(
    store: Store, server: ProviderServer, executor: LocalExecutor
) -> None:
    await server.close()
    job_id = new_job(store, "a", kind="run")
    job = await started(store, job_id, agents_of(server), provider_start_patience_s=0.2)
    record = await run_job(job, executor, providers=executor.providers)
    [result] = store.items.results(record)
    assert (record.status, result.status, result.error and result.error["type"]) == (
        "failed",
        "errored",
        "provider_unavailable",
    )


async def test_a_provider_that_asks_for_more_time_than_is_left_pauses_the_job(
    store: Store, server: ProviderServer, executor: LocalExecutor
) -> None:
    server.always = "[[429:retry-after=200000]]"
    agents, job_id = agents_of(server), new_job(store, *["a"] * 300)
    record = await paused(store, job_id, agents, executor)
    assert record.paused_because is not None
    assert "longer than the 86,4" in record.paused_because.replace("86,399", "86,400")
    assert server.n_calls <= 64
    server.always = ""
    # The lane still knows the wait; another one is started with the next command.
    other = LocalExecutor()
    record = await run_job(await started(store, job_id, agents), other, providers=other.providers)
    await other.close()
    assert record.counts["succeeded"] == 300


async def test_a_provider_that_is_away_makes_room_for_others_and_loses_no_request(
    store: Store, server: ProviderServer, executor: LocalExecutor
) -> None:
    server.always = ""
    async with ProviderServer() as other:
        providers = {
            name: Provider(protocol="openai", base_url=each.base_url)
            for name, each in (("away", server), ("here", other))
        }
        agents = bind_agents(
            [Agent(id="a", model="away/m", deadline_s=0.5), Agent(id="h", model="here/m")], providers, {}
        )
        await server.close()
        job = await started(store, new_job(store, *["a"] * 40, *["h"] * 60), agents, max_in_flight=4)
        running = asyncio.create_task(run_job(job, executor, providers=executor.providers))
        await wait_until(lambda: job.progress.done == 60 and job.gates.n_waiting == 4)
        assert (job.progress.counts["succeeded"], job.window.in_flight) == (60, 4)
        [state] = job.snapshot()["providers"]
        assert (state["provider"], state["kind"], state["is_shut"], state["n_waiting"]) == (
            "away",
            "unavailable",
            True,
            4,
        )
        await wait_until(lambda: job.snapshot()["providers"][0]["since_s"] > 0.6)  # beyond their deadline
        async with ProviderServer(port=server.port) as back:
            record = await running
    assert (record.counts["succeeded"], back.n_calls) == (100, 40)

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
import sqlalchemy as sa

from batchray.agents import SaveCheckpoints
from batchray.config import Agent, Provider, bind_agents, load_settings
from batchray.errors import (
    ClusterError,
    InvalidToolCallError,
    JobEndedError,
    JobInterruptedError,
    StoreError,
    StoreUnavailableError,
    WorkerDiedError,
)
from batchray.executors import AttemptSpec, LocalExecutor
from batchray.jobs.control import ControlFile, ControlRequest, leave_request
from batchray.jobs.deadlines import PausableDeadlines
from batchray.jobs.driver import run_job, start_job
from batchray.jobs.endings import expired
from batchray.jobs.idle import expire_idle_job
from batchray.jobs.running import RunningJob
from batchray.jobs.slots import Slot, Slots
from batchray.store import (
    DEFAULT_USER,
    AheadCounts,
    Chunked,
    JobRecord,
    LedJob,
    NewAttempt,
    NewOutcome,
    NewStep,
    PendingItem,
    Store,
    run_all,
)
from tests.builders.jobs import Scripted, echo, new_job, started
from tests.polling import run_pending_tasks, wait_until


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    with Store.open(tmp_path / "data") as opened:
        yield opened


class Watcher:
    """A control channel that keeps its snapshots and asks for what a test sets."""

    def __init__(self, **requests: Any) -> None:
        self.requests, self.snapshots, self.n_closed = requests, list[dict[str, Any]](), 0
        self.failures: list[Exception | None] = []
        """The results of the next updates instead, the last one first: None for no reply, or an error to raise."""

    async def update(self, snapshot: dict[str, Any]) -> dict[str, Any] | None:
        self.snapshots.append(snapshot)
        if not self.failures:
            return dict(self.requests)
        if (error := self.failures.pop()) is not None:
            raise error
        return None

    def close(self) -> None:
        self.n_closed += 1


def statuses(store: Store, job: JobRecord) -> list[str]:
    return [each.status for each in store.items.results(job)]


async def test_every_item_gets_an_outcome_and_the_job_ends(store: Store) -> None:
    job = await started(store, new_job(store, *["echo"] * 5, "fail"))
    record = await run_job(job, LocalExecutor())
    assert (record.status, record.stop_reason, record.is_ended) == ("completed", "end_turn", True)
    assert record.counts == {"succeeded": 5, "errored": 1, "canceled": 0, "expired": 0}
    assert statuses(store, record) == ["succeeded"] * 5 + ["errored"]
    *_, failed = store.items.results(record)
    assert failed.error is not None
    assert (failed.error["type"], failed.error["message"]) == ("LookupError", "no such thing")
    assert failed.error["traceback"].endswith(
        'in fail\n    raise LookupError("no such thing")\nLookupError: no such thing\n'
    )
    assert {each.attempts for each in store.items.results(record)} == {1}
    assert [json.loads(each.messages)[0]["content"][0]["text"] for each in store.items.results(record)[:2]] == [
        "text 0",
        "text 1",
    ]
    assert record.progress == job.progress
    assert job.progress.timings["duration"].count == job.progress.timings["queued"].count == 6


class Crashing:
    """Runs attempts that save one checkpoint each and crash; the third one succeeds.  Keeps their contexts."""

    def __init__(self) -> None:
        self.contexts: list[bytes] = []

    async def run(self, spec: AttemptSpec, keep: SaveCheckpoints) -> bytes:
        self.contexts.append(spec.context)
        await keep([b'{"n":%d}' % spec.attempt])
        if spec.attempt < 3:
            raise WorkerDiedError("its lane died while it ran", is_suspect=False)
        head = {"index": 0, "attempt": 3, "status": "succeeded", "stop_reason": "end_turn", "error": None}
        return json.dumps({**head, "usage": {}, "ttft_ns": None, "duration_ns": 1}).encode() + b"\n[]"


async def test_each_attempt_gets_the_checkpoints_of_earlier_attempts(store: Store) -> None:
    agents = bind_agents([Agent(id="a", model="offline/rules", tools=[str.upper])])
    job = await started(store, new_job(store, "a"), agents)
    executor = Crashing()
    record = await run_job(job, executor)
    given = [json.loads(context)["steps"] if context else [] for context in executor.contexts]
    assert given == [[], [{"n": 1}], [{"n": 1}, {"n": 2}]]
    assert [each.attempts for each in store.items.results(record)] == [1]  # the others were collateral crashes
    assert store.items.checkpoints(record, 0) == []


async def test_an_attempt_has_the_deadline_and_the_grace_of_its_own_job(store: Store) -> None:
    executor = Scripted()
    for grace_s in (1.5, 7.0):  # on the same executor
        await run_job(await started(store, new_job(store, "echo"), deadline_grace_s=grace_s), executor)
    assert [spec.grace_s for spec in executor.attempts_of(0)] == [1.5, 7.0]


async def test_a_job_without_a_successful_item_is_failed(store: Store) -> None:
    job = await started(store, new_job(store, "fail", "fail"))
    record = await run_job(job, LocalExecutor())
    assert (record.status, record.stop_reason) == ("failed", "error")


async def test_more_items_than_a_page_are_run_within_the_window(store: Store) -> None:
    executor = Scripted()
    job = await started(store, new_job(store, *["echo"] * 1100), max_in_flight=100)
    record = await run_job(job, executor)
    assert record.counts["succeeded"] == 1100
    assert sorted(spec.index for spec in executor.specs) == list(range(1100))
    assert 1 < executor.most["all"] <= 100


async def test_an_attempt_is_counted_on_disk_before_it_is_spawned(store: Store) -> None:
    seen: list[int] = []

    def look(spec: AttemptSpec) -> None:
        with Store.open_for_reading(store.data_dir) as reader:
            seen.append(reader.items.unfinished(reader.jobs.get(spec.job_id), after=-1)[spec.index].attempt)

    await run_job(await started(store, new_job(store, "echo")), Scripted(look))
    assert seen == [1]


class HeldStore:
    """Holds up the commits of a job that a test chooses, until it releases them."""

    def __init__(self, job: RunningJob, monkeypatch: pytest.MonkeyPatch, holds: Callable[..., bool]) -> None:
        self.released, self._write = threading.Event(), job.store.sync.outcomes.write
        self.is_holding = False
        self._holds = holds
        monkeypatch.setattr(job.store.sync.outcomes, "write", self.write)

    def write(
        self,
        job: LedJob,
        attempts: Sequence[NewAttempt],
        outcomes: Sequence[NewOutcome],
        is_again: bool,
        steps: Sequence[NewStep],
        ahead: AheadCounts,
    ) -> list[NewOutcome]:
        if self._holds(outcomes):
            self.is_holding = True
            assert self.released.wait(30)
        return self._write(job, attempts, outcomes, is_again, steps, ahead)


async def test_a_slot_is_free_before_its_outcome_is_committed_and_a_stopped_store_stops_the_intake(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = Scripted()
    job = await started(store, new_job(store, *["echo"] * 60), max_in_flight=4)
    held = HeldStore(job, monkeypatch, bool)
    running = asyncio.create_task(run_job(job, executor))
    await wait_until(lambda: held.is_holding and not job.window.in_flight)
    assert 4 < len(executor.specs) <= 10  # those that were counted ahead, and no more than may wait for the store
    assert (job.progress.done, job.snapshot()["n_in_flight"]) == (0, 0)
    assert store.jobs.get(job.record.id).done == 0
    held.released.set()
    assert (await running).counts["succeeded"] == 60
    assert [spec.index for spec in executor.specs] == list(range(60))


async def test_the_next_request_to_a_stateful_agent_waits_for_the_commit_of_the_last_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = bind_agents([Agent(id="s", model="offline/rules", stateful=True)])
    executor = Scripted()
    job = await started(store, new_job(store, "s", "s"), agents)
    held = HeldStore(job, monkeypatch, bool)
    running = asyncio.create_task(run_job(job, executor))
    await wait_until(lambda: held.is_holding)
    await run_pending_tasks()
    assert len(executor.specs) == 1
    held.released.set()
    assert (await running).counts["succeeded"] == 2
    first, second = (json.loads(spec.context)["history"] for spec in executor.specs)
    assert (len(first), len(second)) == (0, 2)


@pytest.mark.parametrize(("kind", "is_ended"), [("run", True), ("batch", False)])
async def test_a_request_whose_client_waits_ends_at_its_deadline_if_others_keep_it_from_its_agent(
    store: Store, kind: Literal["run", "batch"], is_ended: bool
) -> None:
    agents = bind_agents([Agent(id="s", model="offline/rules", stateful=True, deadline_s=600)])
    slots, executor = Slots(), Scripted()
    of_agent = (Slot(("agent", store.data_dir, DEFAULT_USER, "s"), 1),)
    assert slots.acquire(of_agent)
    late = await start_job(new_job(store, "s", kind=kind), agents, store, load_settings(executor="local"), slots)
    running = asyncio.create_task(run_job(late, executor))
    await wait_until(lambda: late.window.has_waiting)
    late.check_turn(599)
    assert late.ending is None
    late.check_turn(601)
    assert (late.ending is not None) == is_ended
    slots.release(of_agent)
    record = await running
    [result] = store.items.results(record)
    assert (result.error or {}).get("type") == ("deadline_exceeded" if is_ended else None)
    assert len(executor.specs) == (not is_ended)


async def test_a_wait_for_the_store_costs_a_request_nothing_of_the_time_for_its_turn(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = bind_agents([Agent(id="s", model="offline/rules", stateful=True)])
    deadlines, is_back = PausableDeadlines(slow_s=0.0), threading.Event()
    load = type(store.conversations).load

    def load_late(*args: Any, **keywords: Any) -> Any:
        assert is_back.wait(30)
        return load(*args, **keywords)

    monkeypatch.setattr(type(store.conversations), "load", load_late)
    job = await start_job(
        new_job(store, "s", kind="run"), agents, store, load_settings(executor="local"), deadlines=deadlines
    )
    stopwatch, running = deadlines.stopwatch(), asyncio.create_task(run_job(job, Scripted()))
    await wait_until(lambda: deadlines.total_s() > 0.05)
    assert stopwatch.without_pauses(0.05) == 0
    is_back.set()
    assert (await running).counts["succeeded"] == 1


async def test_the_attempts_of_the_next_items_are_counted_before_a_slot_is_free(store: Store) -> None:
    executor = Scripted(lambda spec: asyncio.Event().wait() if spec.index < 3 else None)
    job = await started(store, new_job(store, *["echo"] * 20), max_in_flight=3)
    running = asyncio.create_task(run_job(job, executor))
    await wait_until(lambda: [each.attempt for each in store.items.unfinished(job.record, -1)][:7] == [1] * 6 + [0])
    assert [each.attempts for each in store.items.find(job.record)][:4] == [1, 1, 1, 0]  # as users see them
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [each.attempt for each in store.items.unfinished(job.record, -1)] == [1] * 3 + [0] * 17


async def test_an_attempt_that_a_crashed_driver_only_counted_ahead_is_not_counted(store: Store) -> None:
    job_id = new_job(store, "echo", "echo")
    store.outcomes.write(store.jobs.start(job_id), ahead=AheadCounts([0], [], []))
    executor = Scripted()
    record = await run_job(await started(store, job_id), executor)
    assert sorted((spec.index, spec.attempt) for spec in executor.specs) == [(0, 2), (1, 1)]  # a number is used once
    assert [each.attempts for each in store.items.results(record)] == [1, 1]


async def test_an_error_of_a_commit_ahead_ends_the_job(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    job = await started(store, new_job(store, *["echo"] * 20), max_in_flight=3)
    write = store.outcomes.write

    def fails(*args: Any) -> list[NewOutcome]:
        if args[-1].counted:
            raise StoreError("no such table")
        return write(*args)

    monkeypatch.setattr(store.outcomes, "write", fails)
    with pytest.raises(StoreError, match="no such table"):
        await run_job(job, Scripted())


async def test_times_are_counted_from_the_first_start(store: Store) -> None:
    agents = bind_agents([Agent(id="m", model="offline/rules")])
    record = await run_job(await started(store, new_job(store, "m", "m"), agents), LocalExecutor())
    assert record.ttft_ns is not None
    assert record.total_duration_ns is not None
    assert 0 <= record.ttft_ns <= record.total_duration_ns
    assert all(each.ttft_ns is not None and each.ttft_ns <= each.duration_ns for each in store.items.results(record))


# -- processes that crash


async def test_a_suspect_is_isolated_and_given_up_after_its_attempts(store: Store) -> None:
    def crash(spec: AttemptSpec) -> None:
        if spec.index == 1:
            raise WorkerDiedError("killed by signal 9", is_suspect=True)

    executor = Scripted(crash)
    job = await started(store, new_job(store, "echo", "echo", "echo"), max_attempts=3)
    record = await run_job(job, executor)
    assert statuses(store, record) == ["succeeded", "errored", "succeeded"]
    assert [spec.is_isolated for spec in executor.attempts_of(1)] == [False, True, True]
    assert [spec.attempt for spec in executor.attempts_of(1)] == [1, 2, 3]
    assert [len(executor.attempts_of(index)) for index in (0, 2)] == [1, 1]
    failed = store.items.results(record)[1]
    assert (failed.error, failed.attempts, failed.stop_reason) == (
        {"type": "worker_died", "message": "killed by signal 9"},
        3,
        "error",
    )
    assert list(job.failures) == [
        {"index": 1, "attempt": 3, "stop_reason": "error", "type": "worker_died", "message": "killed by signal 9"}
    ]


async def test_collateral_crashes_do_not_count_towards_max_attempts(store: Store) -> None:
    def crash(spec: AttemptSpec) -> None:
        raise WorkerDiedError("its lane died", is_suspect=spec.attempt in (2, 4, 5))

    executor = Scripted(crash)
    record = await run_job(await started(store, new_job(store, "echo"), max_attempts=3), executor)
    assert [(spec.attempt, spec.is_isolated) for spec in executor.specs] == [
        (1, False),
        (2, False),
        (3, True),
        (4, True),
        (5, True),
    ]
    assert store.items.results(record)[0].attempts == 3


async def test_an_item_that_is_not_a_suspect_is_retried_and_not_isolated(store: Store) -> None:
    def crash(spec: AttemptSpec) -> None:
        if spec.attempt <= 4:
            raise WorkerDiedError("its lane died", is_suspect=False)

    executor = Scripted(crash)
    record = await run_job(await started(store, new_job(store, "echo"), max_attempts=3), executor)
    assert record.counts["succeeded"] == 1
    assert [(spec.attempt, spec.is_isolated) for spec in executor.specs] == [(n, False) for n in range(1, 6)]
    assert store.items.results(record)[0].attempts == 1


async def test_an_item_whose_process_always_crashes_is_given_up(store: Store) -> None:
    def crash(spec: AttemptSpec) -> None:
        raise WorkerDiedError("its lane died", is_suspect=False)

    executor = Scripted(crash)
    record = await run_job(await started(store, new_job(store, "echo"), max_attempts=3), executor)
    assert (record.status, len(executor.specs)) == ("failed", 20)


async def test_an_item_with_many_collateral_crashes_is_isolated(store: Store) -> None:
    def crash(spec: AttemptSpec) -> None:
        if not spec.is_isolated:
            raise WorkerDiedError("its lane died", is_suspect=False)

    executor = Scripted(crash)
    record = await run_job(await started(store, new_job(store, "echo")), executor)
    assert [spec.is_isolated for spec in executor.specs] == [False] * 12 + [True]
    assert (record.status, store.items.results(record)[0].attempts) == ("completed", 1)


async def test_crashes_before_a_restart_of_the_driver_count(store: Store) -> None:
    job_id = new_job(store, "echo")
    store.outcomes.write(store.jobs.start(job_id), [NewAttempt(0, 2, 2)])

    def crash(spec: AttemptSpec) -> None:
        raise WorkerDiedError("killed by signal 11")

    executor = Scripted(crash)
    record = await run_job(await started(store, job_id, max_attempts=3), executor)
    assert [(spec.attempt, spec.is_isolated) for spec in executor.specs] == [(3, True)]
    assert record.counts["errored"] == 1


async def test_collateral_crashes_before_a_restart_of_the_driver_do_not_count(store: Store) -> None:
    job_id = new_job(store, "echo")
    store.outcomes.write(store.jobs.start(job_id), [NewAttempt(0, 6, blamed_crashes=2, collateral_crashes=4)])

    def crash(spec: AttemptSpec) -> None:
        raise WorkerDiedError("killed by signal 11")

    executor = Scripted(crash)
    record = await run_job(await started(store, job_id, max_attempts=3), executor)
    assert [spec.attempt for spec in executor.specs] == [7]
    assert store.items.results(record)[0].attempts == 3


async def test_a_retry_of_a_job_allows_as_many_collateral_crashes_as_its_first_run(store: Store) -> None:
    job_id = new_job(store, "echo")
    store.outcomes.write(
        store.jobs.start(job_id), [NewAttempt(0, 20, collateral_crashes=19)]
    )  # as it was when it was given up

    def crash(spec: AttemptSpec) -> None:
        if spec.attempt < 30:
            raise WorkerDiedError("its lane died", is_suspect=False)

    record = await run_job(await started(store, job_id), Scripted(crash))
    assert (record.status, store.items.results(record)[0].attempts) == ("completed", 2)


async def test_an_attempt_that_cannot_be_spawned_is_its_items_outcome(store: Store) -> None:
    def refuse(spec: AttemptSpec) -> None:
        if spec.index == 0:
            raise InvalidToolCallError("too_large", "why")

    record = await run_job(await started(store, new_job(store, "echo", "echo")), Scripted(refuse))
    assert statuses(store, record) == ["errored", "succeeded"]
    assert store.items.results(record)[0].stop_reason == "invalid_tool_call"


async def test_a_lane_that_never_answers_is_given_up_after_the_deadline(store: Store) -> None:
    agents = bind_agents([Agent(id="a", run=echo, deadline_s=0.05), Agent(id="echo", run=echo)])
    executor = Scripted(lambda spec: asyncio.Event().wait() if spec.index == 0 else None)
    job = await started(store, new_job(store, "a", "echo"), agents, deadline_grace_s=0.05)
    record = await run_job(job, executor)
    assert statuses(store, record) == ["errored", "succeeded"]
    first = store.items.results(record)[0]
    assert first.error is not None
    assert (first.error["type"], executor.cancelled) == ("deadline_exceeded", [0])
    assert first.duration_ns >= 100_000_000


# -- control


async def test_a_canceled_job_keeps_its_outcomes_and_cancels_the_rest(store: Store) -> None:
    executor = Scripted(lambda spec: asyncio.Event().wait() if spec.index >= 2 else None)
    job = await started(store, new_job(store, *["echo"] * 700), max_in_flight=4)
    running = asyncio.create_task(run_job(job, executor))
    await wait_until(lambda: job.progress.done == 2 and executor.running["all"] == 4)
    job.cancel()
    record = await running
    assert (record.status, record.stop_reason) == ("cancelled", "cancelled")
    assert record.counts == {"succeeded": 2, "errored": 0, "canceled": 698, "expired": 0}
    assert record.progress is not None
    assert record.progress.counts == record.counts
    assert sorted(executor.cancelled) == [2, 3, 4, 5]


async def test_an_interrupted_job_continues_where_it_stopped_and_runs_nothing_twice(store: Store) -> None:
    job_id = new_job(store, *["echo"] * 40)
    first = Scripted(lambda spec: asyncio.Event().wait() if spec.index >= 15 else None)
    job = await started(store, job_id, max_in_flight=5)
    running = asyncio.create_task(run_job(job, first))
    await wait_until(lambda: job.progress.done == 15 and first.running["all"] == 5)
    job.interrupt()
    with pytest.raises(JobInterruptedError, match=job_id):
        await running
    record = store.jobs.get(job_id)
    assert (record.status, record.is_ended, record.done) == ("running", False, 15)
    second = Scripted()
    job = await started(store, job_id, max_in_flight=5)
    assert job.progress.done == 15
    record = await run_job(job, second)
    assert (record.status, record.counts["succeeded"]) == ("completed", 40)
    assert sorted(spec.index for spec in second.specs) == list(range(15, 40))
    assert {spec.index: spec.attempt for spec in second.specs} == {i: 2 if i < 20 else 1 for i in range(15, 40)}
    assert record.progress is not None
    assert record.progress.done == 40


async def test_a_cancelled_wait_leaves_the_job_to_be_resumed(store: Store) -> None:
    executor = Scripted(lambda spec: asyncio.Event().wait())
    watcher = Watcher()
    job = await started(store, new_job(store, "echo", "echo"))
    running = asyncio.create_task(run_job(job, executor, [watcher]))
    await wait_until(lambda: executor.running["all"] == 2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (executor.running["all"], watcher.n_closed) == (0, 1)
    assert not store.jobs.get(job.record.id).is_ended


async def test_a_paused_job_starts_nothing_until_it_is_unpaused(store: Store) -> None:
    gate = asyncio.Event()
    executor = Scripted(lambda spec: gate.wait() if spec.index < 2 else None)
    job = await started(store, new_job(store, *["echo"] * 6), max_in_flight=2)
    running = asyncio.create_task(run_job(job, executor))
    await wait_until(lambda: executor.running["all"] == 2)
    job.steer(ControlRequest(is_paused=True))
    gate.set()
    await wait_until(lambda: job.progress.done == 2)
    assert (len(executor.specs), job.snapshot()["is_paused"]) == (2, True)
    job.steer(ControlRequest(is_paused=False))
    assert (await running).counts["succeeded"] == 6


async def test_the_window_can_be_set_while_a_job_runs(store: Store) -> None:
    gate = asyncio.Event()
    executor = Scripted(lambda spec: gate.wait())
    job = await started(store, new_job(store, *["echo"] * 9), max_in_flight=2)
    running = asyncio.create_task(run_job(job, executor))
    await wait_until(lambda: executor.running["all"] == 2)
    job.steer(ControlRequest(max_in_flight=7))
    await wait_until(lambda: executor.running["all"] == 7)
    gate.set()
    await running
    assert executor.most["all"] == 7


async def test_one_slow_provider_does_not_hold_up_the_others(store: Store) -> None:
    providers = {"slow": Provider(protocol="openai", base_url="http://h", max_in_flight=2)}
    agents = bind_agents([Agent(id="s", model="slow/m"), Agent(id="m", model="offline/rules")], providers, {})
    gate = asyncio.Event()

    async def refuse_after_gate() -> None:
        await gate.wait()
        raise InvalidToolCallError("no_network", "this provider is not real")

    executor = Scripted(lambda spec: refuse_after_gate() if spec.agent.agent.id == "s" else None)
    job = await started(store, new_job(store, *["s"] * 20, *["m"] * 20), agents, max_in_flight=8)
    running = asyncio.create_task(run_job(job, executor))
    await wait_until(lambda: job.progress.done == 20)
    assert (executor.running["slow"], job.progress.counts["succeeded"]) == (2, 20)
    gate.set()
    record = await running
    assert record.counts["errored"] == 20
    assert (executor.most["slow"], executor.most["all"] <= 8) == (2, True)


async def test_all_jobs_share_the_limit_of_a_provider(store: Store) -> None:
    providers = {"slow": Provider(protocol="offline", max_in_flight=3)}
    agents = bind_agents([Agent(id="s", model="slow/rules"), Agent(id="m", model="offline/rules")], providers, {})
    slots, gate = Slots(), asyncio.Event()
    executor = Scripted(lambda spec: gate.wait() if spec.agent.agent.id == "s" else None)
    settings = load_settings(executor="local", max_in_flight=8)
    job_ids = [new_job(store, *["s"] * 5, *["m"] * 5) for _ in range(3)]
    jobs = [await start_job(job_id, agents, store, settings, slots) for job_id in job_ids]
    running = [asyncio.create_task(run_job(job, executor)) for job in jobs]
    await wait_until(lambda: [job.progress.done for job in jobs] == [5] * 3 and executor.running["slow"] == 3)
    gate.set()
    records = await asyncio.gather(*running)
    assert [record.counts["succeeded"] for record in records] == [10] * 3
    assert executor.most["slow"] == 3


async def test_channels_see_the_job_and_control_it(store: Store) -> None:
    gate = asyncio.Event()
    executor = Scripted(lambda spec: gate.wait())
    watcher = Watcher(max_in_flight=3)
    job = await started(store, new_job(store, *["echo"] * 5, "fail"), max_in_flight=1)
    running = asyncio.create_task(run_job(job, executor, [watcher]))
    await wait_until(lambda: executor.running["all"] == 3)
    await wait_until(lambda: watcher.snapshots[-1]["n_in_flight"] == 3)
    live = watcher.snapshots[-1]
    assert (live["id"], live["max_in_flight"], live["is_canceled"]) == (job.record.id, 3, False)
    assert [(each["index"], each["agent_id"], each["attempt"]) for each in live["in_flight"]] == [
        (index, "echo", 1) for index in range(3)
    ]
    gate.set()
    await running
    last = watcher.snapshots[-1]
    assert (last["progress"]["counts"]["succeeded"], last["n_in_flight"], last["in_flight"]) == (5, 0, [])
    assert [failure["type"] for failure in last["failures"]] == ["LookupError"]
    assert json.loads(json.dumps(last)) == last
    assert watcher.n_closed == 1


async def test_a_control_request_is_carried_out_once(store: Store) -> None:
    gate = asyncio.Event()
    watcher = Watcher(max_in_flight=3)
    job = await started(store, new_job(store, "echo"), max_in_flight=1)
    running = asyncio.create_task(run_job(job, Scripted(lambda spec: gate.wait()), [watcher]))
    await wait_until(lambda: job.window.size == 3)
    job.steer(ControlRequest(max_in_flight=5))  # from elsewhere
    watcher.failures = [None, ValueError("broken"), None]  # and lost updates repeat no request
    n_seen = len(watcher.snapshots)
    await wait_until(lambda: len(watcher.snapshots) >= n_seen + 5)
    assert job.window.size == 5
    gate.set()
    await running


async def test_a_snapshot_stays_small(store: Store) -> None:
    executor = Scripted(lambda spec: asyncio.Event().wait() if spec.agent.agent.id == "echo" else None)
    job = await started(store, new_job(store, *["fail"] * 50, *["echo"] * 300), max_in_flight=300)
    running = asyncio.create_task(run_job(job, executor))
    await wait_until(lambda: job.progress.done == 50 and executor.running["all"] == 300)
    live = job.snapshot()
    assert (live["n_in_flight"], len(live["in_flight"]), len(live["failures"])) == (300, 100, 20)
    job.interrupt()
    with pytest.raises(JobInterruptedError):
        await running


# -- failures that stop a job


async def test_a_store_that_fails_ends_the_job_cleanly(store: Store) -> None:
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))

    def break_the_store(spec: AttemptSpec) -> None:
        if spec.index == 20:
            with store.database.transaction() as connection:
                connection.execute(sa.text("DROP TABLE attempts"))

    executor = Scripted(break_the_store)
    watcher = Watcher()
    job = await started(store, new_job(store, *["echo"] * 200), max_in_flight=16)
    with pytest.raises(StoreError, match="no such table: attempts"):
        await run_job(job, executor, [watcher])
    assert executor.running["all"] == 0
    assert watcher.n_closed == 1
    record = store.jobs.get(job.record.id)
    assert (record.status, record.is_ended) == ("running", False)
    del job, executor
    gc.collect()
    await run_pending_tasks()
    gc.collect()
    assert complaints == []


async def test_a_cluster_that_is_gone_ends_the_job_and_keeps_what_was_recorded(store: Store) -> None:
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))

    def vanish(spec: AttemptSpec) -> None:
        if spec.index >= 20:
            raise ClusterError("Ray is gone")

    job = await started(store, new_job(store, *["echo"] * 50), max_in_flight=4)
    with pytest.raises(ClusterError, match="Ray is gone"):
        await run_job(job, Scripted(vanish))
    gc.collect()
    record = store.jobs.get(job.record.id)
    assert not record.is_ended
    assert record.done >= 17
    record = await run_job(await started(store, record.id), LocalExecutor())
    assert record.counts["succeeded"] == 50
    assert complaints == []


async def test_a_finished_job_runs_nothing_again(store: Store) -> None:
    job_id = new_job(store, "echo", "fail")
    ended = await run_job(await started(store, job_id), LocalExecutor())
    with pytest.raises(JobEndedError):
        await started(store, job_id)
    assert store.jobs.get(job_id) == ended


async def test_invalid_control_requests_are_ignored_and_later_ones_carried_out(store: Store) -> None:
    class Watcher:
        """A control channel that first asks for nonsense."""

        def __init__(self) -> None:
            nonsense: list[dict[str, Any]] = [{"max_in_flight": 0}, {"max_in_flight": "many"}]
            self.requests = [*nonsense, {"is_canceled": True}]
            self.is_closed = False

        async def update(self, snapshot: dict[str, Any]) -> dict[str, Any]:
            return self.requests.pop(0) if len(self.requests) > 1 else self.requests[0]

        def close(self) -> None:
            self.is_closed = True

    watcher = Watcher()
    job = await started(store, new_job(store, "echo"))
    record = await run_job(job, Scripted(lambda spec: asyncio.Event().wait()), [watcher])

    assert record.status == "cancelled"
    assert watcher.is_closed


# -- deadlines


async def test_a_job_expires_at_its_deadline_and_keeps_what_is_done(store: Store) -> None:
    executor = Scripted(lambda spec: asyncio.Event().wait() if spec.index >= 2 else None)
    job = await started(store, new_job(store, *["echo"] * 700), max_in_flight=4, job_deadline_s=1)
    record = await run_job(job, executor)
    assert (record.status, record.stop_reason) == ("expired", "error")
    assert record.counts == {"succeeded": 2, "errored": 0, "canceled": 0, "expired": 698}
    last = store.items.results(record, after_index=698)[0]
    assert last.error == {
        "type": "job_expired",
        "message": "not done by its job's deadline, 1 s after the job was made",
    }
    assert (last.status, sorted(executor.cancelled)) == ("expired", [2, 3, 4, 5])


async def test_a_job_whose_end_was_interrupted_is_still_expired(store: Store) -> None:
    job_id = new_job(store, "echo", "echo")
    made_at(store, job_id, hours_ago=2)
    job = await started(store, job_id, job_deadline_s=3600)
    run_all(
        store.outcomes.end_unfinished(job.record, *expired(job.settings).of_items)
    )  # as by an earlier try that did not come to an end
    record = await run_job(job, Scripted())
    assert (record.status, record.counts["expired"]) == ("expired", 2)


async def test_crashed_attempts_count_towards_the_deadline(store: Store) -> None:
    def crash(spec: AttemptSpec) -> None:
        if spec.attempt < 4:
            raise WorkerDiedError("it died", is_suspect=False, ran_s=0.4)

    executor = Scripted(crash)
    agents = bind_agents([Agent(id="echo", run=echo, deadline_s=1)])
    record = await run_job(await started(store, new_job(store, "echo"), agents), executor)
    assert [spec.left_s for spec in executor.specs] == [1, pytest.approx(0.6), pytest.approx(0.2)]
    [result] = store.items.results(record)
    assert result.error == {"type": "deadline_exceeded", "message": "its time was used up when it died"}


async def test_a_cancel_before_a_crash_is_carried_out_at_the_next_start(store: Store) -> None:
    job_id = new_job(store, *["echo"] * 5)
    store.leases.request(store.jobs.get(job_id), is_canceled=True)
    executor = Scripted()
    record = await run_job(await started(store, job_id), executor)
    assert (record.status, record.counts["canceled"], executor.specs) == ("cancelled", 5, [])


async def test_a_jobs_deadline_counts_from_its_creation_over_restarts(store: Store) -> None:
    job_id = new_job(store, "echo", "echo")
    made_at(store, job_id, hours_ago=2)
    executor = Scripted()
    record = await run_job(await started(store, job_id, job_deadline_s=3600), executor)
    assert (record.status, record.counts["expired"], executor.specs) == ("expired", 2, [])


async def test_a_job_that_is_opened_again_has_its_whole_time_again(store: Store) -> None:
    job_id = new_job(store, "echo")
    made_at(store, job_id, hours_ago=2)
    assert (await run_job(await started(store, job_id, job_deadline_s=3600), Scripted())).status == "expired"
    store.jobs.reopen(job_id)
    record = await run_job(await started(store, job_id, job_deadline_s=3600), Scripted())
    assert (record.status, record.counts) == ("completed", {"succeeded": 1, "errored": 0, "canceled": 0, "expired": 0})


async def test_an_idle_job_expires_too_and_only_at_its_deadline(store: Store) -> None:
    young, old = new_job(store, "echo"), new_job(store, "echo", "echo")
    made_at(store, old, hours_ago=2)
    settings = load_settings(job_deadline_s=3600)
    assert not run_all(expire_idle_job(store, store.jobs.get(young), settings))
    assert run_all(expire_idle_job(store, store.jobs.get(old), settings))
    assert not run_all(expire_idle_job(store, store.jobs.get(old), settings))
    assert [store.jobs.get(job_id).status for job_id in (young, old)] == ["created", "expired"]
    assert store.jobs.get(old).counts["expired"] == 2


def made_at(store: Store, job_id: str, *, hours_ago: float) -> None:
    """Change the time at which a job was created."""
    then = (datetime.now(UTC) - timedelta(hours=hours_ago)).isoformat(timespec="microseconds")
    with store.database.transaction() as connection:
        connection.execute(sa.text("UPDATE jobs SET created_at = :then WHERE id = :id"), {"then": then, "id": job_id})


async def test_an_item_that_makes_no_progress_is_logged(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    agents = bind_agents([Agent(id="p", run=echo, placement="process", deadline_s=0.05), Agent(id="echo", run=echo)])
    executor = Scripted(lambda spec: asyncio.Event().wait() if spec.index == 0 else None)
    job = await started(store, new_job(store, "p", "echo"), agents, deadline_grace_s=0.05)
    running = asyncio.create_task(run_job(job, executor))
    await wait_until(lambda: bool(job.snapshot()["stalled"]))
    [stalled] = job.snapshot()["stalled"]
    assert (stalled["index"], stalled["agent_id"], stalled["attempt"]) == (0, "p", 1)
    assert [each.getMessage() for each in caplog.records if "no progress" in each.getMessage()] == [
        f"job {job.record.id}: item 0 makes no progress (agent 'p', attempt 1)"
    ]
    job.cancel()
    assert (await running).counts["canceled"] == 1


async def test_a_slow_channel_does_not_delay_a_cancel_from_another(store: Store) -> None:
    class Slow(Watcher):
        async def update(self, snapshot: dict[str, Any]) -> dict[str, Any]:
            if not self.n_closed and not job.ending:
                await asyncio.Event().wait()
            return {}

    job = await started(store, new_job(store, "echo"))
    executor = Scripted(lambda spec: asyncio.Event().wait())
    async with asyncio.timeout(20):
        record = await run_job(job, executor, [Slow(), Watcher(is_canceled=True)])
    assert record.status == "cancelled"


async def test_a_cancel_does_not_wait_for_items_that_cannot_be_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await started(store, new_job(store, *["echo"] * 10), max_in_flight=20)
    executor, unfinished = Scripted(lambda spec: asyncio.Event().wait()), store.items.unfinished

    def out_of_reach(record: JobRecord, after: int, *, until: int) -> list[PendingItem]:
        if after < 0:
            return unfinished(record, after, until=until)
        raise StoreUnavailableError("locked")

    monkeypatch.setattr(job.store.items, "unfinished", job.store.on(out_of_reach))
    running = asyncio.ensure_future(run_job(job, executor))
    await wait_until(lambda: executor.running["all"] == 10)
    job.cancel()
    assert (await running).status == "cancelled"
    assert sorted(executor.cancelled) == list(range(10))


async def test_a_cancel_from_a_channel_is_stored_for_the_next_run(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await started(store, new_job(store, *["echo"] * 10), max_in_flight=20)
    executor, end_unfinished = Scripted(lambda spec: asyncio.Event().wait()), store.outcomes.end_unfinished
    asked: list[dict[str, Any]] = []

    def end(*arguments: Any) -> Chunked[int]:
        asked.append(store.leases.requested(job.record))  # the last moment at which its driver could crash
        return (yield from end_unfinished(*arguments))

    monkeypatch.setattr(job.store.outcomes, "end_unfinished", job.store.on_chunked(end))
    record = await run_job(job, executor, [Watcher(is_canceled=True)])
    assert (record.status, asked) == ("cancelled", [{"is_canceled": True}])


async def test_a_cancel_that_its_channel_keeps_is_not_stored_twice(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await started(store, new_job(store, *["echo"] * 10), max_in_flight=20)
    executor, end_unfinished = Scripted(lambda spec: asyncio.Event().wait()), store.outcomes.end_unfinished
    channel = ControlFile(store.data_dir, job.record.id)
    kept: list[Any] = []

    def end(*arguments: Any) -> Chunked[int]:
        kept.append((store.leases.requested(job.record), channel.read()))
        return (yield from end_unfinished(*arguments))

    monkeypatch.setattr(job.store.outcomes, "end_unfinished", job.store.on_chunked(end))
    running = asyncio.ensure_future(run_job(job, executor, [channel]))
    await wait_until(lambda: executor.running["all"] == 10)
    leave_request(store.data_dir, None, job.record.id, ControlRequest(is_canceled=True))
    assert ((await running).status, kept) == ("cancelled", [({}, {"is_canceled": True})])
    assert channel.read() == {"is_canceled": True}  # until the runtime clears it: the end may not be committed


async def test_a_cancel_that_a_channel_keeps_over_a_crash_starts_no_item(store: Store) -> None:
    job_id = new_job(store, *["echo"] * 10)
    leave_request(store.data_dir, None, job_id, ControlRequest(is_canceled=True))
    executor = Scripted()
    record = await run_job(await started(store, job_id), executor, [ControlFile(store.data_dir, job_id)])
    assert (record.status, record.counts["canceled"], executor.specs) == ("cancelled", 10, [])

"""Run a job: read its items, keep the window full, record each outcome once, end the job."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from batchray.agents import Report, read_report
from batchray.cluster import Executor, Link, Order
from batchray.config import AgentSet, Settings
from batchray.context import Turns, context_of, with_sequel
from batchray.control import Wishes
from batchray.errors import DeadlineExceededError, JobInterruptedError, RequestError, StoreError, WorkerDiedError
from batchray.progress import Progress
from batchray.store import JobRecord, NewOutcome, PendingItem, Sequel, Store
from batchray.window import Keys, Window

logger = logging.getLogger(__name__)

_BEAT_S = 0.25
_N_SHOWN = 100  # in-flight items in a snapshot, the oldest ones
_N_FAILURES = 20
# Of items that wait where their provider or their agent is at its limit; with each what it takes beside its request.
_MAX_WAITING_BYTES = 64 * 1024 * 1024
_ITEM_BYTES = 512
# An item that is no suspect goes on after a death of its process, but not for ever.
_MAX_LOST_ATTEMPTS = 20


async def run_job(job: RunningJob, store: Store, executor: Executor, links: Sequence[Link] = ()) -> JobRecord:
    """Run every item that has no outcome yet, record each outcome once, then end the job.

    Returns the ended job.  Raises JobInterruptedError when it was stopped before its end, and ClusterError or
    StoreError when it cannot go on; what is recorded stays, and a later run goes on from there.
    """
    beats = asyncio.create_task(_beat(job, links))
    try:
        async with aclosing(job.window.run(_pending(job, store), job.attend(store, executor))) as finished:
            async for outcomes in finished:
                job.count(outcomes)
        await job.ledger(store).drain()
        if job.is_interrupted:
            raise JobInterruptedError(job.record.id)
        return await _end(job, store)
    finally:
        await job.ledger(store).drain()
        beats.cancel()
        with suppress(asyncio.CancelledError):
            await beats
        for link in links:
            await link.update(job.snapshot())
            link.close()


async def start_job(
    job_id: str, agents: AgentSet, store: Store, settings: Settings, turns: Turns | None = None
) -> RunningJob:
    """Mark a job as running here, with its progress so far read from the store.

    `turns` are those that all jobs of this process share.
    """
    record = await store.call(store.start_job, job_id)
    progress = await store.call(_rebuild_progress, store, record)
    return RunningJob(record, agents, settings, progress, turns or Turns())


class RunningJob:
    """A job while this process runs it: its window, its live counts, and how it is steered."""

    def __init__(
        self, record: JobRecord, agents: AgentSet, settings: Settings, progress: Progress, turns: Turns
    ) -> None:
        self.record, self.agents, self.settings, self.progress = record, agents, settings, progress
        self._turns = turns
        self._keys, limits = _limited(agents)
        self.window: Window[PendingItem, NewOutcome | None] = Window(
            settings.max_in_flight,
            keys=lambda item: self._keys[item.agent_id],
            limits=limits,
            weight=lambda item: len(item.request) + _ITEM_BYTES,
            max_waiting=_MAX_WAITING_BYTES,
        )
        self.is_canceled, self.is_interrupted = False, False
        self.failures: deque[dict[str, Any]] = deque(maxlen=_N_FAILURES)
        self.first_start_ns: int | None = None
        self.first_token_ns: int | None = None
        self._is_resumed = progress.done > 0
        self._accepted_ns = time.monotonic_ns() - _age_ns(record.created_at)
        self._in_flight: dict[int, tuple[PendingItem, int, int]] = {}
        self._ledger: Ledger | None = None

    def ledger(self, store: Store) -> Ledger:
        """Return the job's way into the store."""
        self._ledger = self._ledger or Ledger(store, self.record)
        return self._ledger

    def attend(self, store: Store, executor: Executor) -> Callable[[PendingItem], Any]:
        """Return the function that sees one item through to its recorded outcome."""
        ledger = self.ledger(store)

        async def attend(item: PendingItem) -> NewOutcome | None:
            agent = self.agents.agents[item.agent_id].agent
            if not agent.stateful:
                return await see_through(item)
            async with self._turns.of((store.data_dir, self.record.user_id, agent.id)):
                return await see_through(item)

        async def see_through(item: PendingItem) -> NewOutcome | None:
            attempt, deaths = item.attempt, item.deaths
            while True:
                attempt += 1
                await ledger.begin(item.index, attempt, deaths)  # counted before it is spawned
                self._in_flight[item.index] = (item, attempt, time.monotonic_ns())
                try:
                    outcome = await self._attempt(store, executor, item, attempt, deaths)
                except WorkerDiedError as error:
                    deaths += error.is_suspect
                    if deaths < self.settings.max_attempts and attempt < _MAX_LOST_ATTEMPTS:
                        continue
                    outcome = self._failed(item.index, attempt, RequestError("worker_died", str(error)))
                finally:
                    del self._in_flight[item.index]
                outcome = with_sequel(outcome, self.agents.agents[item.agent_id].agent, item)
                return outcome if await ledger.record(outcome) else None

        return attend

    def count(self, outcomes: Sequence[NewOutcome | None]) -> None:
        """Count outcomes that are on disk."""
        for outcome in outcomes:
            if outcome is None:
                continue
            timing = {"ttft_ns": outcome.ttft_ns, "duration_ns": outcome.duration_ns, "queued_ns": outcome.queued_ns}
            self.progress.record(outcome.status, timing, outcome.usage)
            if outcome.error:
                agent_attempt = {"index": outcome.index, "attempt": outcome.attempt, "stop_reason": outcome.stop_reason}
                self.failures.append({**agent_attempt, **outcome.error})

    def steer(self, wishes: Wishes) -> None:
        """Do what was asked for: pause or go on, set the window, cancel."""
        if wishes.is_paused is not None:
            self.window.pause(wishes.is_paused)
        if wishes.max_in_flight is not None:
            self.window.resize(wishes.max_in_flight)
        if wishes.is_canceled:
            self.cancel()

    def cancel(self) -> None:
        """End the job now: what runs is stopped, every item without an outcome is canceled."""
        self.is_canceled = True
        self.window.stop()

    def interrupt(self) -> None:
        """Leave the job unfinished: what runs is stopped, and items without an outcome wait for a resume."""
        self.is_interrupted = True
        self.window.stop()

    def snapshot(self) -> dict[str, Any]:
        """Return the live state as plain data of fixed size."""
        now = time.monotonic_ns()
        oldest = [
            {"index": index, "agent_id": item.agent_id, "attempt": attempt, "age_ns": now - started_ns}
            for (index, (item, attempt, started_ns)), _ in zip(self._in_flight.items(), range(_N_SHOWN), strict=False)
        ]
        return {
            "id": self.record.id,
            "progress": self.progress.to_dict(),
            "n_in_flight": self.window.in_flight,
            "in_flight": oldest,
            "failures": list(self.failures),
            "max_in_flight": self.window.size,
            "is_paused": self.window.is_paused,
            "is_canceled": self.is_canceled,
        }

    def durations(self) -> tuple[int | None, int]:
        """Return time to first token and total duration, in ns from the first item's start.

        Of a job that was resumed the total is by the wall clock, since a monotonic clock ends with its machine's boot.
        """
        now = time.monotonic_ns()
        started = self.first_start_ns if self.first_start_ns is not None else now
        total = _age_ns(self.record.started_at or self.record.created_at) if self._is_resumed else now - started
        ttft = self.first_token_ns - started if self.first_token_ns is not None else None
        return ttft, total

    async def _attempt(
        self, store: Store, executor: Executor, item: PendingItem, attempt: int, deaths: int
    ) -> NewOutcome:
        bound = self.agents.agents[item.agent_id]
        try:
            context = await context_of(store, self.record, bound.agent, item)
        except RequestError as error:
            return self._failed(item.index, attempt, error)
        order = Order(bound, self.record.id, item.index, attempt, item.request, deaths > 0, context)
        # A process may wait long for its CPUs before it starts; a lane starts at once, and answers by the deadline.
        is_queued = order.is_alone or bound.agent.placement == "process"
        limit_s = None if is_queued else bound.agent.deadline_s + self.settings.deadline_grace_s
        try:
            async with asyncio.timeout(limit_s):
                reported = await executor.run(order)
        except TimeoutError:
            late = DeadlineExceededError("deadline_exceeded", "its lane gave no answer by its deadline")
            return self._failed(item.index, attempt, late)
        except RequestError as error:
            return self._failed(item.index, attempt, error)
        return self._read(reported)

    def _read(self, reported: bytes) -> NewOutcome:
        """Take a report in, and place its start and first token on this process's clock."""
        report = read_report(reported)
        started = time.monotonic_ns() - report.duration_ns
        self.first_start_ns = started if self.first_start_ns is None else min(self.first_start_ns, started)
        if report.ttft_ns is not None:
            token = started + report.ttft_ns
            self.first_token_ns = token if self.first_token_ns is None else min(self.first_token_ns, token)
        return NewOutcome(
            report.index,
            report.attempt,
            report.status,
            report.stop_reason,
            report.error,
            report.usage,
            max(started - self._accepted_ns, 0),
            report.ttft_ns,
            report.duration_ns,
            report.messages,
            _sequel_of(report),
        )

    def _failed(self, index: int, attempt: int, error: RequestError) -> NewOutcome:
        """Return the outcome of an item from whose attempt nothing came back."""
        _, _, started_ns = self._in_flight[index]
        duration_ns = time.monotonic_ns() - started_ns
        described = {"type": error.type, "message": error.message}
        queued_ns = max(started_ns - self._accepted_ns, 0)
        return NewOutcome(
            index, attempt, "errored", error.stop_reason, described, {}, queued_ns, None, duration_ns, b"[]"
        )


class Ledger:
    """Group commits: what all items ask to be written goes to disk together, at most every `interval_s`."""

    def __init__(self, store: Store, job: JobRecord, interval_s: float = 0.02) -> None:
        self._store, self._job, self._interval_s = store, job, interval_s
        self._attempts: list[tuple[int, int, int]] = []
        self._outcomes: list[NewOutcome] = []
        self._waiting: asyncio.Future[set[int]] | None = None
        self._flushing: asyncio.Task[None] | None = None

    async def begin(self, index: int, attempt: int, deaths: int) -> None:
        """Count an attempt; on disk when this returns."""
        self._attempts.append((index, attempt, deaths))
        await self._committed()

    async def record(self, outcome: NewOutcome) -> bool:
        """Record an outcome and tell whether it was taken; on disk when this returns."""
        self._outcomes.append(outcome)
        return outcome.index in await self._committed()

    async def drain(self) -> None:
        """Wait until all that was handed in is on disk."""
        if self._flushing is not None:
            await self._flushing

    async def _committed(self) -> set[int]:
        if self._waiting is None:
            self._waiting = asyncio.get_running_loop().create_future()
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())
        return await asyncio.shield(self._waiting)

    async def _flush(self) -> None:
        """Commit until nothing is left.  While one commit is on its way to disk the next one gathers."""
        while self._waiting is not None:
            attempts, outcomes, waiting = self._attempts, self._outcomes, self._waiting
            self._attempts, self._outcomes, self._waiting = [], [], None
            try:
                taken = await self._store.call(self._store.write, self._job, attempts, outcomes)
            except Exception as error:  # noqa: BLE001  # every waiter has to hear of it; the job ends with it
                waiting.set_exception(error)
                waiting.exception()  # a waiter may be gone; that is no fault of its own
            else:
                waiting.set_result({outcome.index for outcome in taken})
            await asyncio.sleep(self._interval_s)


def _limited(agents: AgentSet) -> tuple[dict[str, Keys], dict[Hashable, int]]:
    """Return what limits the requests of each agent, and by how much: its provider, and itself where it is stateful."""
    providers = agents.limits()
    limits: dict[Hashable, int] = {("provider", name): n for name, n in providers.items()}
    keys: dict[str, Keys] = {}
    for agent_id, bound in agents.agents.items():
        name, agent_key = bound.agent.provider_name, ("agent", agent_id)
        keys[agent_id] = (("provider", name),) if name in providers else ()
        if bound.agent.stateful:
            keys[agent_id] += (agent_key,)
            limits[agent_key] = 1
    return keys, limits


def _sequel_of(report: Report) -> Sequel | None:
    if not report.pending and not report.memory:
        return None
    return Sequel("", pending=report.pending, memory=report.memory)


async def _pending(job: RunningJob, store: Store) -> AsyncIterator[PendingItem]:
    """Read the items without an outcome, a page at a time."""
    last = -1
    while page := await store.call(store.unfinished, job.record, last):
        for item in page:
            yield item
        last = page[-1].index


async def _beat(job: RunningJob, links: Sequence[Link]) -> None:
    """Hand out snapshots and take wishes in, a few times a second."""
    heard: dict[Link, dict[str, Any]] = {link: {} for link in links}
    while links:
        for link in links:
            control = await link.update(job.snapshot())
            news = {name: wish for name, wish in control.items() if heard[link].get(name) != wish}
            heard[link] = control
            try:
                job.steer(Wishes.model_validate(news))
            except ValidationError as error:
                logger.warning("job %s: a wish is ignored: %s", job.record.id, error)
        await asyncio.sleep(_BEAT_S)


async def _end(job: RunningJob, store: Store) -> JobRecord:
    """Write the job's end: how it ended, how long it took."""
    if job.is_canceled:
        await store.call(store.end_unfinished, job.record, "canceled", "cancelled", None)
        job.progress = await store.call(_rebuild_progress, store, job.record)
        status, stop_reason = "cancelled", "cancelled"
    elif (left := job.record.total - job.progress.done) > 0:
        raise StoreError(f"job {job.record.id} came to its end with {left} items without an outcome")
    elif job.progress.counts["succeeded"]:
        status, stop_reason = "completed", "end_turn"
    else:
        status, stop_reason = "failed", "error"
    logger.info("job %s: %s", job.record.id, status, extra={"job_id": job.record.id})
    return await store.call(store.end_job, job.record.id, status, stop_reason, job.progress, *job.durations())


def cancel_at_rest(store: Store, job_id: str) -> None:
    """Cancel a job that no process runs.  One that has ended stays as it is."""
    record = store.job(job_id)
    if not record.is_ended:
        store.end_unfinished(record, "canceled", "cancelled", None)
        progress = _rebuild_progress(store, record)
        store.end_job(job_id, "cancelled", "cancelled", progress, None, 0)


def _rebuild_progress(store: Store, record: JobRecord) -> Progress:
    progress = Progress(total=record.total)
    for status, timing, usage in store.timings(record):
        progress.record(status, timing, usage)
    return progress


def _age_ns(timestamp: str) -> int:
    age = datetime.now(UTC) - datetime.fromisoformat(timestamp)
    return max(int(age.total_seconds() * 1e9), 0)

"""A job while this process runs it: its window, its live counts, its items one by one, and how it is steered."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from typing import Any, NamedTuple

from batchray.agents import SaveCheckpoints, completed_work, read_report
from batchray.config import AgentSet, Settings
from batchray.errors import DeadlineExceededError, RequestError, WorkerDiedError
from batchray.executors import AttemptSpec, Executor
from batchray.jobs.context import conversation_update_of, load_context, with_conversation_update
from batchray.jobs.control import ControlRequest
from batchray.jobs.deadlines import PausableDeadlines
from batchray.jobs.group_commit import GroupCommitter
from batchray.jobs.in_flight import InFlight
from batchray.jobs.slots import KeyedSemaphore, slots_of, window_limits
from batchray.jobs.window import Window
from batchray.schema.progress import Progress
from batchray.store import JobRecord, NewAttempt, NewOutcome, NewStep, PendingItem, RetryingStore, Store

_N_SHOWN = 100  # in-flight items in a snapshot, the oldest ones
_N_FAILURES = 20
# Of an attempt's own deadline and grace, which end an attempt on a lane.
_PATIENCE = 2.0
# Of items that wait where their provider or their agent is at its limit; with each what it takes beside its request.
_MAX_WAITING_BYTES = 64 * 1024 * 1024
_ITEM_BYTES = 512
# Attempts that ended with a death of another's doing are not an item's own, but it does not go on for ever.
_MAX_LOSSES = 20
_MAX_SHARED_LOSSES = 12


class Ending(NamedTuple):
    """How a job ends before all of its items have an outcome.

    `of_items` are status, stop reason and error of those that have none.
    """

    status: str
    stop_reason: str
    of_items: tuple[str, str, Mapping[str, str] | None]


CANCELED = Ending("cancelled", "cancelled", ("canceled", "cancelled", None))


def expired(settings: Settings) -> Ending:
    """Return the ending of a job whose deadline has passed."""
    message = f"not done by its job's deadline, {settings.job_deadline_s:g} s after the job was made"
    return Ending("expired", "error", ("expired", "error", {"type": "job_expired", "message": message}))


class RunningJob:
    """A job while this process runs it: its window, its live counts, and how it is steered."""

    def __init__(
        self,
        record: JobRecord,
        agents: AgentSet,
        settings: Settings,
        progress: Progress,
        opened_at: str,
        patience: RetryingStore,
        turns: KeyedSemaphore,
        deadlines: PausableDeadlines,
    ) -> None:
        self.record, self.agents, self.settings, self.progress = record, agents, settings, progress
        self.patience, self._turns, self._deadlines = patience, turns, deadlines
        self._keys, max_running = window_limits(agents)
        self.window: Window[PendingItem, NewOutcome | None] = Window(
            settings.max_in_flight,
            keys=lambda item: self._keys[item.agent_id],
            limits=max_running,
            weight=lambda item: len(item.request) + _ITEM_BYTES,
            max_waiting=_MAX_WAITING_BYTES,
        )
        self.left_s = settings.job_deadline_s - age_ns(opened_at) / 1e9
        self.ending: Ending | None = None
        self.is_interrupted = False
        self.in_flight = InFlight()
        self.failures: deque[dict[str, Any]] = deque(maxlen=_N_FAILURES)
        self.first_start_ns: int | None = None
        self.first_token_ns: int | None = None
        self._is_resumed = progress.done > 0
        self._accepted_ns = time.monotonic_ns() - age_ns(record.created_at)
        self._ledger: GroupCommitter | None = None

    def committer(self, store: Store) -> GroupCommitter:
        """Return the job's way into the store."""
        self._ledger = self._ledger or GroupCommitter(store, self.record, self.patience, self._deadlines)
        return self._ledger

    def run_item(self, store: Store, executor: Executor) -> Callable[[PendingItem], Any]:
        """Return the function that sees one item through to its recorded outcome."""
        committer = self.committer(store)

        async def run_item(item: PendingItem) -> NewOutcome | None:
            turns = slots_of(self.agents.agents[item.agent_id], (store.data_dir, self.record.user_id))
            async with AsyncExitStack() as taken:
                for turn in turns:
                    await taken.enter_async_context(self._turns.of(turn))
                return await run_attempts(item)

        async def run_attempts(item: PendingItem) -> NewOutcome | None:
            attempt, blamed_crashes, collateral_crashes = item.attempt, item.blamed_crashes, item.collateral_crashes
            left_s = self.agents.agents[item.agent_id].agent.deadline_s
            while True:
                attempt += 1
                await committer.begin(
                    NewAttempt(item.index, attempt, blamed_crashes, collateral_crashes)
                )  # counted before it is spawned
                self.in_flight.begin(item.index, item.agent_id, attempt, self._patience_s(item))
                stopwatch = self._deadlines.stopwatch()
                try:
                    # Alone: one that may have killed others, and one that others have killed again and again.
                    is_isolated = (
                        blamed_crashes > 0 or collateral_crashes - item.collateral_crashes >= _MAX_SHARED_LOSSES
                    )
                    outcome = await self._attempt(store, executor, item, attempt, left_s, is_isolated=is_isolated)
                except WorkerDiedError as error:
                    left_s = max(left_s - stopwatch.without_stalls(error.ran_s), 0.0)
                    blamed_crashes, collateral_crashes = (
                        blamed_crashes + error.is_suspect,
                        collateral_crashes + (not error.is_suspect),
                    )
                    n_losses = (
                        collateral_crashes - item.collateral_crashes
                    )  # in this run of the job: a retry has its own
                    is_given_up = blamed_crashes >= self.settings.max_attempts or n_losses >= _MAX_LOSSES
                    if not is_given_up and left_s > 0:
                        continue
                    outcome = self._failed(item.index, attempt, _last_error(error, is_given_up))
                finally:
                    self.in_flight.end(item.index)
                outcome = await self._with_steps(store, item, outcome)
                outcome = with_conversation_update(outcome, self.agents.agents[item.agent_id].agent, item)
                return outcome if await committer.record(outcome) else None

        return run_item

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

    def steer(self, wishes: ControlRequest) -> None:
        """Do what was asked for: pause or go on, set the window, cancel."""
        if wishes.is_paused is not None:
            self.window.pause(wishes.is_paused)
        if wishes.max_in_flight is not None:
            self.window.resize(wishes.max_in_flight)
        if wishes.is_canceled:
            self.cancel()

    def cancel(self) -> None:
        """End the job now: what runs is stopped, every item without an outcome is canceled."""
        self._end_early(CANCELED)

    def expire(self) -> None:
        """End the job at its deadline: what runs is stopped, every item without an outcome is expired."""
        self._end_early(expired(self.settings))

    def interrupt(self) -> None:
        """Leave the job unfinished: what runs is stopped, and items without an outcome wait for a resume."""
        self.is_interrupted = True
        self.patience.end()
        self.window.stop()

    def snapshot(self) -> dict[str, Any]:
        """Return the live state as plain data of fixed size."""
        return {
            "id": self.record.id,
            "progress": self.progress.to_dict(),
            "n_in_flight": self.window.in_flight,
            "in_flight": self.in_flight.oldest(_N_SHOWN),
            "stalled": self.in_flight.stalled(_N_FAILURES),
            "failures": list(self.failures),
            "max_in_flight": self.window.size,
            "is_paused": self.window.is_paused,
            "is_canceled": self.ending is CANCELED,
        }

    def durations(self) -> tuple[int | None, int]:
        """Return time to first token and total duration, in ns from the first item's start.

        Of a job that was resumed the total is by the wall clock, since a monotonic clock ends with its machine's boot.
        """
        now = time.monotonic_ns()
        started = self.first_start_ns if self.first_start_ns is not None else now
        total = age_ns(self.record.started_at or self.record.created_at) if self._is_resumed else now - started
        ttft = self.first_token_ns - started if self.first_token_ns is not None else None
        return ttft, total

    def _end_early(self, ending: Ending) -> None:
        self.ending = self.ending or ending
        self.window.stop()

    def _patience_s(self, item: PendingItem) -> float:
        """Return how long an attempt may take before nothing explains it: a process may have waited for its CPUs."""
        return _PATIENCE * (self.agents.agents[item.agent_id].agent.deadline_s + self.settings.deadline_grace_s)

    async def _attempt(
        self, store: Store, executor: Executor, item: PendingItem, attempt: int, left_s: float, *, is_isolated: bool
    ) -> NewOutcome:
        bound = self.agents.agents[item.agent_id]
        steps = await self._steps(store, item, attempt)
        try:
            context = await load_context(store, self.patience, self.record, bound.agent, item, steps)
        except RequestError as error:
            return self._failed(item.index, attempt, error)
        spec = AttemptSpec(bound, self.record.id, item.index, attempt, item.request, left_s, is_isolated, context)
        # A lane starts at once.  A process may wait long for its CPUs before: its executor counts from its start.
        is_queued = spec.is_isolated or bound.agent.placement == "process"
        limit_s = None if is_queued else left_s + self.settings.deadline_grace_s
        try:
            async with self._deadlines.timeout(limit_s):
                reported = await executor.run(spec, self._keep(store, spec, len(steps)))
        except TimeoutError:
            late = DeadlineExceededError("deadline_exceeded", "its worker gave no answer by its deadline")
            return self._failed(item.index, attempt, late)
        except RequestError as error:
            return self._failed(item.index, attempt, error)
        return self._read(reported)

    async def _steps(self, store: Store, item: PendingItem, attempt: int) -> list[bytes]:
        """Return what earlier attempts at an item have done."""
        if attempt == 1 or not self.agents.agents[item.agent_id].agent.keeps_steps:
            return []
        return await self.patience.items.checkpoints(self.record, item.index)

    async def _with_steps(self, store: Store, item: PendingItem, outcome: NewOutcome) -> NewOutcome:
        """Let an outcome take the place of its item's steps: one without a report holds what they came to."""
        if not self.agents.agents[item.agent_id].agent.keeps_steps:
            return outcome
        outcome = replace(outcome, has_steps=True)
        if outcome.status != "errored" or outcome.messages != b"[]":
            return outcome
        steps = await self.patience.items.checkpoints(self.record, item.index)
        if not steps:
            return outcome
        messages, usage = completed_work(steps)
        return replace(outcome, messages=messages, usage=usage)

    def _keep(self, store: Store, spec: AttemptSpec, n_before: int) -> SaveCheckpoints:
        """Return what keeps the steps of one attempt; `n_before` checkpoints are from those before it."""
        seq = count(n_before)

        async def keep(checkpoints: Sequence[bytes]) -> None:
            steps = [NewStep(spec.index, spec.attempt, next(seq), checkpoint) for checkpoint in checkpoints]
            await self.committer(store).keep(steps)

        return keep

    def _read(self, reported: bytes) -> NewOutcome:
        """Take a report in, and place its start and first token on this process's clock."""
        report = read_report(reported)
        started = time.monotonic_ns() - report.duration_ns
        self._note_start(started)
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
            conversation_update_of(report),
        )

    def _note_start(self, started_ns: int) -> None:
        self.first_start_ns = started_ns if self.first_start_ns is None else min(self.first_start_ns, started_ns)

    def _failed(self, index: int, attempt: int, error: RequestError) -> NewOutcome:
        """Return the outcome of an item from whose attempt nothing came back."""
        started_ns = self.in_flight.started_ns(index)
        self._note_start(started_ns)
        duration_ns = time.monotonic_ns() - started_ns
        described = {"type": error.type, "message": error.message}
        queued_ns = max(started_ns - self._accepted_ns, 0)
        return NewOutcome(
            index, attempt, "errored", error.stop_reason, described, {}, queued_ns, None, duration_ns, b"[]"
        )


def _last_error(error: WorkerDiedError, is_given_up: bool) -> RequestError:
    """Return what is said of an item whose last attempt died: it is given up, or its time is used up."""
    if is_given_up:
        return RequestError("worker_died", error.reason)
    return DeadlineExceededError("deadline_exceeded", f"its time was used up when {error.reason}")


def age_ns(timestamp: str) -> int:
    """Return how long ago a time of the store was, in nanoseconds by the wall clock; 0 for one to come."""
    age = datetime.now(UTC) - datetime.fromisoformat(timestamp)
    return max(int(age.total_seconds() * 1e9), 0)

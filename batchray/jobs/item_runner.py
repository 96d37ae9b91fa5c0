"""The attempts of one item, from the first to the recorded outcome."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from batchray.agents import SaveCheckpoints, completed_work, read_report
from batchray.config import Agent
from batchray.errors import DeadlineExceededError, RequestError, WorkerDiedError
from batchray.executors import AttemptSpec, Executor
from batchray.jobs.attempt_policy import AttemptHistory, GiveUp, RetryIsolated, next_step
from batchray.jobs.context import conversation_update_of, load_context, with_conversation_update
from batchray.jobs.deadlines import Pauses
from batchray.jobs.group_commit import Commit
from batchray.jobs.in_flight import Flight
from batchray.jobs.running import RunningJob
from batchray.store import NewAttempt, NewOutcome, NewStep, PendingItem
from batchray.support.failpoints import failpoint

# An attempt counts as stalled at this multiple of its deadline and grace, which end an attempt on a lane.
_STALLED_AFTER = 2.0
# Memory of an outcome besides its messages, until it is committed.
_OUTCOME_BYTES = 1024


class ItemRunner:
    """Runs attempts at the items of one job, until each has an outcome that is recorded."""

    def __init__(self, job: RunningJob, executor: Executor) -> None:
        self._job, self._executor, self._committer = job, executor, job.committer
        self._ahead: dict[int, Commit] = {}  # the commits of first attempts that are counted and have not begun

    def prepare(self, item: PendingItem) -> None:
        """Count the first attempt at an item that starts soon, so that it does not wait for the store then.

        Not of an agent whose requests wait for each other's outcomes anyway, nor if it has been tried before: a crash
        loop is counted attempt by attempt.
        """
        bound = self._job.agents.agents.get(item.agent_id)
        if item.attempt or bound is None or bound.agent.stateful:
            return
        if (counted := self._committer.count_ahead(item.index)) is not None:
            self._ahead[item.index] = counted

    def forget_prepared(self) -> None:
        """Take back the attempts of prepared items that have not begun."""
        if self._ahead:
            self._committer.uncount(self._ahead)
            self._ahead.clear()

    async def run(self, item: PendingItem) -> Sequence[NewOutcome]:
        """Run attempts at an item, and return the outcomes that this has recorded.

        There may be none: the store did not accept it, or it is held because of a failure that all requests share.  An
        answer of the provider also records those that were held before.  Raises ClusterError, or StoreError, if the job
        cannot continue.
        """
        if item.agent_id not in self._job.agents.agents:
            return await self.record([await self._without_agent(item)])
        started_at = time.monotonic()
        outcome = await self._run_attempts(item)
        agent = self._job.agents.agents[item.agent_id].agent
        if agent.keeps_steps:
            outcome = await self._replacing_steps(item, outcome)
        outcome = replace(with_conversation_update(outcome, agent, item), agent_id=agent.id)
        if outcome.shared_failure is not None:
            self._hold(item.agent_id, outcome, **outcome.shared_failure)
            return ()
        return await self._record_arrived(item, outcome, started_at)

    async def _record_arrived(self, item: PendingItem, outcome: NewOutcome, started_at: float) -> list[NewOutcome]:
        """Record an outcome, and those that it ends the row of; its place in the window is free meanwhile."""
        outcomes, gate = [outcome], self._job.gates.of_agent(item.agent_id)
        if gate is not None and (outcome.status == "succeeded" or outcome.usage.get("completion_tokens")):
            gate.set_answered(started_at)
            if self._job.paused_because is None:
                outcomes += self._job.held.end_rows(gate.provider, started_at)
        failpoint("outcome-arrived")
        is_awaited = outcome.conversation_update is not None or self._job.record.is_single
        return await self.record(outcomes, is_awaited=is_awaited)

    async def _without_agent(self, item: PendingItem) -> NewOutcome:
        """Return the outcome of an item whose agent does not exist; a line of an OpenAI batch may name one."""
        attempt = NewAttempt(item.index, item.attempt + 1, item.blamed_crashes, item.collateral_crashes)
        await self._committer.begin(attempt)
        flight = Flight(item.index, item.agent_id, attempt.attempt, time.monotonic_ns(), limit_s=0.0)
        message = f"The model {item.agent_id[:60]!r} does not exist: no agent has this id, name or model."
        return self._failed(flight, RequestError("agent_not_found", message))

    async def record(self, outcomes: Sequence[NewOutcome], *, is_awaited: bool = True) -> list[NewOutcome]:
        """Record outcomes and return those that the store accepted.

        If nothing waits for them, their item's place in the window becomes free as soon as they are handed in.
        """
        commits = [self._committer.record(outcome) for outcome in outcomes]
        if not is_awaited:
            self._job.window.leave(sum(len(outcome.messages) + _OUTCOME_BYTES for outcome in outcomes))
            is_awaited = not self._job.window.in_flight  # the last one: the job's end waits for it
        wait = self._committer.committed if is_awaited else asyncio.shield
        accepted = [await wait(commit) for commit in commits]
        return [outcome for outcome, indexes in zip(outcomes, accepted, strict=True) if outcome.index in indexes]

    def _hold(self, agent_id: str, outcome: NewOutcome, provider: str, kind: str) -> None:
        """Hold an outcome back; pause the job if it is the last of a row, and then its items run again."""
        job = self._job
        if job.paused_because is not None:
            return
        now = time.monotonic()
        if (gate := job.gates.of_agent(agent_id)) is not None:
            gate.set_refused(now)
        if job.held.hold(provider, kind, outcome, now):
            error = outcome.error or {"message": kind}
            n_in_a_row = job.settings.max_consecutive_failures
            job.pause_for(f"{n_in_a_row} requests in a row failed alike: {error['message']}")

    async def _run_attempts(self, item: PendingItem) -> NewOutcome:
        job, max_attempts = self._job, self._job.settings.max_attempts
        deadline_s = job.agents.agents[item.agent_id].agent.deadline_s
        crashes = (item.blamed_crashes, item.collateral_crashes)
        history = AttemptHistory(item.attempt, *crashes, collateral_before=item.collateral_crashes, left_s=deadline_s)
        step = next_step(history, None, max_attempts)
        stalled_after_s = _STALLED_AFTER * (deadline_s + job.settings.deadline_grace_s)
        while True:
            history = history.with_attempt()
            crashes = (history.blamed_crashes, history.collateral_crashes)
            await self._begin(NewAttempt(item.index, history.attempt, *crashes))  # before it is spawned
            stopwatch = self._committer.deadlines.stopwatch(*self._pauses_of(item))
            flight = job.in_flight.begin(item.index, item.agent_id, history.attempt, stalled_after_s, stopwatch)
            is_isolated = isinstance(step, RetryIsolated)
            try:
                return await self._run_attempt(item, flight, history.left_s, is_isolated=is_isolated)
            except WorkerDiedError as error:
                ran_s = stopwatch.without_pauses(error.ran_s)
                history = history.with_crash(is_suspect=error.is_suspect, ran_s=ran_s)
                step = next_step(history, error, max_attempts)
                if isinstance(step, GiveUp):
                    return self._failed(flight, step.error)
            finally:
                job.in_flight.end(item.index)

    async def _begin(self, attempt: NewAttempt) -> None:
        """Return when an attempt is counted on disk, which may be already."""
        counted = self._ahead.get(attempt.index)
        if counted is None:
            await self._committer.begin(attempt)
        else:
            await self._committer.begin_counted(attempt.index, counted)
            del self._ahead[attempt.index]

    async def _run_attempt(self, item: PendingItem, flight: Flight, left_s: float, *, is_isolated: bool) -> NewOutcome:
        """Run one attempt; a failure of the request is an outcome.  Raises WorkerDiedError."""
        job, attempt = self._job, flight.attempt
        bound = job.agents.agents[item.agent_id]
        steps = await self._saved_steps(item) if attempt > 1 and bound.agent.keeps_steps else []
        try:
            context = await load_context(
                job.store, job.record, bound.agent, item, job.waiting_aside, self._committer.deadlines, steps
            )
        except RequestError as error:
            return self._failed(flight, error)
        of_item = (bound, job.record.id, item.index, attempt, item.request)
        is_awaited = job.record.is_single
        spec = AttemptSpec(*of_item, left_s, is_isolated, context, job.settings.deadline_grace_s, is_awaited)
        # A lane starts at once.  A process may wait long for its CPUs first: its executor counts from its start.
        is_queued = spec.is_isolated or bound.agent.placement == "process"
        limit_s = None if is_queued else left_s + job.settings.deadline_grace_s
        try:
            async with self._committer.deadlines.timeout(limit_s, *self._pauses_of(item)):
                report = await self._executor.run(spec, self._checkpoint_sink(spec, len(steps)))
        except TimeoutError:
            return self._failed(flight, DeadlineExceededError("deadline_exceeded", self._late_because(item)))
        except RequestError as error:
            return self._failed(flight, error)
        return self._reported(report, bound.agent)

    def _pauses_of(self, item: PendingItem) -> Sequence[Pauses]:
        """Return the pauses of the item's deadline; a single request does not wait without end."""
        gate = self._job.gates.of_agent(item.agent_id)
        return (gate.pauses,) if gate is not None and not self._job.record.is_single else ()

    def _late_because(self, item: PendingItem) -> str:
        gate = self._job.gates.of_agent(item.agent_id)
        if gate is None or gate.state is None:
            return "its worker gave no answer by its deadline"
        return f"its provider {gate.provider!r} took no calls until its deadline: {gate.state.reason}"

    async def _saved_steps(self, item: PendingItem) -> list[bytes]:
        return await self._job.store.items.checkpoints(self._job.record, item.index)

    def _checkpoint_sink(self, spec: AttemptSpec, n_before: int) -> SaveCheckpoints:
        """Return the function that saves an attempt's checkpoints, behind the `n_before` of earlier attempts."""
        seq = count(n_before)

        async def save(checkpoints: Sequence[bytes]) -> None:
            steps = [NewStep(spec.index, spec.attempt, next(seq), checkpoint) for checkpoint in checkpoints]
            await self._committer.save_steps(steps)

        return save

    async def _replacing_steps(self, item: PendingItem, outcome: NewOutcome) -> NewOutcome:
        """Return an outcome that replaces the item's saved steps, and has their messages if it has none itself."""
        outcome = replace(outcome, has_steps=True)
        if outcome.status != "errored" or outcome.messages != b"[]":
            return outcome
        steps = await self._saved_steps(item)
        if not steps:
            return outcome
        messages, usage = completed_work(steps)
        return replace(outcome, messages=messages, usage=usage)

    def _reported(self, encoded: bytes, agent: Agent) -> NewOutcome:
        """Return the outcome in a report, with its start and first token placed on this process's clock."""
        report, timing = read_report(encoded), self._job.timing
        started_ns = time.monotonic_ns() - report.duration_ns
        if report.ttft_ns is not None:
            timing.add_first_token(started_ns + report.ttft_ns)
        return NewOutcome(
            index=report.index,
            attempt=report.attempt,
            status=report.status,
            stop_reason=report.stop_reason,
            error=report.error,
            usage=report.usage,
            queued_ns=timing.add_start(started_ns),
            ttft_ns=report.ttft_ns,
            duration_ns=report.duration_ns,
            messages=report.messages,
            conversation_update=conversation_update_of(report, agent),
            shared_failure=report.shared_failure,
        )

    def _failed(self, flight: Flight, error: RequestError) -> NewOutcome:
        """Return the outcome of an item whose attempt came back without a report."""
        return NewOutcome(
            index=flight.index,
            attempt=flight.attempt,
            status="errored",
            stop_reason=error.stop_reason,
            error={"type": error.type, "message": error.message},
            usage={},
            queued_ns=self._job.timing.add_start(flight.started_ns),
            ttft_ns=None,
            duration_ns=time.monotonic_ns() - flight.started_ns,
            messages=b"[]",
        )

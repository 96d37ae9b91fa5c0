"""A job while this process runs it: its state, its live counts, and its control."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from batchray.config import AgentSet, Settings
from batchray.executors import BlockingBoard, ProviderState
from batchray.jobs.clearing import Clearing
from batchray.jobs.control import ControlRequest
from batchray.jobs.endings import CANCELED, Ending, expired, given_up, out_of_turn
from batchray.jobs.failure_policy import SharedFailures, is_beyond
from batchray.jobs.group_commit import GroupCommitter
from batchray.jobs.in_flight import InFlight
from batchray.jobs.provider_gates import JobProviderGate, ProviderGates
from batchray.jobs.timing import JobTiming
from batchray.jobs.window import Window
from batchray.schema.progress import Progress
from batchray.store import LedJob, NewOutcome, PendingItem, RetryingStore

_MAX_IN_FLIGHT_SHOWN = 100
_MAX_FAILURES_SHOWN = 20

# How long a job that pauses itself waits for its requests in flight.
_WIND_DOWN_S = 30.0

ItemWindow = Window[PendingItem, Sequence[NewOutcome]]
"""Work on an item returns the outcomes that it has recorded: none if the store did not accept it, or if it is held."""


class RunningJob:
    """A job while this process runs it.

    `committer` writes for all items together, and every call of `store` waits while the database is unavailable.
    `ending` is set if the job ends before all of its items have an outcome, `paused_because` while it has paused
    itself.  `held` are outcomes that are not recorded yet.  `clearing` says which items of a retry may run;
    `first_cleared` is what the first part of that deletion has returned.
    """

    def __init__(
        self,
        record: LedJob,
        agents: AgentSet,
        settings: Settings,
        progress: Progress,
        timing: JobTiming,
        window: ItemWindow,
        committer: GroupCommitter,
        gates: ProviderGates,
        first_cleared: int | None = None,
    ) -> None:
        self.record, self.agents, self.settings, self.progress = record, agents, settings, progress
        self.timing, self.window, self.committer, self.gates = timing, window, committer, gates
        self.store: RetryingStore = committer.store
        self.in_flight = InFlight()
        self.blocking = BlockingBoard()
        self.ending: Ending | None = None
        self.is_interrupted = False
        self._n_waiting = 0
        self.paused_because: str | None = None
        self.held = SharedFailures[NewOutcome](settings.max_consecutive_failures)
        self.clearing = Clearing(self.store, record, first_cleared)
        self._continued = asyncio.Event()
        self._counts_before = dict(progress.counts)
        self.failures: deque[dict[str, Any]] = deque(maxlen=_MAX_FAILURES_SHOWN)

    def count(self, outcomes: Sequence[NewOutcome]) -> None:
        """Count outcomes that are committed.  More failures than the job's limit pause it."""
        for outcome in outcomes:
            timing = {"ttft_ns": outcome.ttft_ns, "duration_ns": outcome.duration_ns, "queued_ns": outcome.queued_ns}
            self.progress.record(outcome.status, timing, outcome.usage)
            if outcome.error:
                attempt = {"index": outcome.index, "attempt": outcome.attempt, "stop_reason": outcome.stop_reason}
                shown = {name: outcome.error[name] for name in ("type", "message")}  # tracebacks stay in the store
                self.failures.append({**attempt, **shown})
        limit = self.settings.max_failures
        if limit is not None and any(outcome.error for outcome in outcomes):
            of_this_run = {status: n - self._counts_before[status] for status, n in self.progress.counts.items()}
            if is_beyond(limit, of_this_run, self.record.total - sum(self._counts_before.values())):
                n_failed = of_this_run["errored"]
                self.pause_for(f"{n_failed:,} requests failed in this run, and at most {limit} may (max_failures)")

    @property
    def is_paused(self) -> bool:
        """Whether the job starts no more items now, because it was asked to or by itself."""
        return self.window.is_paused or self.paused_because is not None

    def steer(self, request: ControlRequest) -> None:
        """Carry out a control request: pause or unpause, resize the window, cancel."""
        if request.is_paused is not None:
            self.window.pause(request.is_paused)
            if not request.is_paused:
                self._continued.set()
        if request.max_in_flight is not None:
            self.window.resize(request.max_in_flight)
        if request.is_canceled:
            self.cancel()

    def pause_for(self, reason: str) -> None:
        """Pause the job by itself, or end a single request: a client waits for it.

        Requests in flight may finish, for half a minute, except those that only wait for their provider.
        """
        is_stopping = self.paused_because is not None or self.ending is not None or self.is_interrupted
        if is_stopping or self.progress.done >= self.record.total:
            return
        if self.record.is_single:
            self._end_early(given_up(reason))
            return
        self.paused_because = reason
        self._continued.clear()
        self.window.wind_down()
        asyncio.get_running_loop().call_later(_WIND_DOWN_S, self.window.stop)

    def set_provider_states(self, states: Mapping[str, ProviderState]) -> None:
        """Take over what holds back the calls to providers: requests that wait for one make room for others."""
        self.gates.update(states, time.monotonic())
        self._set_aside()

    @contextmanager
    def waiting_aside(self) -> Iterator[None]:
        """Make room in the window for another request inside this block: one that is in flight only waits."""
        self._n_waiting += 1
        self._set_aside()
        try:
            yield
        finally:
            self._n_waiting -= 1
            self._set_aside()

    def _set_aside(self) -> None:
        self.window.set_aside(self.gates.n_waiting + self._n_waiting)

    def check_providers(self, left_s: float) -> None:
        """Pause the job if a provider asks for more time than is left, or its address may be wrong."""
        now = time.monotonic()
        for gate in self.gates:
            reason = gate.hopeless_because(now, left_s, self.settings.provider_start_patience_s)
            if reason is not None:
                self.pause_for(reason)

    def check_turn(self, waited_s: float) -> None:
        """End a request whose client waits if, for as long as its deadline, others have kept it from its agent."""
        if self.record.kind == "run" and (self.window.has_waiting or self._n_waiting):
            limit_s = max(bound.agent.deadline_s for bound in self.agents.agents.values())
            if waited_s > limit_s:
                self._end_early(out_of_turn(limit_s))

    async def until_continued(self) -> None:
        """Wait until a job that has paused itself is unpaused, ended or interrupted.

        Its items may run then, except after an end or an interrupt: the window that is stopped stays.
        """
        await self._continued.wait()
        self.paused_because = None
        self.held.take_all()
        for gate in self.gates:
            gate.give_time()
        if self.ending is None and not self.is_interrupted:
            self.window = self.window.renewed()
        self._counts_before = dict(self.progress.counts)

    def cancel(self) -> None:
        """End the job now: items in flight are stopped, and every item without an outcome is canceled."""
        self._end_early(CANCELED)

    def expire(self) -> None:
        """End the job at its deadline: items in flight are stopped, and every item without an outcome is expired."""
        self._end_early(expired(self.settings))

    def interrupt(self) -> None:
        """Leave the job unfinished: items in flight are stopped, and a resume runs the items without an outcome."""
        self.is_interrupted = True
        self.store.end()
        self.window.stop()
        self._continued.set()

    def snapshot(self) -> dict[str, Any]:
        """Return the live state as JSON-able data of bounded size."""
        return {
            "id": self.record.id,
            "progress": self.progress.to_dict(),
            "n_in_flight": self.window.in_flight,
            "in_flight": self.in_flight.oldest(_MAX_IN_FLIGHT_SHOWN),
            "stalled": self.in_flight.stalled(_MAX_FAILURES_SHOWN),
            "blocking": self.blocking.of(self.record.id),
            "failures": list(self.failures),
            "max_in_flight": self.window.size,
            "is_paused": self.is_paused,
            "paused_because": self.paused_because,
            "providers": self.providers(),
            "is_canceled": self.ending is CANCELED,
        }

    def providers(self) -> list[dict[str, Any]]:
        """Return the providers that hold requests back now, as JSON-able data.  Thread-safe."""
        return [_view(gate, state) for gate in self.gates if (state := gate.state) is not None]

    def _end_early(self, ending: Ending) -> None:
        self.ending = self.ending or ending
        self.window.stop()
        self._continued.set()


def _view(gate: JobProviderGate, state: ProviderState) -> dict[str, Any]:
    """Return the state of a provider that holds calls back, as JSON-able data."""
    now = time.monotonic()
    return {
        "provider": gate.provider,
        "kind": "unavailable" if state.is_unavailable else "rate_limited",
        "reason": state.reason,
        "is_shut": state.is_shut,
        "wait_s": max(state.opens_at - now, 0.0),
        "since_s": max(now - state.since, 0.0),
        "n_waiting": gate.n_waiting,
    }

"""A job while this process runs it: its state, its live counts, and its control."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from batchray.config import AgentSet, Settings
from batchray.jobs.control import ControlRequest
from batchray.jobs.endings import CANCELED, Ending, expired
from batchray.jobs.group_commit import GroupCommitter
from batchray.jobs.in_flight import InFlight
from batchray.jobs.timing import JobTiming
from batchray.jobs.window import Window
from batchray.schema.progress import Progress
from batchray.store import LedJob, NewOutcome, PendingItem, RetryingStore

_MAX_IN_FLIGHT_SHOWN = 100
_MAX_FAILURES_SHOWN = 20

ItemWindow = Window[PendingItem, NewOutcome | None]


class RunningJob:
    """A job while this process runs it.

    `committer` writes for all items together, and every call of `store` waits while the database is unavailable.
    `ending` is set if the job ends before all of its items have an outcome.
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
    ) -> None:
        self.record, self.agents, self.settings, self.progress = record, agents, settings, progress
        self.timing, self.window, self.committer = timing, window, committer
        self.store: RetryingStore = committer.store
        self.in_flight = InFlight()
        self.ending: Ending | None = None
        self.is_interrupted = False
        self.failures: deque[dict[str, Any]] = deque(maxlen=_MAX_FAILURES_SHOWN)

    def count(self, outcomes: Sequence[NewOutcome | None]) -> None:
        """Count outcomes that are committed; None is one that the store did not accept."""
        for outcome in outcomes:
            if outcome is None:
                continue
            timing = {"ttft_ns": outcome.ttft_ns, "duration_ns": outcome.duration_ns, "queued_ns": outcome.queued_ns}
            self.progress.record(outcome.status, timing, outcome.usage)
            if outcome.error:
                attempt = {"index": outcome.index, "attempt": outcome.attempt, "stop_reason": outcome.stop_reason}
                self.failures.append({**attempt, **outcome.error})

    def steer(self, request: ControlRequest) -> None:
        """Carry out a control request: pause or unpause, resize the window, cancel."""
        if request.is_paused is not None:
            self.window.pause(request.is_paused)
        if request.max_in_flight is not None:
            self.window.resize(request.max_in_flight)
        if request.is_canceled:
            self.cancel()

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

    def snapshot(self) -> dict[str, Any]:
        """Return the live state as JSON-able data of bounded size."""
        return {
            "id": self.record.id,
            "progress": self.progress.to_dict(),
            "n_in_flight": self.window.in_flight,
            "in_flight": self.in_flight.oldest(_MAX_IN_FLIGHT_SHOWN),
            "stalled": self.in_flight.stalled(_MAX_FAILURES_SHOWN),
            "failures": list(self.failures),
            "max_in_flight": self.window.size,
            "is_paused": self.window.is_paused,
            "is_canceled": self.ending is CANCELED,
        }

    def _end_early(self, ending: Ending) -> None:
        self.ending = self.ending or ending
        self.window.stop()

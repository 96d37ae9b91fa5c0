"""The jobs that this server schedules: the state of each, and the transitions that are allowed.

```
new ──► QUEUED ──► STARTING ──► RUNNING ──► removed
         ▲  │          │           │
         │  │          └─────┬─────┘  its driver failed
         │  │                ▼
         │◄─┼────────── RESTARTING ──► STARTING  (a single run)
         │  ▼                          cancelled while it was queued
         │ ENDING ──► removed          (back to QUEUED if the store fails)
         │
         └─ REOPENING ◄── ended        a retry
```

A job that has ended, or that another server runs, has no entry.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from batchray.jobs.local_run import LocalRun


class JobState(StrEnum):
    """The state of a scheduled job."""

    QUEUED = "queued"
    """Waits for one of the `max_running_jobs` slots."""
    STARTING = "starting"
    """Its agents are read and its driver is started."""
    RUNNING = "running"
    """Its driver runs in this process."""
    RESTARTING = "restarting"
    """Its driver failed; it is queued again after a delay."""
    REOPENING = "reopening"
    """It has ended, and the store is reopening it for a retry."""
    ENDING = "ending"
    """It did not run, and the store is ending it."""
    ABANDONED = "abandoned"
    """A single run whose client is gone.  The store failed to end it; this is repeated until it succeeds."""


_State = JobState
TRANSITIONS: Mapping[JobState | None, frozenset[JobState | None]] = {
    None: frozenset({_State.QUEUED, _State.STARTING, _State.REOPENING, _State.ABANDONED}),
    _State.QUEUED: frozenset({_State.STARTING, _State.ENDING, None}),
    _State.STARTING: frozenset({_State.RUNNING, _State.RESTARTING, None}),
    _State.RUNNING: frozenset({_State.RESTARTING, None}),
    _State.RESTARTING: frozenset(
        {_State.QUEUED, _State.STARTING, _State.ENDING, _State.REOPENING, _State.ABANDONED, None}
    ),
    _State.REOPENING: frozenset({_State.QUEUED, None}),
    _State.ENDING: frozenset({_State.QUEUED, _State.RESTARTING, None}),
    _State.ABANDONED: frozenset({_State.STARTING, None}),
}
"""The states that may follow each state.  None stands for a job without an entry."""


@dataclass(frozen=True, eq=False, slots=True)
class JobEntry:
    """A job's state and what belongs to it.  Each transition makes a new entry, so `is` tells two of them apart.

    `started` is set when STARTING is over.  `job` is the handle while RUNNING.  A job that skips the queue takes no
    slot: it is a single run.
    """

    state: JobState
    started: asyncio.Event | None = None
    job: LocalRun | None = None
    skips_queue: bool = False

    @property
    def takes_slot(self) -> bool:
        """Whether it counts towards `max_running_jobs`."""
        return self.state in (JobState.STARTING, JobState.RUNNING) and not self.skips_queue


class JobTable:
    """One entry for each scheduled job.  Queued jobs are in the order in which they will start."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, JobEntry] = OrderedDict()
        self.n_slots_taken = 0
        self._n_queued = 0

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._entries

    def get(self, job_id: str) -> JobEntry | None:
        """Return a job's entry, or None."""
        return self._entries.get(job_id)

    def state(self, job_id: str) -> JobState | None:
        """Return a job's state; None if it has no entry."""
        entry = self._entries.get(job_id)
        return entry.state if entry else None

    def may_move(self, job_id: str, state: JobState | None) -> bool:
        """Return whether a job may move to a state now."""
        return state in TRANSITIONS[self.state(job_id)]

    def move(
        self,
        job_id: str,
        state: JobState,
        *,
        job: LocalRun | None = None,
        started: asyncio.Event | None = None,
        skips_queue: bool = False,
        at_front: bool = False,
    ) -> JobEntry:
        """Move a job to a state and return its new entry.  Raises RuntimeError if the transition is not allowed.

        A job that moves to QUEUED goes to the end of the queue, or with `at_front` to its beginning.
        """
        entry = JobEntry(state, started, job, skips_queue)
        self._replace(job_id, entry)
        if state is JobState.QUEUED:
            self._entries.move_to_end(job_id, last=not at_front)
        return entry

    def remove(self, job_id: str) -> None:
        """Remove a job.  Raises RuntimeError if its state does not allow that."""
        self._replace(job_id, None)

    def remove_queued(self) -> None:
        """Remove all queued jobs."""
        for job_id in [job_id for job_id, entry in self._entries.items() if entry.state is JobState.QUEUED]:
            self.remove(job_id)

    def running_job(self, job_id: str) -> LocalRun | None:
        """Return the handle of a job if it is running."""
        entry = self._entries.get(job_id)
        return entry.job if entry else None

    def n_in_flight(self) -> int:
        """Return how many requests of all jobs are in flight.  Thread-safe."""
        return sum(entry.job.in_flight for entry in list(self._entries.values()) if entry.job is not None)

    @property
    def n_single_runs(self) -> int:
        """How many single runs have an entry."""
        return sum(entry.skips_queue for entry in self._entries.values())

    def first_queued(self) -> str | None:
        """Return the queued job that starts next.

        Entries before it are few: jobs that are not queued any more, so at most those that run or are about to.
        """
        if not self._n_queued:  # a server of single runs may have thousands of entries
            return None
        return next((job_id for job_id, entry in self._entries.items() if entry.state is JobState.QUEUED), None)

    def _replace(self, job_id: str, entry: JobEntry | None) -> None:
        before = self._entries.get(job_id)
        old, new = before.state if before else None, entry.state if entry else None
        if new not in TRANSITIONS[old]:
            raise RuntimeError(f"job {job_id}: the transition from {old} to {new} is not allowed")
        if entry is None:
            del self._entries[job_id]
        else:
            self._entries[job_id] = entry
        self._n_queued += (new is JobState.QUEUED) - (old is JobState.QUEUED)
        self.n_slots_taken += (entry is not None and entry.takes_slot) - (before is not None and before.takes_slot)

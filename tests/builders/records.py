"""Jobs, items, attempts and outcomes for tests of the store."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Set
from pathlib import Path

from batchray.schema import new_job_id
from batchray.schema.progress import Progress
from batchray.store import JobRecord, LedJob, NewAttempt, NewItem, NewJob, NewOutcome, Store, run_all

AGENTS: dict[str, dict[str, object]] = {"a": {"agent": {"id": "a"}, "provider": None}}


def agents_of(agent_ids: Set[str]) -> dict[str, dict[str, object]]:
    """Return the agent snapshots that a new job of these agents stores."""
    return {agent_id: AGENTS[agent_id] for agent_id in agent_ids}


def items(n: int, size: int = 10) -> list[NewItem]:
    """Return `n` items with bodies of `size` bytes; every second one has a custom id."""
    return [NewItem("a", f"c-{i}" if i % 2 else None, b"%0*d" % (size, i)) for i in range(n)]


def new_job(store: Store, n: int = 3, size: int = 10) -> LedJob:
    """Create and start a job of `n` items."""
    job_id = new_job_id()
    assert store.jobs.create(NewJob(job_id, agents_of, "http://h/"), items(n, size)) == n
    return store.jobs.start(job_id)


def outcome(index: int, attempt: int = 1, status: str = "succeeded", messages: bytes = b"[]") -> NewOutcome:
    """Return an outcome; any status except `succeeded` carries an error."""
    error = None if status == "succeeded" else {"type": "x", "message": "why"}
    usage = {"prompt_tokens": 10, "completion_tokens": 1}
    return NewOutcome(
        index=index,
        attempt=attempt,
        status=status,
        stop_reason="end_turn",
        error=error,
        usage=usage,
        queued_ns=5,
        ttft_ns=None,
        duration_ns=7,
        messages=messages,
    )


def begin(store: Store, job: LedJob, *indexes: int, attempt: int = 1) -> None:
    """Record that attempts of these items began."""
    store.outcomes.write(job, [NewAttempt(index, attempt) for index in indexes])


def reopened(store: Store, job_id: str) -> LedJob:
    """Reopen an ended job and start it, as a retry does."""
    store.jobs.reopen(job_id)
    job = store.jobs.start(job_id)
    run_all(store.reopenings.clear(job))
    return job


def ended(store: Store, n: int = 3, size: int = 10) -> JobRecord:
    """Create a job of `n` items that has ended, with all of them succeeded and its callback settled."""
    job = new_job(store, n, size)
    begin(store, job, *range(n))
    store.outcomes.write(job, [], [outcome(index) for index in range(n)])
    done = store.jobs.end(job, "completed", "end_turn", Progress(), None, 0)
    called_back(store, done, next_at=None)
    return store.jobs.get(job.id)


def called_back(store: Store, job: JobRecord, next_at: float | None) -> None:
    """Record an attempt to call back."""
    store.callbacks.record(job.id, job.completed_at or "", sent_at="t", status_code=500, error="x", next_at=next_at)


def check_integrity(data_dir: Path) -> None:
    """Assert that the SQLite file is intact."""
    with contextlib.closing(sqlite3.connect(data_dir / "batchray.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

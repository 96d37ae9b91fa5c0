"""The state of a job as people see it: the same words in Python, on the command line and over HTTP."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from batchray.jobs.control import ControlFile
from batchray.store import JobRecord, Store

INTERRUPTED = "interrupted"
"""The state of a job that has not ended and that no process runs; `batchray resume` continues it."""
PAUSED = "paused"
"""The state of a job that starts no more items until it is unpaused, or if no process runs it, resumed."""


def state_of(record: JobRecord, store: Store, running: Set[str] | None = None) -> str:
    """Return the state of a job: its status if it has ended or a process runs it, or else `interrupted`.

    The status of a job that is about to be started is `created`.  A job that runs can be `paused` too, and one that
    has paused itself is so until it is resumed.
    `running` are the ids of the jobs that a process runs, if they are known already.
    """
    if record.is_ended:
        return record.status
    if record.paused_because is not None:
        return PAUSED
    if record.id not in (store.running_jobs() if running is None else running):
        return INTERRUPTED
    return PAUSED if asked_of(record, store).get("is_paused") else record.status


def asked_of(record: JobRecord, store: Store) -> dict[str, Any]:
    """Return the fields of the `ControlRequest` that a job's driver has been asked for."""
    if store.is_shared:
        return store.leases.asked(record)
    return ControlFile(store.data_dir, record.id).read() or {}

"""Jobs, items, attempts and outcomes over SQLAlchemy Core: SQLite in the data directory.

What holds here, and nowhere else: a job and its items appear together or not at all; an attempt is counted before it
is spawned; an outcome is taken once, and only from the item's current attempt; a taken outcome never changes.

One connection writes, on one thread, and it alone makes checkpoints: SQLite before 3.51.3 can lose a WAL reset when two
connections do (sqlite.org/wal.html, "the WAL-reset bug").  Readers open the file read-only, in this process or others.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

import sqlalchemy as sa

from batchray.errors import StoreError
from batchray.store.agents import Agents
from batchray.store.directory import is_locked, lock, running_jobs, write_holder
from batchray.store.items import Items
from batchray.store.jobs import Jobs
from batchray.store.outbox import DueCallback, Outbox
from batchray.store.records import (
    DEFAULT_USER,
    FailureKind,
    ItemPage,
    JobRecord,
    NewItem,
    NewJob,
    NewOutcome,
    Order,
    PendingItem,
    StoredAgent,
    StoredItem,
    StoredResult,
    utc_now,
)

__all__ = [
    "DEFAULT_USER",
    "DueCallback",
    "FailureKind",
    "ItemPage",
    "JobRecord",
    "NewItem",
    "NewJob",
    "NewOutcome",
    "Order",
    "PendingItem",
    "Store",
    "StoredAgent",
    "StoredItem",
    "StoredResult",
    "is_locked",
    "running_jobs",
    "utc_now",
]

DATABASE = "batchray.db"
"""The SQLite file inside a data directory."""


class Store(Jobs, Items, Outbox, Agents):
    """One data directory."""

    def __init__(self, data_dir: Path, lock: int | None) -> None:
        super().__init__(data_dir / DATABASE, is_writer=lock is not None)
        self._lock = lock
        self._running_jobs: list[str] = []

    @classmethod
    def open(cls, data_dir: Path) -> Self:
        """Open a data directory for reading and writing; it is made where it does not exist.

        Raises StoreLockedError while another process, or another store of this one, writes to it, and StoreError
        where it cannot be written or was made by a newer version.
        """
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            store = cls(data_dir, lock(data_dir))
        except OSError as error:
            raise StoreError(f"cannot write to {data_dir}: {error.strerror}") from None
        try:
            store.create_schema()
        except sa.exc.DatabaseError as error:
            store.close()
            raise StoreError(f"cannot use {data_dir / DATABASE}: {error.orig}") from None
        except StoreError:
            store.close()
            raise
        return store

    @classmethod
    def open_for_reading(cls, data_dir: Path) -> Self:
        """Open a data directory for reading, also while another process writes to it.

        Raises StoreError where there is none, or one that was made by a newer version.
        """
        if not (data_dir / DATABASE).exists():
            raise StoreError(f"no batchray data in {data_dir}; give the --data-dir that the job was run with")
        store = cls(data_dir, None)
        try:
            store.check_version()
        except StoreError:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Finish what is being written, then close."""
        super().close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def announce(self, job_id: str) -> None:
        """Let other processes know that this one runs a job."""
        self._running_jobs.append(job_id)
        self._write_lock()

    def withdraw(self, job_id: str) -> None:
        """Let other processes know that this one does not run a job any more."""
        self._running_jobs.remove(job_id)
        self._write_lock()

    def _write_lock(self) -> None:
        if self._lock is not None:
            write_holder(self._lock, self._running_jobs)

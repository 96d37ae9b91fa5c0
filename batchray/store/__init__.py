"""Jobs, items, attempts and outcomes over SQLAlchemy Core: SQLite in the data directory, or PostgreSQL by URL.

What holds here, and nowhere else: a job and its items appear together or not at all; an attempt is counted before it
is spawned; an outcome is taken once, and only from the item's current attempt; a taken outcome never changes.
"""

from __future__ import annotations

import os
import threading
import uuid
from pathlib import Path
from typing import Self

from batchray.errors import ConfigError, StoreError, StoreFullError
from batchray.store.agents import Agents
from batchray.store.backend import Backend
from batchray.store.callbacks import DueCallback, Outbox
from batchray.store.conversations import Conversations
from batchray.store.database import Chunked, run_all
from batchray.store.directory import is_locked, lock, running_jobs, write_holder
from batchray.store.disk_reserve import Reserve, is_no_room
from batchray.store.filesystem import network_fs
from batchray.store.integrity import Integrity
from batchray.store.leases import LEASE_S
from batchray.store.postgres import Postgres
from batchray.store.records import (
    DEFAULT_USER,
    ConversationState,
    ConversationUpdate,
    FailureKind,
    HistoryItem,
    ItemPage,
    JobRecord,
    NewAttempt,
    NewItem,
    NewJob,
    NewOutcome,
    NewStep,
    PendingItem,
    SortOrder,
    StoredAgent,
    StoredItem,
    StoredResult,
    utc_now,
)
from batchray.store.retention import Retention
from batchray.store.retry import StoreRetry
from batchray.store.sqlite import Sqlite

__all__ = [
    "DATABASE",
    "DEFAULT_USER",
    "Chunked",
    "ConversationState",
    "ConversationUpdate",
    "DueCallback",
    "FailureKind",
    "HistoryItem",
    "ItemPage",
    "JobRecord",
    "NewAttempt",
    "NewItem",
    "NewJob",
    "NewOutcome",
    "NewStep",
    "PendingItem",
    "SortOrder",
    "Store",
    "StoreRetry",
    "StoredAgent",
    "StoredItem",
    "StoredResult",
    "is_locked",
    "is_no_room",
    "lock",
    "run_all",
    "running_jobs",
    "utc_now",
]

DATABASE = "batchray.db"
"""The SQLite file inside a data directory."""

_NETWORK_FS = (
    "{} is on a network file system ({}), where SQLite can lose data; use a local disk or PostgreSQL, or force it with "
    "the setting allow_network_fs"
)


class Store(Integrity, Outbox, Agents, Retention, Conversations):
    """One data directory, or one PostgreSQL database."""

    def __init__(self, data_dir: Path, backend: Backend, lock: int | None = None) -> None:
        super().__init__(data_dir, backend, Reserve(data_dir) if lock is not None else None)
        self.leader = f"leader-{uuid.uuid4()}"
        self._lock = lock
        self._running_jobs: list[str] = []
        self._telling = threading.Lock()

    @classmethod
    def open(
        cls, data_dir: Path, url: str | None = None, *, lease_s: float = LEASE_S, allow_network_fs: bool = False
    ) -> Self:
        """Open a store for reading and writing: the PostgreSQL database of `url`, or else the data directory.

        The directory is made where it does not exist.  Raises StoreLockedError while another process, or another
        store of this one, writes to it; ConfigError for one on a network file system, unless that is allowed; and
        StoreError where the store cannot be written, is damaged, or was made by a newer version.
        """
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            if url is not None:
                store = cls(data_dir, Postgres(url, is_writer=True))
            else:
                if not allow_network_fs and (kind := network_fs(data_dir)):
                    raise ConfigError(_NETWORK_FS.format(data_dir, kind))
                store = cls(data_dir, Sqlite(data_dir / DATABASE, is_writer=True), lock(data_dir))
        except OSError as error:
            kind_of_error = StoreFullError if is_no_room(error) else StoreError
            raise kind_of_error(f"cannot write to {data_dir}: {error.strerror}") from None
        store.lease_s = lease_s
        try:
            store.hold_reserve()
            store.create_schema()
        except StoreError:
            store.close()
            raise
        return store

    @classmethod
    def open_for_reading(cls, data_dir: Path, url: str | None = None) -> Self:
        """Open a store for reading, also while another process writes to it.

        Raises StoreError where there is none, or one that was made by a newer version.
        """
        if url is None and not (data_dir / DATABASE).exists():
            raise StoreError(f"no batchray data in {data_dir}; give the --data-dir that the job was run with")
        backend = Postgres(url, is_writer=False) if url else Sqlite(data_dir / DATABASE, is_writer=False)
        store = cls(data_dir, backend)
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

    def running_jobs(self) -> set[str]:
        """Return the ids of the jobs that a process is running now."""
        return self.led_jobs() if self.is_shared else running_jobs(self.data_dir)

    def mark_running(self, job_id: str) -> None:
        """Let other processes know that this one runs a job; on any thread."""
        with self._telling:
            self._tell([*self._running_jobs, job_id])

    def unmark_running(self, job_id: str) -> None:
        """Let other processes know that this one does not run a job any more; on any thread."""
        with self._telling:
            self._tell([each for each in self._running_jobs if each != job_id])

    def _tell(self, running_jobs: list[str]) -> None:
        if self._lock is not None:
            write_holder(self._lock, running_jobs)
        self._running_jobs = running_jobs

"""The store: one database and a repository for each kind of record."""

from __future__ import annotations

import errno
import os
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Self

from batchray.errors import BatchrayError, ConfigError, StoreError, StoreFullError
from batchray.store.agents import Agents
from batchray.store.blocks import Blocks
from batchray.store.callbacks import Callbacks
from batchray.store.conversations import Conversations
from batchray.store.database import Database
from batchray.store.database_schema import check_version, create_schema, is_older
from batchray.store.directory import lock, running_jobs, write_holder
from batchray.store.disk_reserve import Reserve, is_no_room
from batchray.store.figures import Figures
from batchray.store.files import Files
from batchray.store.filesystem import network_fs
from batchray.store.integrity import Integrity
from batchray.store.items import Items
from batchray.store.jobs import Jobs
from batchray.store.leases import LEASE_S, Leases
from batchray.store.openai_batches import OpenAIBatches
from batchray.store.outcomes import Outcomes
from batchray.store.postgres import Postgres
from batchray.store.reopenings import Reopenings
from batchray.store.retention import Retention
from batchray.store.runs import Runs
from batchray.store.sqlite import Sqlite
from batchray.store.tallies import Tallies

DATABASE = "batchray.db"
"""The SQLite file inside a data directory."""

_NETWORK_FS = (
    "{} is on a network file system ({}), where SQLite can lose data; use a local disk or PostgreSQL, or force it with "
    "the setting allow_network_fs"
)


# Errors of a directory that no later try can write to.
_UNUSABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}


class Store:
    """One data directory, or one PostgreSQL database.  Methods block; `AsyncStore` calls them from async code."""

    def __init__(self, database: Database, lease_s: float = LEASE_S, lock: int | None = None) -> None:
        self.database = database
        self.leases = Leases(database, f"leader-{uuid.uuid4()}", lease_s)
        self.jobs = Jobs(database, self.leases)
        self.items = Items(database)
        self.figures = Figures(database)
        self.outcomes = Outcomes(database, self.leases)
        self.tallies = Tallies(database, self.leases)
        self.reopenings = Reopenings(database, self.leases)
        self.conversations = Conversations(database, self.leases)
        self.callbacks = Callbacks(database, self.leases)
        self.agents = Agents(database)
        self.blocks = Blocks(database)
        self.files = Files(database)
        self.openai_batches = OpenAIBatches(database)
        self.runs = Runs(database, self.jobs)
        self.integrity = Integrity(database, self.items)
        self.retention = Retention(database)
        self._lock = lock
        self._running_jobs: list[str] = []
        self._running_jobs_lock = threading.Lock()

    @classmethod
    def open(
        cls, data_dir: Path, url: str | None = None, *, lease_s: float = LEASE_S, allow_network_fs: bool = False
    ) -> Self:
        """Open a store for reading and writing: the PostgreSQL database of `url`, or else the data directory.

        Makes the directory if it does not exist.  Raises StoreLockedError while another process, or another store of
        this process, writes to it; ConfigError if the directory cannot be made or written to, or is on a network file
        system, unless that is allowed; and StoreError if the store cannot be used now, is damaged, or was made by a
        newer version.
        """
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            if url is not None:
                store = cls(Database(data_dir, Postgres(url, is_writer=True)), lease_s)
            else:
                if not allow_network_fs and (kind := network_fs(data_dir)):
                    raise ConfigError(_NETWORK_FS.format(data_dir, kind))
                sqlite = Sqlite(data_dir / DATABASE, is_writer=True)
                descriptor = lock(data_dir)
                store = cls(Database(data_dir, sqlite, Reserve(data_dir)), lease_s, descriptor)
        except OSError as error:
            reason = f"cannot write to {data_dir}: {error.strerror}"
            if error.errno in _UNUSABLE:
                raise ConfigError(reason) from None
            raise (StoreFullError if is_no_room(error) else StoreError)(reason) from None
        try:
            store.database.room.acquire()
            create_schema(store.database)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def open_for_reading(
        cls, data_dir: Path, url: str | None = None, *, is_pooled: bool = True, accepts_older: bool = False
    ) -> Self:
        """Open a store for reading, also while another process writes to it.

        Starts no thread.  Without a pool it holds no connection to PostgreSQL between reads.  A data directory of an
        older version that no process writes to is migrated first.  `accepts_older` is for `integrity`, which reads only
        what no version has changed.  Raises StoreError if there is no store, or another version made it.
        """
        if url is None and not (data_dir / DATABASE).exists():
            raise StoreError(f"no batchray data in {data_dir}; give the --data-dir that the job was run with")
        backend = (
            Postgres(url, is_writer=False, is_pooled=is_pooled) if url else Sqlite(data_dir / DATABASE, is_writer=False)
        )
        store = cls(Database(data_dir, backend))
        try:
            if url is None and not accepts_older and is_older(store.database):
                cls._migrate(data_dir)
            check_version(store.database, accepts_older=accepts_older)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def _migrate(cls, data_dir: Path) -> None:
        """Bring a data directory up to this version, if it can be written and no process has it open for writing."""
        with suppress(BatchrayError):  # the reader reports the version
            cls.open(data_dir).close()

    @property
    def data_dir(self) -> Path:
        """The data directory: of the database, or of this process's files beside a PostgreSQL database."""
        return self.database.data_dir

    @property
    def is_shared(self) -> bool:
        """Whether several processes may write, so that leases decide which one runs a job."""
        return self.database.is_shared

    def has_room(self) -> bool:
        """Return whether the disk has space for new work.  See `DiskRoom`."""
        return self.database.room.is_free()

    def check_room(self) -> None:
        """Raise StoreFullError while the disk has no space for new work."""
        self.database.room.check()

    def purge_soon(self) -> None:
        """Delete what earlier processes have left of jobs and files, on the writer's thread between other calls.

        From now on everything that uses the store must run on that thread.
        """
        for purge_left in (self.retention.purge_left, self.files.purge_left):
            self.database.call_soon(purge_left)

    def close(self) -> None:
        """Finish pending writes, then close."""
        self.database.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def running_jobs(self) -> set[str]:
        """Return the ids of the jobs that a process runs now."""
        return self.leases.running_job_ids() if self.is_shared else running_jobs(self.data_dir)

    def mark_running(self, job_id: str) -> None:
        """Show other processes that this one runs a job.  Thread-safe."""
        with self._running_jobs_lock:
            self._write_running_jobs([*self._running_jobs, job_id])

    def unmark_running(self, job_id: str) -> None:
        """Show other processes that this one no longer runs a job.  Thread-safe."""
        with self._running_jobs_lock:
            self._write_running_jobs([each for each in self._running_jobs if each != job_id])

    def _write_running_jobs(self, running_jobs: list[str]) -> None:
        if self._lock is not None:
            write_holder(self._lock, running_jobs)
        self._running_jobs = running_jobs

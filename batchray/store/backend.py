"""The interface to a database system, with two implementations: `Sqlite` and `Postgres`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import sqlalchemy as sa

from batchray.errors import BatchrayError
from batchray.store.records import ItemPage


class Backend(Protocol):
    """One database, open for reading or for writing."""

    engine: sa.Engine
    name: str
    """The name in messages: the data directory, or the URL without its password."""
    is_shared: bool
    """Whether several processes may write to it, so that leases decide which one runs a job."""
    errors: tuple[type[Exception], ...]
    """The exceptions of its driver."""
    alone: AbstractContextManager[Any]
    """Held while a connection is used, if there is one for all threads."""

    def insert(self, table: sa.Table) -> Any:
        """Return the dialect's INSERT, with ON CONFLICT."""
        ...

    def insert_items(self, connection: sa.Connection, job: int, first: int, page: ItemPage) -> None:
        """Insert a page of a job's items, of which the first has this index."""
        ...

    def failure(self, error: Exception) -> BatchrayError:
        """Translate an error of the driver."""
        ...

    def prepare(self, connection: sa.Connection) -> None:
        """Prepare for creating tables: by one process at a time."""
        ...

    def version(self, connection: sa.Connection) -> int:
        """Return the version of its tables; 0 if there are none."""
        ...

    def set_version(self, connection: sa.Connection, version: int) -> None:
        """Store the version of its tables."""
        ...

    def now(self, connection: sa.Connection) -> float:
        """Return the time of the one clock that all leases use, in seconds."""
        ...

    def relaxed(self) -> AbstractContextManager[None]:
        """Surround a transaction that need not be on disk before the next one is."""
        ...

    def limit_lock_wait(self, connection: sa.Connection) -> None:
        """Make the transaction fail, to be repeated later, instead of waiting long for another one's lock."""
        ...

    def checkpoint(self) -> None:
        """Move the contents of the log into the database, as far as readers allow."""
        ...

    def shrink(self) -> bool:
        """Return a part of the unused space to the disk; return whether there is more."""
        ...

    def corruption(self, connection: sa.Connection) -> list[str]:
        """Read the whole database, and return a sentence about each damage."""
        ...

    def close(self) -> None:
        """Close its connections; one that a thread still uses is closed when the thread gives it back."""
        ...

"""What differs between the databases: the seam that `Sqlite` and `Postgres` fill."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import sqlalchemy as sa

from batchray.errors import BatchrayError


class Backend(Protocol):
    """One database, open for reading or for writing."""

    engine: sa.Engine
    name: str
    """What people know it by."""
    is_shared: bool
    """Whether several processes may write to it, so that jobs are led under leases."""
    errors: tuple[type[Exception], ...]
    """What its driver raises."""

    def insert(self, table: sa.Table) -> Any:
        """Return its own INSERT, which knows of conflicts."""
        ...

    def insert_items(self, connection: sa.Connection, rows: list[tuple[Any, ...]]) -> None:
        """Insert rows of job, index, agent_id, custom_id and request."""
        ...

    def failure(self, error: Exception) -> BatchrayError:
        """Say in our words what the driver's error means."""
        ...

    def prepare(self, connection: sa.Connection) -> None:
        """Make ready for tables to be created: one process at a time."""
        ...

    def version(self, connection: sa.Connection) -> int:
        """Return the version of its tables; 0 where there are none."""
        ...

    def set_version(self, connection: sa.Connection, version: int) -> None:
        """Keep the version of its tables."""
        ...

    def now(self, connection: sa.Connection) -> float:
        """Return the time of the one clock that leases go by, in seconds."""
        ...

    def bulk(self) -> AbstractContextManager[None]:
        """Surround one large transaction."""
        ...

    def limit_lock_wait(self, connection: sa.Connection) -> None:
        """Let the transaction fail, and be repeated later, where it would wait long for what another one has locked."""
        ...

    def checkpoint(self) -> None:
        """Move what is in the log into the database, as far as readers allow."""
        ...

    def shrink(self) -> bool:
        """Give a part of the room that is not needed any more back to the disk; tell whether there is more."""
        ...

    def corruption(self, connection: sa.Connection) -> list[str]:
        """Read all of it, and say what is damaged."""
        ...

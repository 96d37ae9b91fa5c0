"""A store that another program has locked."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.polling import until


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Hold SQLite's write lock on a store, as another program may."""
    with closing(sqlite3.connect(data_dir / "batchray.db", isolation_level=None)) as connection:
        until(lambda: _begins(connection))
        yield


def _begins(connection: sqlite3.Connection) -> bool:
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:  # batchray writes at this moment
        return False
    return True

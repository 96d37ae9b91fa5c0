"""A store that another program has locked."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.waiting import until


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Lock the store against all writers, as another program may."""
    with closing(sqlite3.connect(data_dir / "batchray.db", isolation_level=None)) as other:
        until(lambda: _begun(other))
        yield


def _begun(connection: sqlite3.Connection) -> bool:
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:  # the server writes at this moment
        return False
    return True

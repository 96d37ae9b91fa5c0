"""The tables of a database, created, and migrated from an older version."""

from __future__ import annotations

import functools

import sqlalchemy as sa
from sqlalchemy.schema import CreateIndex, CreateTable, DDLElement

from batchray.errors import StoreError
from batchray.store.database import Database
from batchray.store.migrations import migrate
from batchray.store.tables import SCHEMA_VERSION, metadata


def create_schema(database: Database) -> None:
    """Create missing tables, and migrate those of an older version.

    Raises StoreError if a newer version made them, and StoreCorruptError if the database is damaged.
    """
    with database.transaction() as connection:
        database.backend.prepare(connection)
        version = _version(database, connection)
        if version < SCHEMA_VERSION:
            migrate(connection, version)
            for statement in _ddl(connection.engine.url.drivername):
                connection.exec_driver_sql(statement)
        database.backend.set_version(connection, SCHEMA_VERSION)


def check_version(database: Database, *, accepts_older: bool = False) -> None:
    """Raise StoreError if another version made the tables; with `accepts_older`, if a newer one did."""
    if is_older(database) and not accepts_older:
        advice = "resume a job or start a server to bring it up to this one"
        raise StoreError(f"{database.backend.name} was written by an older version of batchray; {advice}")


def is_older(database: Database) -> bool:
    """Whether an older version made the tables.  Raises StoreError if a newer one did."""
    with database.reading() as connection:
        return 0 < _version(database, connection) < SCHEMA_VERSION


def _version(database: Database, connection: sa.Connection) -> int:
    version = database.backend.version(connection)
    if version > SCHEMA_VERSION:
        raise StoreError(f"{database.backend.name} was written by a newer version of batchray; upgrade to read it")
    return version


@functools.cache
def _ddl(driver: str) -> tuple[str, ...]:
    """Return what creates the missing tables and their indexes, for a driver as URLs name it.

    `MetaData.create_all` compiles it for each database, which is a third of the CPU time of opening a new store.
    """
    dialect = sa.make_url(f"{driver}://").get_dialect()()
    statements: list[DDLElement] = []
    for table in metadata.sorted_tables:
        statements.append(CreateTable(table, if_not_exists=True))
        statements += [CreateIndex(index, if_not_exists=True) for index in sorted(table.indexes, key=_name)]
    return tuple(str(statement.compile(dialect=dialect)) for statement in statements)


def _name(index: sa.Index) -> str:
    return str(index.name)

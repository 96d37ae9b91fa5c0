"""Migrations: what brings the tables of an older schema version up to the present one.

The next process that opens the store for writing runs them, in the transaction that creates missing tables.  A version
from before a table was added has no such table: it is created after the migrations, in its present form.

Each migration describes the tables as they were, with SQL of its own: it must not change when `tables.py` does.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from typing import Any

import orjson
import sqlalchemy as sa

from batchray.store.tables import INTEGER, SCHEMA_VERSION, TEXT


def migrate(connection: sa.Connection, version: int) -> None:
    """Run the migrations from `version` to the present one.  0 is a database without tables: nothing to do."""
    if version:
        for source in range(version, SCHEMA_VERSION):
            MIGRATIONS[source](connection)


def _to_version_2(connection: sa.Connection) -> None:
    """Count collateral crashes, and give every job a lease: the first databases had none."""
    connection.exec_driver_sql("ALTER TABLE attempts ADD COLUMN losses BIGINT NOT NULL DEFAULT 0")
    _add_missing_leases(connection)


def _to_version_3(connection: sa.Connection) -> None:
    """Rename columns, tables and indexes to the terms that the code uses."""
    _add_missing_leases(connection)  # early code of version 2 gave a job its lease when the job first ran
    for table, old, new in (
        ("leases", "wishes", "control_requests"),
        ("attempts", "deaths", "blamed_crashes"),
        ("attempts", "losses", "collateral_crashes"),
    ):
        connection.exec_driver_sql(f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}")
    present = set(sa.inspect(connection).get_table_names())
    for old, new in (("pauses", "pending_approvals"), ("memories", "memory_blocks"), ("steps", "checkpoints")):
        if old in present:
            connection.exec_driver_sql(f"ALTER TABLE {old} RENAME TO {new}")
    # SQLite cannot rename an index.  These are small.
    connection.exec_driver_sql("DROP INDEX IF EXISTS one_job_a_key")
    connection.exec_driver_sql("CREATE UNIQUE INDEX jobs_by_idempotency_key ON jobs (user_id, idempotency_key)")
    if "pauses" in present:
        connection.exec_driver_sql("DROP INDEX pauses_of_an_agent")
        connection.exec_driver_sql("DROP INDEX claimed_pauses")
        approvals = "ON pending_approvals"
        connection.exec_driver_sql(f"CREATE INDEX pending_approvals_of_an_agent {approvals} (user_id, agent_id)")
        connection.exec_driver_sql(f"CREATE INDEX pending_approvals_by_claim {approvals} (claimed_job, claimed_idx)")


def _to_version_4(connection: sa.Connection) -> None:
    """Add the reason for which a job has paused itself, and the fields of its requests that have no effect."""
    connection.exec_driver_sql("ALTER TABLE jobs ADD COLUMN paused_because VARCHAR")
    connection.exec_driver_sql("ALTER TABLE jobs ADD COLUMN unused_fields VARCHAR")


def _to_version_5(connection: sa.Connection) -> None:
    """Move the memory blocks of agents made over HTTP out of their settings, so that several agents can share them.

    The agents' names become a column, by which they are found, and so do the numbers of messages of conversations.
    """
    if "conversations" in sa.inspect(connection).get_table_names():
        connection.exec_driver_sql("ALTER TABLE conversations ADD COLUMN n_messages BIGINT")
    columns = [sa.column("id"), sa.column("user_id"), sa.column("created_at"), sa.column("spec", sa.LargeBinary)]
    agents = sa.table("agents", *columns, sa.column("name"))
    if "agents" not in sa.inspect(connection).get_table_names():
        return
    connection.exec_driver_sql("ALTER TABLE agents ADD COLUMN name VARCHAR")
    connection.exec_driver_sql("CREATE INDEX agents_by_name ON agents (user_id, name)")
    blocks, agent_blocks = _blocks_of_version_5(connection)
    for agent in connection.execute(sa.select(agents).order_by(agents.c.id)).all():
        spec = orjson.loads(agent.spec)
        here = agents.c.id == agent.id
        connection.execute(sa.update(agents).where(here).values(name=spec["given"].get("name") or agent.id))
        given = spec["given"].pop("memory_blocks", None)
        if not spec["agent"].pop("memory_blocks", None) and not given:
            continue
        for position, block in enumerate(given or ()):
            row = _block_of_version_5(connection, agent, position, block)
            connection.execute(sa.insert(blocks).values(**row))
            connection.execute(sa.insert(agent_blocks).values(agent_id=agent.id, block_id=row["id"]))
        connection.execute(sa.update(agents).where(here).values(spec=orjson.dumps(spec)))


def _to_version_6(connection: sa.Connection) -> None:
    """Index the outcomes that did not succeed, and add the last of them that belongs to a run before a retry."""
    if "reopenings" in sa.inspect(connection).get_table_names():
        connection.exec_driver_sql("ALTER TABLE reopenings ADD COLUMN failed_until_seq BIGINT NOT NULL DEFAULT 0")
    connection.exec_driver_sql("CREATE INDEX failed_outcomes ON outcomes (job, idx) WHERE status != 'succeeded'")


def _block_of_version_5(
    connection: sa.Connection, agent: sa.Row[Any], position: int, block: dict[str, Any]
) -> dict[str, Any]:
    """Return the row of a block of an agent's settings, with the value that the agent's model gave it last."""
    names = ("user_id", "agent_id", "label")
    edited = sa.table("memory_blocks", *map(sa.column, names), sa.column("value", sa.LargeBinary))
    here = (edited.c.user_id == agent.user_id, edited.c.agent_id == agent.id, edited.c.label == block["label"])
    value = connection.execute(sa.select(edited.c.value).where(*here)).scalar()
    connection.execute(sa.delete(edited).where(*here))
    digest = hashlib.sha256(f"{agent.id}\0{position}".encode()).digest()  # as the server made its id until then
    kept = {name: block[name] for name in ("description", "read_only", "metadata") if block.get(name) is not None}
    return {
        "id": f"block-{uuid.UUID(bytes=digest[:16], version=4)}",
        "user_id": agent.user_id,
        "created_at": agent.created_at,
        "updated_at": agent.created_at,
        "label": block["label"],
        "value": block["value"].encode() if value is None else value,
        "spec": orjson.dumps({"limit": block.get("limit") or 20_000, **kept, "made_for": agent.id}),
    }


def _blocks_of_version_5(connection: sa.Connection) -> tuple[sa.Table, sa.Table]:
    """Create the tables of blocks, and of the agents' last runs, in the form of version 5."""
    tables = sa.MetaData()
    texts = ("id", "user_id", "created_at", "updated_at", "label")
    blocks = sa.Table(
        "blocks",
        tables,
        sa.Column("block", INTEGER, primary_key=True),
        *(sa.Column(name, TEXT, nullable=False, unique=name == "id") for name in texts),
        *(sa.Column(name, sa.LargeBinary, nullable=False) for name in ("value", "spec")),
        sa.Index("blocks_of_a_user", "user_id", "block"),
    )
    agent_blocks = sa.Table(
        "agent_blocks",
        tables,
        sa.Column("seq", INTEGER, primary_key=True),
        *(sa.Column(name, TEXT, nullable=False) for name in ("agent_id", "block_id")),
        sa.Index("blocks_of_an_agent", "agent_id", "block_id", unique=True),
        sa.Index("agents_of_a_block", "block_id", "seq"),
    )
    sa.Table(
        "agent_runs",
        tables,
        *(sa.Column(name, TEXT, primary_key=True) for name in ("user_id", "agent_id")),
        *(sa.Column(name, TEXT, nullable=False) for name in ("finished_at", "stop_reason")),
        sa.Column("duration_ns", INTEGER, nullable=False),
    )
    tables.create_all(connection)
    return blocks, agent_blocks


def _add_missing_leases(connection: sa.Connection) -> None:
    """Give every job a lease that no process holds, in the form of version 2."""
    leases = sa.Table(
        "leases",
        sa.MetaData(),
        sa.Column("job", INTEGER, primary_key=True, autoincrement=False),
        sa.Column("epoch", INTEGER, nullable=False),
        sa.Column("leader", TEXT, nullable=False),
        sa.Column("until", sa.Float, nullable=False),
        sa.Column("wishes", sa.LargeBinary, nullable=False),
    )
    leases.create(connection, checkfirst=True)
    jobs = sa.table("jobs", sa.column("job"))
    columns = (jobs.c.job, sa.literal(0), sa.literal(""), sa.literal(0.0), sa.literal(b"{}", sa.LargeBinary))
    missing = sa.select(*columns).where(jobs.c.job.not_in(sa.select(leases.c.job)))
    connection.execute(sa.insert(leases).from_select([column.name for column in leases.c], missing))


MIGRATIONS: dict[int, Callable[[sa.Connection], None]] = {
    1: _to_version_2,
    2: _to_version_3,
    3: _to_version_4,
    4: _to_version_5,
    5: _to_version_6,
}
"""By the version that a migration starts from."""

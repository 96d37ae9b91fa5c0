"""The tables: jobs, items, attempts, outcomes; callbacks, leases, agents, blocks, the state that agents keep, files."""

from __future__ import annotations

import sqlalchemy as sa

from batchray.schema.progress import STATUSES

SCHEMA_VERSION = 6
DELETED = "deleted"
"""The kind of a job that retention is deleting, part by part."""

# SQLite has one type of integer, and only an INTEGER key is the row id; PostgreSQL's INTEGER ends at 2**31.
INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# Compared byte by byte in both, whatever the locale of the database.
TEXT = sa.String().with_variant(sa.String(collation="C"), "postgresql")

metadata = sa.MetaData()

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("job", INTEGER, primary_key=True),
    sa.Column("id", TEXT, nullable=False, unique=True),
    sa.Column("kind", TEXT, nullable=False),
    sa.Column("user_id", TEXT, nullable=False),
    sa.Column("agent_id", TEXT),
    sa.Column("status", TEXT, nullable=False),
    sa.Column("created_at", TEXT, nullable=False),
    sa.Column("updated_at", TEXT, nullable=False),
    sa.Column("started_at", TEXT),
    sa.Column("completed_at", TEXT),
    sa.Column("stop_reason", TEXT),
    # Why the job has paused itself; NULL if it has not.
    sa.Column("paused_because", TEXT),
    sa.Column("unused_fields", TEXT),
    sa.Column("callback_url", TEXT),
    sa.Column("callback_sent_at", TEXT),
    sa.Column("callback_status_code", INTEGER),
    sa.Column("callback_error", TEXT),
    sa.Column("idempotency_key", TEXT),
    sa.Column("body_digest", TEXT),
    sa.Column("agents", sa.LargeBinary, nullable=False),
    sa.Column("total", INTEGER, nullable=False, server_default="0"),
    *(sa.Column(status, INTEGER, nullable=False, server_default="0") for status in STATUSES),
    sa.Column("prompt_tokens", INTEGER, nullable=False, server_default="0"),
    sa.Column("completion_tokens", INTEGER, nullable=False, server_default="0"),
    sa.Column("last_seq", INTEGER, nullable=False, server_default="0"),
    sa.Column("ttft_ns", INTEGER),
    sa.Column("total_duration_ns", INTEGER),
    sa.Column("progress", sa.LargeBinary),
    sa.Index("jobs_of_a_user", "user_id", "kind", "job"),
    # NULLs are all different: jobs without a key do not conflict.
    sa.Index("jobs_by_idempotency_key", "user_id", "idempotency_key", unique=True),
)

items = sa.Table(
    "items",
    metadata,
    sa.Column("job", INTEGER, primary_key=True),
    sa.Column("idx", INTEGER, primary_key=True),
    sa.Column("agent_id", TEXT, nullable=False),
    sa.Column("custom_id", TEXT),
    sa.Column("request", sa.LargeBinary, nullable=False),
)

# The rows of the table that a job was made of: `n_rows` of them, of item `idx` and those after it, as Arrow IPC.
carried_columns = sa.Table(
    "carried_columns",
    metadata,
    sa.Column("job", INTEGER, primary_key=True),
    sa.Column("idx", INTEGER, primary_key=True),
    sa.Column("n_rows", INTEGER, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

# Apart from items, and narrow: counting an attempt then touches one dense page, not the page of a request's body.
attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("job", INTEGER, primary_key=True),
    sa.Column("idx", INTEGER, primary_key=True),
    sa.Column("attempt", INTEGER, nullable=False),
    sa.Column("blamed_crashes", INTEGER, nullable=False, server_default="0"),
    sa.Column("collateral_crashes", INTEGER, nullable=False, server_default="0"),
    sqlite_with_rowid=False,
)

outcomes = sa.Table(
    "outcomes",
    metadata,
    sa.Column("job", INTEGER, primary_key=True),
    sa.Column("idx", INTEGER, primary_key=True),
    sa.Column("seq", INTEGER, nullable=False),
    sa.Column("attempt", INTEGER, nullable=False),
    sa.Column("status", TEXT, nullable=False),
    sa.Column("stop_reason", TEXT, nullable=False),
    sa.Column("error", sa.LargeBinary),
    sa.Column("usage", sa.LargeBinary, nullable=False),
    sa.Column("queued_ns", INTEGER, nullable=False),
    sa.Column("ttft_ns", INTEGER),
    sa.Column("duration_ns", INTEGER, nullable=False),
    sa.Column("messages", sa.LargeBinary, nullable=False),
    sa.Column("finished_at", TEXT, nullable=False),
    sa.Index("outcomes_in_finish_order", "job", "seq", unique=True),
)

# Written with the value in it, not as a parameter: a database uses a partial index only if it sees the same condition.
HAS_FAILED = outcomes.c.status != sa.literal_column("'succeeded'")
"""Selects the outcomes that did not succeed, through an index, however many did."""

# Of these alone, so that it costs the others nothing.
sa.Index("failed_outcomes", outcomes.c.job, outcomes.c.idx, sqlite_where=HAS_FAILED, postgresql_where=HAS_FAILED)

# Sums over the outcomes of a job, so that a reader and a later run have only the newest outcomes to read.
tallies = sa.Table(
    "tallies",
    metadata,
    sa.Column("job", INTEGER, primary_key=True, autoincrement=False),
    sa.Column("tally", sa.LargeBinary, nullable=False),
)

# A row is written with its job's end, and deleted when nothing more will be sent.
callbacks = sa.Table(
    "callbacks",
    metadata,
    sa.Column("job", INTEGER, primary_key=True),
    sa.Column("due_at", sa.Float, nullable=False),
    sa.Column("n_attempts", INTEGER, nullable=False, server_default="0"),
)

# Which process may run a job, or send its callback, and until when.  `epoch` counts the leaders, so that late writes of
# an earlier one are refused; `control_requests` holds what other processes ask of the leader.
leases = sa.Table(
    "leases",
    metadata,
    sa.Column("job", INTEGER, primary_key=True, autoincrement=False),
    sa.Column("epoch", INTEGER, nullable=False),
    sa.Column("leader", TEXT, nullable=False),
    sa.Column("until", sa.Float, nullable=False),
    sa.Column("control_requests", sa.LargeBinary, nullable=False),
)

# When an ended job was reopened to run its failed items again; a job without a row never was.
reopenings = sa.Table(
    "reopenings",
    metadata,
    sa.Column("job", INTEGER, primary_key=True),
    sa.Column("reopened_at", TEXT, nullable=False),
    # Outcomes up to this `seq` that did not succeed are not its any more: its leaders delete them, part by part.
    sa.Column("failed_until_seq", INTEGER, nullable=False, server_default="0"),
)

# The settings and the output file of a job's last run, which a resume takes over.  A server's jobs have no row.
run_options = sa.Table(
    "run_options",
    metadata,
    sa.Column("job", INTEGER, primary_key=True),
    sa.Column("options", sa.LargeBinary, nullable=False),
)

agents = sa.Table(
    "agents",
    metadata,
    sa.Column("agent", INTEGER, primary_key=True),
    sa.Column("id", TEXT, nullable=False, unique=True),
    sa.Column("user_id", TEXT, nullable=False),
    sa.Column("created_at", TEXT, nullable=False),
    sa.Column("updated_at", TEXT, nullable=False),
    sa.Column("spec", sa.LargeBinary, nullable=False),
    sa.Column("name", TEXT),  # that of the spec, to search for
    sa.Index("agents_of_a_user", "user_id", "agent"),
    sa.Index("agents_by_name", "user_id", "name"),
)


# The checkpoints of items without an outcome, one after each step.
checkpoints = sa.Table(
    "checkpoints",
    metadata,
    sa.Column("job", INTEGER, primary_key=True),
    sa.Column("idx", INTEGER, primary_key=True),
    sa.Column("seq", INTEGER, primary_key=True),
    sa.Column("checkpoint", sa.LargeBinary, nullable=False),
)

# A row is an item whose tool calls wait for the caller, with the claim of the item that answers them.
pending_approvals = sa.Table(
    "pending_approvals",
    metadata,
    sa.Column("job", INTEGER, primary_key=True),
    sa.Column("idx", INTEGER, primary_key=True),
    sa.Column("user_id", TEXT, nullable=False),
    sa.Column("agent_id", TEXT, nullable=False),
    sa.Column("memory", sa.LargeBinary, nullable=False),
    sa.Column("claimed_job", INTEGER),
    sa.Column("claimed_idx", INTEGER),
    sa.Index("pending_approvals_of_an_agent", "user_id", "agent_id"),
    sa.Index("pending_approvals_by_claim", "claimed_job", "claimed_idx"),
)

# Ids of tool calls come from a provider: stored as bytes, because PostgreSQL's texts cannot hold every string.
pending_calls = sa.Table(
    "pending_calls",
    metadata,
    sa.Column("job", INTEGER, primary_key=True),
    sa.Column("idx", INTEGER, primary_key=True),
    sa.Column("tool_call_id", sa.LargeBinary, primary_key=True),
    sa.Column("user_id", TEXT, nullable=False),
    sa.Column("agent_id", TEXT, nullable=False),
    sa.Index("calls_of_an_agent", "user_id", "agent_id", "tool_call_id"),
)

# A row is an item that belongs to the conversation of a stateful agent with a user.
conversations = sa.Table(
    "conversations",
    metadata,
    sa.Column("seq", INTEGER, primary_key=True),
    sa.Column("user_id", TEXT, nullable=False),
    sa.Column("agent_id", TEXT, nullable=False),
    sa.Column("job", INTEGER, nullable=False),
    sa.Column("idx", INTEGER, nullable=False),
    sa.Column("n_messages", INTEGER),  # NULL in rows of version 4
    sa.Index("conversation_in_order", "user_id", "agent_id", "seq"),
    sa.Index("conversations_of_a_job", "job", "idx"),
)

# Which item of a run has the turn of a stateful agent, and which job is next if it asks before `next_until`.  Only a
# database that several processes share has rows.
agent_turns = sa.Table(
    "agent_turns",
    metadata,
    sa.Column("user_id", TEXT, primary_key=True),
    sa.Column("agent_id", TEXT, primary_key=True),
    sa.Column("job", INTEGER),
    sa.Column("idx", INTEGER),
    sa.Column("epoch", INTEGER),
    sa.Column("next_job", INTEGER),
    sa.Column("next_until", sa.Float, nullable=False, server_default="0"),
    sa.Index("turns_of_a_job", "job"),
)

# The edited blocks of agents whose blocks are in their settings, not in `blocks`.
memory_blocks = sa.Table(
    "memory_blocks",
    metadata,
    sa.Column("user_id", TEXT, primary_key=True),
    sa.Column("agent_id", TEXT, primary_key=True),
    sa.Column("label", TEXT, primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
)

# Blocks made over HTTP, which several agents of a user may share.  `spec` holds what does not change with each run.
blocks = sa.Table(
    "blocks",
    metadata,
    sa.Column("block", INTEGER, primary_key=True),
    sa.Column("id", TEXT, nullable=False, unique=True),
    sa.Column("user_id", TEXT, nullable=False),
    sa.Column("created_at", TEXT, nullable=False),
    sa.Column("updated_at", TEXT, nullable=False),
    sa.Column("label", TEXT, nullable=False),
    sa.Column("value", sa.LargeBinary, nullable=False),
    sa.Column("spec", sa.LargeBinary, nullable=False),
    sa.Index("blocks_of_a_user", "user_id", "block"),
)

# Which agents made over HTTP have which blocks, in the order in which they were attached.
agent_blocks = sa.Table(
    "agent_blocks",
    metadata,
    sa.Column("seq", INTEGER, primary_key=True),
    sa.Column("agent_id", TEXT, nullable=False),
    sa.Column("block_id", TEXT, nullable=False),
    sa.Index("blocks_of_an_agent", "agent_id", "block_id", unique=True),
    sa.Index("agents_of_a_block", "block_id", "seq"),
)

# The feedback of people on steps.  `tags` is a JSON array.
step_feedback = sa.Table(
    "step_feedback",
    metadata,
    sa.Column("job", INTEGER, primary_key=True),
    sa.Column("idx", INTEGER, primary_key=True),
    sa.Column("ordinal", INTEGER, primary_key=True),
    sa.Column("feedback", TEXT),
    sa.Column("tags", sa.LargeBinary, nullable=False),
)


# The last run of each agent for a user.
agent_runs = sa.Table(
    "agent_runs",
    metadata,
    sa.Column("user_id", TEXT, primary_key=True),
    sa.Column("agent_id", TEXT, primary_key=True),
    sa.Column("finished_at", TEXT, nullable=False),
    sa.Column("stop_reason", TEXT, nullable=False),
    sa.Column("duration_ns", INTEGER, nullable=False),
)

# Files that clients have uploaded.  One whose `user_id` is empty is being deleted.
files = sa.Table(
    "files",
    metadata,
    sa.Column("file", INTEGER, primary_key=True),
    sa.Column("id", TEXT, nullable=False, unique=True),
    sa.Column("user_id", TEXT, nullable=False),
    sa.Column("created_at", TEXT, nullable=False),
    sa.Column("expires_at", TEXT),
    sa.Column("purpose", TEXT, nullable=False),
    sa.Column("filename", TEXT, nullable=False),
    sa.Column("n_bytes", INTEGER, nullable=False),
    sa.Column("idempotency_key", TEXT),
    sa.Column("digest", TEXT),
    sa.Index("files_of_a_user", "user_id", "file"),
    # NULLs are all different: files without a key do not conflict.
    sa.Index("files_by_idempotency_key", "user_id", "idempotency_key", unique=True),
)

# The jobs that are batches of OpenAI's API, with what only that API has.
openai_batches = sa.Table(
    "openai_batches",
    metadata,
    sa.Column("job", INTEGER, primary_key=True),
    sa.Column("spec", sa.LargeBinary, nullable=False),
)

# The contents of files, in parts that follow each other.
file_parts = sa.Table(
    "file_parts",
    metadata,
    sa.Column("file", INTEGER, primary_key=True),
    sa.Column("part", INTEGER, primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
)


def same_item(one: sa.Table, other: sa.Table) -> sa.ColumnElement[bool]:
    """Return the condition that joins two tables on the item."""
    return sa.and_(one.c.job == other.c.job, one.c.idx == other.c.idx)

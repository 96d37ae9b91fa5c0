"""The tables: jobs, items, attempts, outcomes, the outbox of callbacks, agents made over HTTP, and what agents keep."""

from __future__ import annotations

import sqlalchemy as sa

from batchray.progress import STATUSES

SCHEMA_VERSION = 1

metadata = sa.MetaData()

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("job", sa.Integer, primary_key=True),
    sa.Column("id", sa.String, nullable=False, unique=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("user_id", sa.String, nullable=False),
    sa.Column("agent_id", sa.String),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("created_at", sa.String, nullable=False),
    sa.Column("updated_at", sa.String, nullable=False),
    sa.Column("started_at", sa.String),
    sa.Column("completed_at", sa.String),
    sa.Column("stop_reason", sa.String),
    sa.Column("callback_url", sa.String),
    sa.Column("callback_sent_at", sa.String),
    sa.Column("callback_status_code", sa.Integer),
    sa.Column("callback_error", sa.String),
    sa.Column("idempotency_key", sa.String),
    sa.Column("body_digest", sa.String),
    sa.Column("agents", sa.LargeBinary, nullable=False),
    sa.Column("total", sa.Integer, nullable=False, server_default="0"),
    *(sa.Column(status, sa.Integer, nullable=False, server_default="0") for status in STATUSES),
    sa.Column("prompt_tokens", sa.Integer, nullable=False, server_default="0"),
    sa.Column("completion_tokens", sa.Integer, nullable=False, server_default="0"),
    sa.Column("last_seq", sa.Integer, nullable=False, server_default="0"),
    sa.Column("ttft_ns", sa.Integer),
    sa.Column("total_duration_ns", sa.Integer),
    sa.Column("progress", sa.LargeBinary),
    sa.Index("jobs_of_a_user", "user_id", "kind", "job"),
    # NULLs are all different, so jobs without a key are not in each other's way.
    sa.Index("one_job_a_key", "user_id", "idempotency_key", unique=True),
)

items = sa.Table(
    "items",
    metadata,
    sa.Column("job", sa.Integer, primary_key=True),
    sa.Column("idx", sa.Integer, primary_key=True),
    sa.Column("agent_id", sa.String, nullable=False),
    sa.Column("custom_id", sa.String),
    sa.Column("request", sa.LargeBinary, nullable=False),
)

# Apart from items, and narrow: counting an attempt then touches one dense page, not the page of a request's body.
attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("job", sa.Integer, primary_key=True),
    sa.Column("idx", sa.Integer, primary_key=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("deaths", sa.Integer, nullable=False, server_default="0"),
    sqlite_with_rowid=False,
)

outcomes = sa.Table(
    "outcomes",
    metadata,
    sa.Column("job", sa.Integer, primary_key=True),
    sa.Column("idx", sa.Integer, primary_key=True),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("stop_reason", sa.String, nullable=False),
    sa.Column("error", sa.LargeBinary),
    sa.Column("usage", sa.LargeBinary, nullable=False),
    sa.Column("queued_ns", sa.Integer, nullable=False),
    sa.Column("ttft_ns", sa.Integer),
    sa.Column("duration_ns", sa.Integer, nullable=False),
    sa.Column("messages", sa.LargeBinary, nullable=False),
    sa.Column("finished_at", sa.String, nullable=False),
    sa.Index("outcomes_in_finish_order", "job", "seq", unique=True),
)

# A row is written with its job's end, and goes when nothing more will be sent.
callbacks = sa.Table(
    "callbacks",
    metadata,
    sa.Column("job", sa.Integer, primary_key=True),
    sa.Column("due_at", sa.Float, nullable=False),
    sa.Column("n_attempts", sa.Integer, nullable=False, server_default="0"),
)

agents = sa.Table(
    "agents",
    metadata,
    sa.Column("agent", sa.Integer, primary_key=True),
    sa.Column("id", sa.String, nullable=False, unique=True),
    sa.Column("user_id", sa.String, nullable=False),
    sa.Column("created_at", sa.String, nullable=False),
    sa.Column("updated_at", sa.String, nullable=False),
    sa.Column("spec", sa.LargeBinary, nullable=False),
    sa.Index("agents_of_a_user", "user_id", "agent"),
)


# A row is an item whose tool calls wait for the caller; when another item has brought the answers, its claim.
pauses = sa.Table(
    "pauses",
    metadata,
    sa.Column("pause", sa.Integer, primary_key=True),
    sa.Column("job", sa.Integer, nullable=False),
    sa.Column("idx", sa.Integer, nullable=False),
    sa.Column("user_id", sa.String, nullable=False),
    sa.Column("agent_id", sa.String, nullable=False),
    sa.Column("memory", sa.LargeBinary, nullable=False),
    sa.Column("claimed_job", sa.Integer),
    sa.Column("claimed_idx", sa.Integer),
    sa.Index("one_pause_an_item", "job", "idx", unique=True),
    sa.Index("claimed_pauses", "claimed_job", "claimed_idx"),
)

pending_calls = sa.Table(
    "pending_calls",
    metadata,
    sa.Column("pause", sa.Integer, primary_key=True),
    sa.Column("tool_call_id", sa.String, primary_key=True),
    sa.Column("user_id", sa.String, nullable=False),
    sa.Column("agent_id", sa.String, nullable=False),
    sa.Index("calls_of_an_agent", "user_id", "agent_id", "tool_call_id"),
)

# A row is an item that belongs to the conversation of a stateful agent with a user.
conversations = sa.Table(
    "conversations",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("user_id", sa.String, nullable=False),
    sa.Column("agent_id", sa.String, nullable=False),
    sa.Column("job", sa.Integer, nullable=False),
    sa.Column("idx", sa.Integer, nullable=False),
    sa.Index("conversation_in_order", "user_id", "agent_id", "seq"),
)

memories = sa.Table(
    "memories",
    metadata,
    sa.Column("user_id", sa.String, primary_key=True),
    sa.Column("agent_id", sa.String, primary_key=True),
    sa.Column("label", sa.String, primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
)


def same_item(one: sa.Table, other: sa.Table) -> sa.ColumnElement[bool]:
    """Join two tables on the item."""
    return sa.and_(one.c.job == other.c.job, one.c.idx == other.c.idx)
